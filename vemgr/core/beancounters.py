# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VE holds of each resource, as OpenVZ's /proc/user_beancounters has it: held, maxheld, barrier, limit, failcnt.

None is "not available": the host has no controller for it, or there is no such thing. It is never told as 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from vemgr.core.config import Settings
from vemgr.core.parsing import AUTOMATIC

#: Resources of which the most that was held is worth knowing; for the others `held` only grows.
LEVELS = ("memory", "swap", "pids", "disk", "inodes")


@dataclass(frozen=True)
class _Source:
    """Where a resource's figures are found. `controller`: what enforces the limit, "" where none is needed."""

    resource: str
    unit: str
    controller: str
    held: str
    peak: str = ""
    failures: tuple[str, ...] = ()


# The files are those of cgroup-v2.rst; "link" and "disk" are ours. `failures`: how often the limit stood in the way.
_SOURCES = (
    _Source("cpus", "us", "cpu", "cpu.stat.usage_usec", failures=("cpu.stat.nr_throttled",)),
    _Source("memory", "bytes", "memory", "memory.current", "memory.peak", ("memory.events.max",)),
    _Source("oom-kills", "processes", "", "memory.events.oom_kill"),
    _Source("swap", "bytes", "memory", "memory.swap.current", "memory.swap.peak",
            ("memory.swap.events.max", "memory.swap.events.fail")),
    _Source("pids", "processes", "pids", "pids.current", "pids.peak", ("pids.events.max",)),
    _Source("io-read", "bytes", "io", "io.stat.rbytes"),
    _Source("io-write", "bytes", "io", "io.stat.wbytes"),
    _Source("iops-read", "operations", "io", "io.stat.rios"),
    _Source("iops-write", "operations", "io", "io.stat.wios"),
    _Source("net-in", "bytes", "", "link.in", failures=("link.in_dropped",)),
    _Source("net-out", "bytes", "", "link.out", failures=("link.out_dropped",)),
    _Source("disk", "bytes", "", "disk.used"),
    _Source("inodes", "files", "", "disk.inodes_used"),
)


class _Bounds(NamedTuple):
    limit: int | None = None
    unlimited: bool = False
    guarantee: int | None = None


def beancounters(readings: Mapping[str, int], settings: Settings, controllers: frozenset[str],
                 promised: tuple[int, int], peaks: Mapping[str, int]) -> list[dict[str, Any]]:
    """One row for each resource. `settings`: those in force. `promised`: thousandths of a CPU, and bytes. `peaks`: the
    most that was held of a resource, where the kernel keeps no such figure.

    What is used up over time has its limit and guarantee per second.
    """
    rows = []
    for source in _SOURCES:
        bounds = _bounds(source, readings, settings, controllers, promised)
        held, most = readings.get(source.held), readings.get(source.peak)
        if most is None and held is not None and source.resource in LEVELS:
            most = max(held, peaks.get(source.resource, 0))
        failures = [readings[key] for key in source.failures if key in readings]
        rows.append({"resource": source.resource, "unit": source.unit, "held": held, "maxHeld": most,
                     "limit": bounds.limit, "unlimited": bounds.unlimited, "guarantee": bounds.guarantee,
                     "failures": sum(failures) if failures else None})
    return rows


def needs_watching(readings: Mapping[str, int]) -> dict[str, int]:
    """What is held of resources whose maximum the kernel does not keep."""
    return {source.resource: readings[source.held] for source in _SOURCES
            if source.resource in LEVELS and source.held in readings and source.peak not in readings}


def full_of(readings: Mapping[str, int]) -> list[str]:
    """Of what a disk is full: no more than a hundredth can be had. What a file system keeps back is not to be had."""
    pairs = (("bytes", "disk.available", "disk.size"), ("inodes", "disk.inodes_available", "disk.inodes"))
    return [what for what, left, most in pairs if readings.get(most) and readings[left] * 100 <= readings[most]]


def _bounds(source: _Source, readings: Mapping[str, int], settings: Settings, controllers: frozenset[str],
            promised: tuple[int, int]) -> _Bounds:
    resource = source.resource
    if resource in ("disk", "inodes"):
        return _Bounds(readings.get("disk.size" if resource == "disk" else "disk.inodes"))
    if not source.controller or source.controller not in controllers:
        return _Bounds()
    if resource == "cpus":
        return _Bounds(None if settings.cpus is None else settings.cpus * 1000, settings.cpus is None,
                       promised[0] * 1000)
    limit = getattr(settings, resource.replace("-", "_"))
    if resource == "swap":
        if source.held not in readings:  # a kernel that does not account it
            return _Bounds()
        if limit == AUTOMATIC:
            limit = None if settings.memory is None else 0
    return _Bounds(limit, limit is None, promised[1] if resource == "memory" else None)
