# SPDX-License-Identifier: GPL-2.0-or-later
"""Start, stop, and what an instance that does nothing costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vemgr.compare.driver import Instance
from vemgr.compare.schema import Figure
from vemgr.compare.workloads.workload import LONG, SHORT, Stage

_IDLE = 3
_NO_INSTANCE = "the host is not an instance of anything"
GIB = 1 << 30


@dataclass(frozen=True)
class Start:
    """A cold start, nothing is pooled; and a stop."""

    name: str = "start"
    title: str = "start and stop"
    group: str = "start and stop"
    figures: Sequence[Figure] = (
        Figure(name="start.first", title="start to first instruction", unit="ms", better="lower"),
        Figure(name="start.up", title="start until it can run a command", unit="ms", better="lower"),
        Figure(name="start.stop", title="stop until it is gone", unit="ms", better="lower"),
    )
    needs: Sequence[str] = ()
    rounds: int = SHORT
    quick: bool = True
    crowded: bool = True

    def missing(self, stage: Stage) -> str:
        return _NO_INSTANCE if stage.on_host else ""

    def measure(self, stage: Stage) -> Mapping[str, float]:
        instance = stage.bare()
        first, up = instance.first_instruction, instance.up
        found = {"start.up": up * 1e3, "start.stop": instance.stop() * 1e3}
        return found if first is None else {"start.first": first * 1e3, **found}


@dataclass(frozen=True)
class Density:
    """Of three instances that do nothing: what the host pays for one, and how many a GiB holds at that rate."""

    name: str = "density"
    title: str = "density"
    group: str = "density"
    figures: Sequence[Figure] = (
        Figure(name="density.memory", title="memory of an idle instance", unit="MiB", better="lower"),
        Figure(name="density.per-gib", title="idle instances in a GiB", unit="", better="higher"),
        Figure(name="density.disk", title="disk of one more instance", unit="MiB", better="lower"),
    )
    needs: Sequence[str] = ()
    rounds: int = LONG
    quick: bool = True
    crowded: bool = True

    def missing(self, stage: Stage) -> str:
        return _NO_INSTANCE if stage.on_host else ""

    def measure(self, stage: Stage) -> Mapping[str, float]:
        instances: list[Instance] = []
        try:
            while len(instances) < _IDLE:
                instances.append(stage.bare())
            amounts = [instance.memory() for instance in instances]
            disk = stage.driver.disk_bytes()
        finally:
            for instance in instances:
                instance.stop()
        known = [amount for amount in amounts if amount]
        found = {}
        if len(known) == _IDLE:
            each = sum(known) / _IDLE
            found = {"density.memory": each / (1 << 20), "density.per-gib": GIB / each}
        return found if disk is None else {**found, "density.disk": disk / (1 << 20)}


WORKS = (Start(), Density())
