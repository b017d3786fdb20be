# SPDX-License-Identifier: GPL-2.0-or-later
"""The figures of all VEs at once. The files of the kernel are read in one thread, the disks in others, with a deadline:
no VE holds up the answer, and the answer holds up nobody."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vemgr.core.beancounters import beancounters, full_of, needs_watching
from vemgr.core.events import Kind
from vemgr.kernel.cgroup_figures import CgroupFigures
from vemgr.kernel.cgroups import CgroupTree
from vemgr.kernel.link_counters import LinkCounters, link_counters
from vemgr.kernel.qdiscs import Drops, drops
from vemgr.runtime.instances import Instance, Instances, Parts
from vemgr.runtime.observing.disk_figures import DiskFigures
from vemgr.runtime.observing.peaks import Peaks
from vemgr.scheduler.admission import promise_of

log = logging.getLogger(__name__)

_EVERY = 10.0  # seconds between two looks at what the kernel keeps no maximum of


class Statistics:
    def __init__(self, parts: Parts, instances: Instances) -> None:
        self._parts = parts
        self._instances = instances
        self._disks = DiskFigures()
        self._peaks = Peaks(parts.config.run_dir)
        self._full: set[str] = set()  # VEs whose disk is
        self._tree: CgroupTree | None = None
        self._figures: CgroupFigures | None = None

    async def collect(self, names: Iterable[str] = ()) -> list[dict[str, Any]]:
        """Of the VEs named, or of all, by name; one that does not run has no counters. Raises `NoSuchVE`."""
        wanted = [self._instances.get(name) for name in dict.fromkeys(names)] or list(self._instances)
        readings = await self._read([instance for instance in wanted if instance.running])
        return [self._described(instance, readings.get(instance.name)) for instance in wanted]

    async def watch(self) -> None:
        """Look now and then, for ever."""
        while True:
            await asyncio.sleep(_EVERY)
            running = [instance for instance in self._instances if instance.running]
            self._peaks.keep_only({instance.name: instance.pid for instance in running})
            await self._look(running)
            self._peaks.save()

    async def _look(self, running: list[Instance]) -> None:
        """At no more than what the kernel keeps no maximum of: there may be many VEs, and it goes on for ever."""
        pids = {instance.name: instance.pid for instance in running}
        places = {name: self._parts.tree.place(name) for name in pids}
        levels, disks = await asyncio.gather(
            asyncio.to_thread(_tolerant, self._cgroups().without_peak, places), self._disks.read(_sized(running)))
        for instance in running:
            name = instance.name
            if instance.pid == pids[name]:
                held = needs_watching({**levels.get(name, {}), **disks.get(name, {})})
                self._peaks.note(name, pids[name], held)
        self._tell_full(disks)

    def _tell_full(self, readings: dict[str, dict[str, int]]) -> None:
        """One event when a disk has become full, of bytes or of inodes."""
        full = {ve: what for ve, found in readings.items() for what in full_of(found)}
        for ve, what in full.items():
            if ve not in self._full:
                self._parts.journal.add(Kind.DISK_FULL, ve, what)
        self._full = set(full)

    def save(self) -> None:
        self._peaks.save()

    async def _read(self, instances: list[Instance]) -> dict[str, dict[str, int]]:
        if not instances:
            return {}
        pids = {instance.name: instance.pid for instance in instances}
        places = {name: self._parts.tree.place(name) for name in pids}
        queued = any(instance.in_force.network_rate or instance.in_force.shares_uplink for instance in instances)
        found, disks = await asyncio.gather(asyncio.to_thread(_figures, self._cgroups(), places, queued),
                                            self._disks.read(_sized(instances)))
        readings, links, dropped = found
        for instance in instances:
            name = instance.name
            if instance.pid != pids[name] or name not in readings:  # it has ended meanwhile
                readings.pop(name, None)
                continue
            readings[name] |= {**disks.get(name, {}), **self._link(name, links, dropped)}
            self._peaks.note(name, pids[name], needs_watching(readings[name]))
        return readings

    def _cgroups(self) -> CgroupFigures:
        tree = self._parts.tree
        if self._figures is None or self._tree is not tree:  # a new keeper has brought another
            self._tree, self._figures = tree, CgroupFigures(tree.base, tree.controllers)
        return self._figures

    def _link(self, ve: str, links: dict[str, LinkCounters], dropped: Drops) -> dict[str, int]:
        networking = self._parts.networking
        attachment = networking.attachments.get(ve)
        if attachment is None:
            return {}
        found = through_links(attachment.ports, links)
        if found and dropped:
            incoming, outgoing = networking.rates.dropped(attachment.ports, dropped)
            found["link.in_dropped"] += incoming
            found["link.out_dropped"] += outgoing + networking.uplink.dropped(ve, dropped)
        return found

    def _described(self, instance: Instance, readings: dict[str, int] | None) -> dict[str, Any]:
        counters: list[dict[str, Any]] = []
        if readings is not None:
            settings = instance.in_force
            promise = promise_of(settings, self._parts.config.scheduler.policy)
            peaks = self._peaks.note(instance.name, instance.pid, {})
            counters = beancounters(readings, settings, self._parts.tree.controllers,
                                    (promise.cpus, promise.memory), peaks)
        return {"name": instance.name, "state": str(instance.state), "counters": counters}


def through_links(names: Iterable[str], links: Mapping[str, LinkCounters]) -> dict[str, int]:
    """What has gone through all links of a VE, as the VE sees it: what the host sends it receives."""
    ports = [links[name] for name in names if name in links]
    if not ports:
        return {}
    return {"link.in": sum(port.sent for port in ports), "link.out": sum(port.received for port in ports),
            "link.in_dropped": sum(port.sent_dropped for port in ports),
            "link.out_dropped": sum(port.received_dropped for port in ports)}


def _figures(cgroups: CgroupFigures, places: dict[str, str],
             queued: bool) -> tuple[dict[str, dict[str, int]], dict[str, LinkCounters], Drops]:
    """What cannot be read is not available; of what else it speaks is said in the log. `queued`: whether any VE's
    packets wait in a queue of ours."""
    links: dict[str, LinkCounters] = {}
    dropped: Drops = {}
    with contextlib.suppress(OSError):
        links = link_counters()
        dropped = drops() if queued else {}
    return _tolerant(cgroups.read, places), links, dropped


def _tolerant(read: Callable[[Mapping[str, str]], dict[str, dict[str, int]]],
              places: Mapping[str, str]) -> dict[str, dict[str, int]]:
    try:
        return read(places)
    except OSError as error:
        if error.errno != errno.ENOENT:  # the keeper's part of the tree has gone with it
            log.warning("the figures of VEs cannot be read: %s: %s", error.filename, error.strerror)
        return {}


def _sized(instances: Iterable[Instance]) -> dict[str, int]:
    """Those with a disk of their own, with the pids of their inits."""
    return {instance.name: instance.pid for instance in instances if instance.definition.settings.disk is not None}
