# SPDX-License-Identifier: GPL-2.0-or-later
"""The control loop: woken by pressure and by a slow tick, it reads, decides (`scheduler.control`) and acts.

Without pressure and with memory to spare a tick reads five files, and those of the VEs that somebody has written
to. What it reads it reads in one go, with nothing that waits in between, and what it does to a VE it does only
if that one still is the one that was read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from vemgr.core.config import MIB
from vemgr.core.events import Kind
from vemgr.core.groups import group_key, is_group_key, line_of, shown
from vemgr.core.resources import format_cpu_mask
from vemgr.runtime.instances import Instance, Instances, Parts
from vemgr.runtime.scheduling import readings
from vemgr.runtime.scheduling.balancer import Balancer
from vemgr.runtime.scheduling.inspection import Inspection
from vemgr.runtime.triggers import Triggers
from vemgr.scheduler.admission import promise_of
from vemgr.scheduler.control import GroupMemory, Reclaimer, Shortfalls, Snapshot, Standing, Take, in_groups
from vemgr.scheduler.shares import memory_shares

log = logging.getLogger(__name__)

_TICK = 5.0  # seconds
_REST = 2.0  # between two ticks, however much there is of pressure: the window of the triggers
_WAITS = 0.05  # of the time some VE waits for a CPU: then it is worth to look whose guarantee is short
_TOLD = 60.0  # seconds: what is reclaimed from a VE within them is one event


class ControlLoop:
    def __init__(self, parts: Parts, instances: Instances, balancer: Balancer) -> None:
        self._parts = parts
        self._instances = instances
        self._inspection = Inspection(parts, balancer)
        self._reclaimer = Reclaimer()
        self._shortfalls = Shortfalls()
        self._stalls: dict[str, tuple[float, int]] = {}
        self._reclaimed: dict[str, tuple[float, int]] = {}  # by VE: since when, and how much that nobody was told of
        self._woken = asyncio.Event()
        self._triggers = Triggers(lambda _: self._woken.set())
        self._ending = asyncio.Event()

    def open(self, in_background: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        """Once the daemon is up."""
        self.use_tree()
        in_background(self._run())

    def use_tree(self) -> None:
        """Listen to the cgroup that the VEs' are in, which may be another with a new keeper."""
        self._inspection.begin()
        self._triggers.open(self._parts.tree.base, ("memory",))  # for the others the slow tick is soon enough

    def close(self) -> None:
        self._triggers.close()
        self._inspection.close()
        self._ending.set()
        self._woken.set()

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK):
                    await self._woken.wait()
            if self._ending.is_set():
                return
            self._woken.clear()
            try:
                await self.tick()
            except Exception:
                log.exception("a tick of the scheduler failed")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REST):
                    await self._ending.wait()

    async def tick(self) -> None:
        """One round. Raises nothing for what VEs do; `OSError` when the host's own files cannot be read."""
        running = {instance.name: instance for instance in self._instances if instance.running}
        pids = {name: instance.pid for name, instance in running.items()}
        now = time.monotonic()
        takes = self._look_at_memory(running, now)
        self._look_at_cpus(running, now)
        off = [instance for instance in self._inspection.due([*running.values()])
               if self._inspection.differing(instance)]
        for take in takes:  # from here on others may be at work
            instance = running[take.ve]
            if instance.running and instance.pid == pids[take.ve]:
                await self._reclaim(take)
        for instance in off:
            await self._inspection.put_right(instance)
        self._move(running)
        await self._inspection.groups()
        await self._inspection.protect_again()
        self._tell_reclaimed(now)

    def _stalled(self, resource: str, now: float) -> float:
        """The part of the time since the last tick in which some VE waited."""
        total = readings.stall(self._parts.tree.base, resource)
        if total is None:
            return 0.0
        before = self._stalls.get(resource, (now, total))
        self._stalls[resource] = (now, total)
        return (total - before[1]) / 1e6 / (now - before[0]) if now > before[0] else 0.0

    def _look_at_memory(self, running: dict[str, Instance], now: float) -> list[Take]:
        left = readings.available()
        if "memory" not in self._parts.limits.controllers or left is None:
            return []
        reserve = self._parts.promises.ledger.capacity["memory"].reserve
        if not self._reclaimer.is_due(left, reserve, self._stalled("memory", now)):
            return []
        standings = self._standings(running)
        found = readings.memories({ve: self._parts.tree.path(ve) for ve in running},
                                  {ve: standing.promised for ve, standing in standings.items()})
        standings = in_groups(standings, {ve: reading.current for ve, reading in found.items()},
                              self._terms_of_groups(running))
        return self._reclaimer.decide(Snapshot(now, left, found), standings)

    def _terms_of_groups(self, running: dict[str, Instance]) -> list[GroupMemory]:
        promises = self._parts.promises
        members: dict[str, list[str]] = {}
        for ve, instance in running.items():
            for group in line_of(promises.groups, instance.in_force.group):
                members.setdefault(group.name, []).append(ve)
        return [GroupMemory(tuple(ves), promises.ledger.claimed(group_key(name), "memory"),
                            promises.groups[name].settings.memory if name in promises.groups else None)
                for name, ves in members.items()]

    def _standings(self, running: dict[str, Instance]) -> dict[str, Standing]:
        promises = self._parts.promises
        capacity, policy = promises.ledger.capacity["memory"], promises.config.policy
        settings = {ve: instance.in_force for ve, instance in running.items()}
        entitled = memory_shares(capacity.total - capacity.reserve, settings, policy, promises.groups)
        return {ve: Standing(promise_of(each, policy).memory, entitled[ve], each.memory)
                for ve, each in settings.items()}

    def _look_at_cpus(self, running: dict[str, Instance], now: float) -> None:
        if "cpu" not in self._parts.limits.controllers or self._stalled("cpu", now) < _WAITS:
            return
        tree, held = self._parts.tree, self._parts.promises.ledger.held
        promised = {name: held[name].cpus for name in (*running, *tree.groups()) if name in held and held[name].cpus}
        found = {ve: reading for ve in promised if (reading := readings.cpu_of(tree.path(ve))) is not None}
        for ve, news in self._shortfalls.look(now, found, promised).items():
            group = is_group_key(ve)
            self._parts.journal.add(Kind.UNMET, "" if group else ve, f"{shown(ve)}: {news}" if group else news)

    def _move(self, running: dict[str, Instance]) -> None:
        """At most one VE at a tick to other CPUs: what was pinned has come and gone since they were chosen."""
        limits = self._parts.limits
        found = limits.placements.better(limits.usable_cpus()) if limits.placements.any else None
        if found is None:
            return
        ve, to = found
        instance = running.get(ve)
        if instance is None or instance.lock.locked() or not instance.running:
            return
        try:
            limits.move(ve, to)
        except OSError as error:
            log.warning("VE %s cannot be moved to other CPUs: %s", ve, error.strerror)
            return
        self._parts.journal.add(Kind.MOVED, ve, f"to CPUs {format_cpu_mask(to.cpus)}: {to.reason}")

    async def _reclaim(self, take: Take) -> None:
        try:
            got = await asyncio.to_thread(self._parts.limits.reclaim, take.ve, take.amount)
        except OSError as error:
            log.debug("VE %s: memory.reclaim: %s", take.ve, error)  # it has just ended, or the kernel has no such file
            return
        since, before = self._reclaimed.get(take.ve, (0.0, 0))
        if not since:
            log.info("VE %s: reclaiming memory: %s", take.ve, take.reason)
            self._parts.journal.add(Kind.RECLAIMED, take.ve, f"{got // MIB}M of {take.amount // MIB}M: {take.reason}")
            self._reclaimed[take.ve] = (time.monotonic(), 0)
        else:
            self._reclaimed[take.ve] = (since, before + got)

    def _tell_reclaimed(self, now: float) -> None:
        for ve, (since, amount) in list(self._reclaimed.items()):
            if now - since >= _TOLD:
                del self._reclaimed[ve]
                if amount:
                    self._parts.journal.add(Kind.RECLAIMED, ve, f"{amount // MIB}M more in {now - since:.0f} s")
