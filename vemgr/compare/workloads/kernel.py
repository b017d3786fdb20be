# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel, the CPU and the memory do for one process: measured by the probe in the shared instance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vemgr.compare.schema import Better, Figure
from vemgr.compare.workloads.workload import SHORT, Stage


@dataclass(frozen=True)
class Probed:
    """One word to the probe and one figure of what it says (`said`)."""

    name: str
    title: str
    group: str
    unit: str
    said: str
    better: Better = "lower"
    quick: bool = False
    needs: Sequence[str] = ()
    rounds: int = SHORT
    crowded: bool = False

    @property
    def figures(self) -> Sequence[Figure]:
        return [Figure(name=self.name, title=self.title, unit=self.unit, better=self.better)]

    def missing(self, stage: Stage) -> str:
        stage.shared()
        return ""

    def measure(self, stage: Stage) -> Mapping[str, float]:
        return {self.name: stage.probe(stage.shared(), self.name)[self.said]}


WORKS = (
    Probed("syscall", "system call", "kernel", "ns", "ns", quick=True),
    # Parent and child of these wait for each other's CPU.
    Probed("switch", "context switch, pipe", "kernel", "ns", "ns", quick=True, crowded=True),
    Probed("fork", "fork and exit", "kernel", "us", "us", quick=True, crowded=True),
    Probed("exec", "fork and exec", "kernel", "us", "us", quick=True, crowded=True),
    Probed("fault", "page fault", "kernel", "ns", "ns", quick=True),
    Probed("triad", "memory bandwidth, triad", "CPU and memory", "MB/s", "rate", "higher", quick=True),
    Probed("random-access", "random access to 64 MiB", "CPU and memory", "ns", "ns", quick=True),
    Probed("integer", "integers", "CPU and memory", "Mop/s", "rate", "higher", quick=True),
    Probed("float", "floating point", "CPU and memory", "MFLOP/s", "rate", "higher", quick=True),
)
