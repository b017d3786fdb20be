# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps what follows from all guarantees together in force: the VEs' cpu.weight, and the memory protection above them.

A weight is relative to the others', so each start, end or change may move that of every VE. This is done in the
background, for many changes at once, and writes only what `knobs.is_off`: a start does not wait for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from vemgr.runtime.instances import Instance, Parts
from vemgr.scheduler import knobs

log = logging.getLogger(__name__)

_DELAY = 0.05  # seconds; what changes within them is done at once


class Balancer:
    def __init__(self, parts: Parts, in_background: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        self._parts = parts
        self._in_background = in_background
        self._weights: dict[str, int] = {}  # as written
        self._protected = -1  # not known
        self._touched: set[str] = set()  # VEs whose cgroup was made or written by others since
        self._awake = False
        parts.promises.on_change = self.wake

    def wake(self, ve: str) -> None:
        self._touched.add(ve)
        if not self._awake:
            self._awake = True
            self._in_background(self._run())

    def weight_of(self, instance: Instance) -> int | None:
        """The cpu.weight that a VE's cgroup should have now; None while it is being changed."""
        if self._awake:
            return None
        return self._weights.get(instance.name) if self._parts.promises.ledger.held else instance.in_force.cpu_weight

    def forget(self) -> None:
        """The VEs' cgroups are others now."""
        self._weights, self._protected = {}, -1

    async def _run(self) -> None:
        try:
            while self._touched:
                await asyncio.sleep(_DELAY)
                await self._balance()
        finally:
            self._awake = False

    async def _balance(self) -> None:
        limits, ledger = self._parts.limits, self._parts.promises.ledger
        touched, self._touched = self._touched, set()
        for ve in touched:
            self._weights.pop(ve, None)
        try:
            if "cpu" in limits.controllers:
                await self._write_weights()
            promised = ledger.promised("memory")
            if "memory" in limits.controllers and promised != self._protected:
                await asyncio.to_thread(limits.protect, promised)
                self._protected = promised
        except OSError as error:
            log.error("guarantees are not in force: %s: %s", error.filename, error.strerror)

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
