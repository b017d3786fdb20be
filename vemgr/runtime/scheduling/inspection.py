# SPDX-License-Identifier: GPL-2.0-or-later
"""Notices what others have written to VEs' cgroups, tells it, and puts it right.

systemd writes its own values again at each daemon-reload, and an administrator may have tried something. A VE itself
cannot: it does not own these files.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from mmap import PAGESIZE

from vemgr.core.config import Settings
from vemgr.core.errors import VemgrError
from vemgr.core.events import Kind
from vemgr.core.groups import Group, group_key
from vemgr.core.parsing import IDLE
from vemgr.core.resources import chosen_cpus
from vemgr.runtime.instances import Instance, Parts
from vemgr.runtime.limits import Disks
from vemgr.runtime.scheduling.balancer import Balancer
from vemgr.runtime.scheduling.readings import text_of
from vemgr.runtime.scheduling.writes import Writes
from vemgr.scheduler.explain import agrees, io_knobs, own_group_knobs, own_knobs

_MOST = 64  # VEs at each tick, whoever writes to how many of them
_TURN = 4  # of them those that nobody is known to have written to
_UNWATCHED = 6  # ticks until all have been looked at, where the kernel does not tell who was written to

#: Which setting brings a file back.
_ATTRIBUTES = {"cpu.max": "cpus", "cpu.max.burst": "cpus", "cpu.idle": "cpu_weight", "cpuset.cpus": "cpu_mask",
               "memory.min": "memory_guarantee", "memory.low": "memory_guarantee", "memory.max": "memory",
               "memory.swap.max": "swap", "pids.max": "pids", "io.max": "io_write", "io.weight": "io_weight",
               "io.bfq.weight": "io_weight"}


class Inspection:
    """`balancer`: knows the values that follow from all guarantees together."""

    def __init__(self, parts: Parts, balancer: Balancer) -> None:
        self._parts = parts
        self._balancer = balancer
        self._next = 0
        self._writes = Writes(parts)
        self._written: dict[str, None] = {}  # and not looked at since
        self._disks: Disks | None = None

    def due(self, running: list[Instance]) -> list[Instance]:
        """Those that somebody has written to, and whose turn it is; after a change of the disks, all."""
        before, self._disks = self._disks, self._parts.limits.disks()
        by_name = {instance.name: instance for instance in running}
        if before not in (None, self._disks):  # as when a disk's scheduler is switched, and with it the weights' file
            self._written |= dict.fromkeys(by_name)
        self._written |= dict.fromkeys(self._writes.since({name: each.pid for name, each in by_name.items()}))
        # Of one that a verb is at work on nothing can be said yet.
        chosen = [name for name in self._written if name not in by_name or not by_name[name].lock.locked()]
        del chosen[_MOST - _TURN:]
        for name in chosen:
            del self._written[name]
        count = _TURN if self._writes.complete else max(_MOST, -(-len(running) // _UNWATCHED))
        first = self._next % len(running) if running else 0
        self._next = first + count
        turn = (running + running)[first:first + min(count, len(running))]
        return [*{instance.name: instance for instance in (*(by_name[name] for name in chosen if name in by_name),
                                                           *turn)}.values()]

    def begin(self) -> None:
        """With all VEs, which may be in other cgroups from now on."""
        self._writes.begin()

    def close(self) -> None:
        self._writes.close()

    def differing(self, instance: Instance) -> dict[str, tuple[str, str]]:
        """By file what it holds and should hold. What cannot be said now, since others are at work, is looked at
        again: who wrote it writes no second time."""
        if not instance.running:
            return {}
        if instance.lock.locked() or self._balancer.at_work:
            self._written[instance.name] = None
        if instance.lock.locked():
            return {}
        return self._differing(instance.name, self._wanted(instance))

    def _differing(self, name: str, all_wanted: Mapping[str, str]) -> dict[str, tuple[str, str]]:
        directory = self._parts.tree.path(name)
        found = {}
        for file, wanted in all_wanted.items():
            value = text_of(f"{directory}/{file}")
            if value is not None and not agrees(file, value.strip(), wanted):
                found[file] = (value.strip(), wanted)
        return found

    def _wanted(self, instance: Instance) -> dict[str, str]:
        settings = instance.in_force
        if self._disks is None:
            self._disks = self._parts.limits.disks()
        knobs = [*own_knobs(settings, self._parts.promises.config, PAGESIZE),
                 *io_knobs(settings, self._disks.devices, self._disks.weight_file)]
        wanted = {knob.file: knob.wanted for knob in knobs}
        mask = self._parts.limits.placements.resolved(instance.name, settings).cpu_mask
        if mask is not None and not chosen_cpus(mask):
            wanted["cpuset.cpus"] = mask
        weight = self._balancer.weight_of(instance.name, settings.cpu_weight)
        if weight is not None and settings.cpu_weight != IDLE:
            wanted["cpu.weight"] = str(weight)
        return wanted

    async def groups(self) -> None:
        """Look at the cgroups of groups, and put right what is not as it should be. There are few."""
        promises = self._parts.promises
        if promises.changing.locked():
            return
        for key in self._parts.tree.groups():
            group, protected = promises.groups.get(key[1:]), self._balancer.protection_of(key)
            if group is None or (protected is None and promises.ledger.held):
                continue
            knobs = own_group_knobs(group.settings, protected or 0, promises.config, PAGESIZE)
            wanted = {knob.file: knob.wanted for knob in knobs}
            weight = self._balancer.weight_of(key, group.settings.cpu_weight)
            if weight is not None:
                wanted["cpu.weight"] = str(weight)
            if self._differing(key, wanted):
                await self._put_group_right(group, wanted)

    async def _put_group_right(self, group: Group, wanted: Mapping[str, str]) -> None:
        key, limits = group_key(group.name), self._parts.limits
        async with self._parts.promises.changing:
            found = self._differing(key, wanted)
            if not found or self._parts.promises.groups.get(group.name) is not group:
                return
            try:
                protecting = {file for file in found if file in ("memory.min", "memory.low")}
                await self._write(key, group.settings, {file: found[file] for file in found.keys() - protecting})
                if protecting:
                    await asyncio.to_thread(limits.protect, self._balancer.protection_of(key) or 0, key)
            except (OSError, VemgrError) as error:
                outcome = f"not put right: {error}"
            else:
                outcome = "put right"
        for file, (value, should) in found.items():
            self._parts.journal.add(Kind.RESTORED, "", f"group {group.name}: {file} was {value}, not {should}: "
                                                       f"{outcome}")

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
                self._parts.journal.add(Kind.RESTORED, name,
                                        f"{file} was {_shown(value)}, not {_shown(wanted)}: {outcome}")

    async def _write(self, ve: str, settings: Settings, found: dict[str, tuple[str, str]]) -> None:
        limits = self._parts.limits
        if "memory.high" in found:
            limits.settle(ve)
        await limits.restore(ve, settings, {_ATTRIBUTES[file] for file in found if file in _ATTRIBUTES})
        if "cpu.weight" in found:  # after cpu.idle, which has taken its place
            await asyncio.to_thread(limits.write_cpu_weights, {ve: int(found["cpu.weight"][1])})
        elif "cpu.idle" in found and self._parts.promises.ledger.held:
            self._balancer.wake(ve)  # it could not be given its weight before

    async def protect_again(self) -> None:
        """The cgroups above the VEs: what protects VEs must not be less there."""
        weakened = self._parts.tree.weakened()
        if weakened:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(self._parts.limits.protect, self._parts.promises.ledger.promised("memory"))
            self._parts.journal.add(Kind.RESTORED, "", f"{weakened} was less than what VEs were promised: put right")


def _shown(text: str) -> str:
    """On one line: io.max has one for each disk."""
    return text.replace("\n", ", ") or "empty"
