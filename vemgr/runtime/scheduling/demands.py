# SPDX-License-Identifier: GPL-2.0-or-later
"""What VEs use and want now, as counters: what a recording is made of (`scheduler.recording`)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

from vemgr.core.config import show_settings
from vemgr.kernel.cgroup_figures import io_sums
from vemgr.kernel.link_counters import LinkCounters, link_counters
from vemgr.runtime.instances import Instances, Parts
from vemgr.runtime.observing.statistics import through_links
from vemgr.runtime.scheduling import readings

#: What the scheduler goes by; the rest of a VE's settings is nobody's business.
_SETTINGS = ("cpus", "cpu-guarantee", "cpu-weight", "memory", "memory-guarantee", "io-write", "io-weight")


class Demands:
    def __init__(self, parts: Parts, instances: Instances) -> None:
        self._parts = parts
        self._instances = instances

    async def look(self) -> list[dict[str, Any]]:
        """Of the VEs that run, by name. None is what this host does not tell."""
        running = [instance for instance in self._instances if instance.running]
        pids = {instance.name: instance.pid for instance in running}
        found, links = await asyncio.to_thread(_read, {name: self._parts.tree.path(name) for name in pids})
        ves = []
        for instance in running:
            name = instance.name
            if instance.pid == pids[name] and name in found:
                net = self._net(name, links)
                texts = show_settings(instance.in_force)
                ves.append({"name": name, "pid": instance.pid,
                            "settings": {key: texts[key] for key in _SETTINGS if key in texts}, **found[name],
                            "netIn": net.get("link.in"), "netOut": net.get("link.out")})
        return ves

    def _net(self, ve: str, links: Mapping[str, LinkCounters]) -> dict[str, int]:
        attachment = self._parts.networking.attachments.get(ve)
        return through_links(attachment.ports if attachment is not None else (), links)


def _read(directories: Mapping[str, str]) -> tuple[dict[str, dict[str, int | None]], dict[str, LinkCounters]]:
    links: dict[str, LinkCounters] = {}
    with contextlib.suppress(OSError):
        links = link_counters()
    swap, layered = readings.swap_left(), dict[str, bool]()
    return {ve: found for ve, path in directories.items() if (found := _figures(path, swap, layered))}, links


def _figures(directory: str, swap: int, layered: dict[str, bool]) -> dict[str, int | None]:
    """Nothing for a VE that has gone: cpu.stat is there without any controller."""
    used = readings.cpu_used(directory)
    if used is None:
        return {}
    held, io = readings.text_of(f"{directory}/memory.current"), readings.text_of(f"{directory}/io.stat")
    memory = None if held is None else int(held)
    sums = {} if io is None else io_sums(io, layered)
    return {"cpuUsed": used, "cpuWaited": readings.stall(directory, "cpu"), "memory": memory,
            "workingSet": None if memory is None else max(0, memory - readings.idle_of(directory, swap)[0]),
            "ioRead": sums.get("io.stat.rbytes"), "ioWrite": sums.get("io.stat.wbytes")}
