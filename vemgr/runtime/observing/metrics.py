# SPDX-License-Identifier: GPL-2.0-or-later
"""The VEs' figures by the conventions of Prometheus (prometheus.io/docs/practices/naming): base units, and `_total` for
what only grows. What is not available is left out.

`prometheus_client` is imported by who asks for this module: only where [metrics] says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST


class _Family(NamedTuple):
    """A column of the beancounters of one resource, times `scale`."""

    resource: str
    column: str
    name: str
    help: str
    counts: bool = False
    scale: float = 1


_MICRO = 1e-6
_FAMILIES = (
    _Family("cpus", "held", "cpu_seconds", "CPU time used", True, _MICRO),
    _Family("cpus", "limit", "cpu_limit_cpus", "CPUs that may be used", scale=_MICRO),
    _Family("cpus", "guarantee", "cpu_guarantee_cpus", "CPUs that can be counted on", scale=_MICRO),
    _Family("cpus", "failures", "cpu_throttled_periods", "Periods in which the CPU limit was hit", True),
    _Family("memory", "held", "memory_bytes", "Memory in use"),
    _Family("memory", "maxHeld", "memory_peak_bytes", "Most memory in use since the start"),
    _Family("memory", "limit", "memory_limit_bytes", "Memory that may be used"),
    _Family("memory", "guarantee", "memory_guarantee_bytes", "Memory that can be counted on"),
    _Family("memory", "failures", "memory_limit_hits", "How often the memory limit was hit", True),
    _Family("oom-kills", "held", "oom_kills", "Processes killed for want of memory", True),
    _Family("swap", "held", "swap_bytes", "Swap in use"),
    _Family("swap", "limit", "swap_limit_bytes", "Swap that may be used"),
    _Family("pids", "held", "processes", "Processes and threads"),
    _Family("pids", "maxHeld", "processes_peak", "Most processes and threads since the start"),
    _Family("pids", "limit", "processes_limit", "Processes and threads that there may be"),
    _Family("pids", "failures", "processes_limit_hits", "How often a process could not be made", True),
    _Family("disk", "held", "disk_used_bytes", "Disk space in use"),
    _Family("disk", "limit", "disk_size_bytes", "Disk space that there is"),
    _Family("inodes", "held", "disk_inodes_used", "Inodes in use"),
    _Family("inodes", "limit", "disk_inodes", "Inodes that there are"),
    _Family("io-read", "held", "io_read_bytes", "Read from disks", True),
    _Family("io-write", "held", "io_written_bytes", "Written to disks", True),
    _Family("iops-read", "held", "io_reads", "Read operations of disks", True),
    _Family("iops-write", "held", "io_writes", "Write operations of disks", True),
    _Family("net-in", "held", "network_receive_bytes", "Received from the network", True),
    _Family("net-in", "failures", "network_receive_drops", "Packets to the VE that were dropped", True),
    _Family("net-out", "held", "network_transmit_bytes", "Sent to the network", True),
    _Family("net-out", "failures", "network_transmit_drops", "Packets of the VE that were dropped", True),
)


class _Figures(Collector):
    def __init__(self, ves: Sequence[Mapping[str, Any]], version: str) -> None:
        self._ves = ves
        self._version = version

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("vemgr", "The daemon", {"version": self._version})
        state = GaugeMetricFamily("vemgr_ve_up", "Whether the VE runs, suspended or not", labels=["ve"])
        for ve in self._ves:
            state.add_metric([ve["name"]], int(ve["state"] != "stopped"))
        yield state
        rows = [(ve["name"], {row["resource"]: row for row in ve["counters"]}) for ve in self._ves if ve["counters"]]
        for family in _FAMILIES:
            metric: Metric
            kind = CounterMetricFamily if family.counts else GaugeMetricFamily
            metric = kind(f"vemgr_ve_{family.name}", family.help, labels=["ve"])
            for name, row in rows:
                amount = row[family.resource][family.column]
                if amount is not None:
                    metric.add_metric([name], amount * family.scale)
            yield metric


def exposition(ves: Sequence[Mapping[str, Any]], version: str) -> bytes:
    """The text that Prometheus scrapes."""
    return generate_latest(_Figures(ves, version))
