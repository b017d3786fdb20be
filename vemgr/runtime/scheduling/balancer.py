# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps what follows from all guarantees together in force: cpu.weight of VEs and groups, and the memory protection of
the cgroups above VEs.

A weight is relative to the others', so each start, end or change may move that of every VE. This is done in the
background, for many changes at once, and writes only what `knobs.is_off`: a start does not wait for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from vemgr.runtime.instances import Parts
from vemgr.scheduler import knobs

log = logging.getLogger(__name__)

_DELAY = 0.05  # seconds; what changes within them is done at once


class Balancer:
    def __init__(self, parts: Parts, in_background: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        self._parts = parts
        self._in_background = in_background
        self._weights: dict[str, int] = {}  # as written
        self._protected: dict[str, int] = {}  # as written; by group, "" for all VEs
        self._touched: set[str] = set()  # VEs whose cgroup was made or written by others since
        self._awake = False
        parts.promises.on_change = self.wake

    def wake(self, ve: str) -> None:
        self._touched.add(ve)
        if not self._awake:
            self._awake = True
            self._in_background(self._run())

    @property
    def at_work(self) -> bool:
        """What a VE should have now cannot be said until this is done."""
        return self._awake

    def weight_of(self, name: str, given: int) -> int | None:
        """The cpu.weight that the cgroup of a VE or a group should have now, which was given another; None while it is
        being changed."""
        if self._awake:
            return None
        return self._weights.get(name) if self._parts.promises.ledger.held else given

    def protection_of(self, group: str) -> int | None:
        """The bytes of memory that should be protected in a group's cgroup; None while that is being changed."""
        return None if self._awake else self._protected.get(group)

    def forget(self) -> None:
        """The VEs' cgroups are others now."""
        self._weights, self._protected = {}, {}

    async def _run(self) -> None:
        try:
            while self._touched:
                await asyncio.sleep(_DELAY)
                await self._balance()
        finally:
            self._awake = False

    async def _balance(self) -> None:
        limits = self._parts.limits
        touched, self._touched = self._touched, set()
        for ve in touched:
            self._weights.pop(ve, None)
        try:
            if "cpu" in limits.controllers:
                await self._write_weights()
            if "memory" in limits.controllers:
                await self._write_protection(touched)
        except OSError as error:
            log.error("guarantees are not in force: %s: %s", error.filename, error.strerror)

    async def _write_protection(self, touched: set[str]) -> None:
        wanted = self._parts.promises.protected()
        self._protected = {key: amount for key, amount in self._protected.items() if key in wanted.keys() - touched}
        for key, amount in wanted.items():
            if self._protected.get(key) != amount:
                await asyncio.to_thread(self._parts.limits.protect, amount, key)
                self._protected[key] = amount

    async def _write_weights(self) -> None:
        wanted = self._parts.promises.cpu_shares().weights
        due = {ve: weight for ve, weight in wanted.items() if self._is_off(ve, weight)}
        written = await asyncio.to_thread(self._parts.limits.write_cpu_weights, due)
        self._weights.update({ve: due[ve] for ve in written})
        if not self._parts.promises.ledger.held:  # all are as they were given, and from now on `set` alone writes them
            self._weights.clear()

    def _is_off(self, ve: str, weight: int) -> bool:
        written = self._weights.get(ve)
        if written is None or not self._parts.promises.ledger.held:
            return weight != written
        return knobs.is_off(weight, written)
