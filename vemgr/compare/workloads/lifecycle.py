# SPDX-License-Identifier: GPL-2.0-or-later
"""Start, stop, and what an instance that does nothing costs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vemgr.compare.driver import Instance, StartsWarm
from vemgr.compare.memory import available
from vemgr.compare.schema import Figure
from vemgr.compare.workloads.workload import LONG, SHORT, Stage

_FEW, _MANY = 3, 12
_SMALL = 16 << 20
_PATIENCE = 3.0  # seconds
_DOUBT = 0.25
NO_INSTANCE = "the host is not an instance of anything"
_MIB = 1 << 20


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
        return NO_INSTANCE if stage.on_host else ""

    def measure(self, stage: Stage) -> Mapping[str, float]:
        instance = stage.bare()
        first, up = instance.first_instruction, instance.up
        found = {"start.up": up * 1e3, "start.stop": instance.stop() * 1e3}
        return found if first is None else {"start.first": first * 1e3, **found}


@dataclass(frozen=True)
class Density:
    """What the host pays for an instance that does nothing, and how many a GiB holds at that rate.

    What belongs to an instance's processes leaves out what the kernel keeps for it: namespaces, mounts, cgroups. So the
    memory that the host has less is looked at too, over many instances where they are small; the larger of the two is
    the rate. Where the host does not get back about as much when they stop, others have allocated or freed meanwhile,
    and there is no such figure. Nor is there one in a guest that runs already, which keeps what it has been given once.
    """

    name: str = "density"
    title: str = "density"
    group: str = "density"
    figures: Sequence[Figure] = (
        Figure(name="density.memory", title="memory of an idle instance, its own", unit="MiB", better="lower"),
        Figure(name="density.host", title="memory that the host has less for it", unit="MiB", better="lower"),
        Figure(name="density.per-gib", title="idle instances in a GiB", unit="", better="higher"),
        Figure(name="density.disk", title="disk of one more instance", unit="MiB", better="lower"),
    )
    needs: Sequence[str] = ()
    rounds: int = LONG
    quick: bool = True
    crowded: bool = True

    def missing(self, stage: Stage) -> str:
        return NO_INSTANCE if stage.on_host else ""

    def measure(self, stage: Stage) -> Mapping[str, float]:
        first = stage.bare()  # what it makes for all that follow is not the price of one more
        more: list[Instance] = []
        try:
            before = available()
            few = 1 if stage.quick else _FEW
            while len(more) < (few if (first.memory() or _SMALL) >= _SMALL else _MANY):
                more.append(stage.bare())
            with_all = available()
            amounts = [instance.memory() for instance in more]
            disk = stage.driver.disk_bytes()
            while more:
                more.pop().stop()
            after = _given_back(with_all, before)
        finally:
            for instance in [*more, first]:
                instance.stop()
        found = {} if disk is None else {"density.disk": disk / _MIB}
        known = [amount for amount in amounts if amount]
        if known:
            found["density.memory"] = sum(known) / len(known) / _MIB
        taken, given = before - with_all, after - with_all
        if not isinstance(stage.driver, StartsWarm) and taken > 0 and abs(taken - given) <= taken * _DOUBT:
            found["density.host"] = taken / len(amounts) / _MIB
            found["density.per-gib"] = 1024 / max(found.get("density.memory", 0), found["density.host"])
        return found


def _given_back(with_all: int, before: int) -> int:
    """What is available when instances have gone; the kernel takes namespaces apart in its own time."""
    deadline = time.monotonic() + _PATIENCE
    while (found := available()) - with_all < (before - with_all) * (1 - _DOUBT) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


WORKS = (Start(), Density())
