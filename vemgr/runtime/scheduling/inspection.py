# SPDX-License-Identifier: GPL-2.0-or-later
"""Notices what others have written to VEs' cgroups, tells it, and puts it right.

systemd writes its own values again at each daemon-reload, and an administrator may have tried something. A VE itself
cannot: it does not own these files.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from mmap import PAGESIZE

from vemgr.core.config import Settings
from vemgr.core.errors import VemgrError
from vemgr.core.events import Kind
from vemgr.core.resources import expand_cpu_mask
from vemgr.runtime.instances import Instance, Parts
from vemgr.runtime.scheduling.readings import text_of
from vemgr.scheduler.explain import own_knobs

_LEAST, _PASS = 64, 6  # VEs at each tick: so many, or so many ticks until all have been looked at

#: Which setting brings a file back.
_ATTRIBUTES = {"cpu.max": "cpus", "cpu.max.burst": "cpus", "cpuset.cpus": "cpu_mask", "memory.min": "memory_guarantee",
               "memory.low": "memory_guarantee", "memory.max": "memory", "memory.swap.max": "swap", "pids.max": "pids"}


class Inspection:
    """`weight_of`: the cpu.weight that a VE has been given, None while that is being changed."""

    def __init__(self, parts: Parts, weight_of: Callable[[Instance], int | None]) -> None:
        self._parts = parts
        self._weight_of = weight_of
        self._next = 0

    def due(self, running: list[Instance]) -> list[Instance]:
        """Whose turn it is; all, where there are few."""
        count = max(_LEAST, -(-len(running) // _PASS))
        if len(running) <= count:
            return running
        first = self._next % len(running)
        self._next = first + count
        return (running + running)[first:first + count]

    def differing(self, instance: Instance) -> dict[str, tuple[str, str]]:
        """By file what it holds and should hold. Of a VE that a verb is at work on nothing can be said."""
        if instance.lock.locked() or not instance.running:
            return {}
        directory = f"{self._parts.tree.base}/{instance.name}"
        found = {}
        for file, wanted in self._wanted(instance).items():
            value = text_of(f"{directory}/{file}")
            if value is not None and not _same(file, value.strip(), wanted):
                found[file] = (value.strip(), wanted)
        return found

    def _wanted(self, instance: Instance) -> dict[str, str]:
        settings = instance.in_force
        wanted = {knob.file: knob.wanted for knob in own_knobs(settings, self._parts.promises.config, PAGESIZE)}
        if settings.cpu_mask is not None:
            wanted["cpuset.cpus"] = settings.cpu_mask
        weight = self._weight_of(instance)
        if weight is not None:
            wanted["cpu.weight"] = str(weight)
        return wanted

    async def put_right(self, instance: Instance) -> None:
        """Look again, since others may have been at work, and with the VE held write what is not as it should be."""
        name, pid = instance.name, instance.pid
        found = self.differing(instance)
        if not found:
            return
        async with instance.lock:
            if not instance.running or instance.pid != pid:
                return
            try:
                await self._write(name, instance.in_force, found)
            except (OSError, VemgrError) as error:
                outcome = f"not put right: {error}"
            else:
                outcome = "put right"
        if instance.running and instance.pid == pid:
            for file, (value, wanted) in found.items():
                self._parts.journal.add(Kind.RESTORED, name, f"{file} was {value}, not {wanted}: {outcome}")

    async def _write(self, ve: str, settings: Settings, found: dict[str, tuple[str, str]]) -> None:
        limits = self._parts.limits
        if "memory.high" in found:
            limits.settle(ve)
        if "cpu.weight" in found:
            await asyncio.to_thread(limits.write_cpu_weights, {ve: int(found["cpu.weight"][1])})
        await limits.restore(ve, settings, {_ATTRIBUTES[file] for file in found if file in _ATTRIBUTES})

    async def protect_again(self) -> None:
        """The cgroups above the VEs: what protects VEs must not be less there."""
        weakened = self._parts.tree.weakened()
        if weakened:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(self._parts.limits.protect, self._parts.promises.ledger.promised("memory"))
            self._parts.journal.add(Kind.RESTORED, "", f"{weakened} was less than what VEs were promised: put right")


def _same(file: str, value: str, wanted: str) -> bool:
    if file == "cpuset.cpus":
        return bool(value) and expand_cpu_mask(value) == expand_cpu_mask(wanted)
    return value == wanted
