# SPDX-License-Identifier: GPL-2.0-or-later
"""Several instances at once: the same work in 1, 2, 4 and 8 of them, and a good one beside a bad neighbour.

The work is the probe's `work`: it computes, looks about in 4 MiB of memory, writes blocks and forks now and then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from vemgr.compare.driver import Instance
from vemgr.compare.memory import available
from vemgr.compare.schema import Figure
from vemgr.compare.workloads.network import sending
from vemgr.compare.workloads.workload import LONG, Stage

COUNTS = (1, 2, 4, 8)
_QUICK = 4  # the most of them
_SECONDS = "1"
STRESSORS = {
    "cpu": "17 processes that compute", "memory": "one that dirties memory", "disk": "one that writes and syncs",
    "fork": "one that forks without end", "network": "one that sends datagrams",
    "receive": "one that is sent datagrams", "log": "one that floods its console",
}
_NOWHERE = "192.0.2.1"  # TEST-NET-1 (RFC 5737)


def _work(stage: Stage, instance: Instance) -> dict[str, float]:
    return stage.probe(instance, "work", f"{stage.directory}/worked-{instance.name}", _SECONDS)


@dataclass(frozen=True)
class Consolidation:
    name: str = "consolidation"
    title: str = "the same work in 1, 2, 4 and 8 instances"
    group: str = "consolidation"
    figures: Sequence[Figure] = field(default=tuple(
        figure for count in COUNTS for figure in (
            Figure(name=f"consolidation.{count}.total", title=f"{count} at once, together", unit="/s",
                   better="higher"),
            *([Figure(name=f"consolidation.{count}.each", title=f"{count} at once, the slowest", unit="/s",
                      better="higher")] * (count > 1)),
            Figure(name=f"consolidation.{count}.p99", title=f"{count} at once, 99th percentile", unit="us",
                   better="lower"))))
    needs: Sequence[str] = ()
    rounds: int = LONG
    quick: bool = True
    crowded: bool = True

    def missing(self, stage: Stage) -> str:
        return ""

    def measure(self, stage: Stage) -> Mapping[str, float]:
        found: dict[str, float] = {}
        counts = _counts(stage)
        with stage.several(max(counts)) as instances, ThreadPoolExecutor(max(counts)) as pool:
            for count in counts:
                said = list(pool.map(lambda instance: _work(stage, instance), instances[:count]))
                rates = [each["rate"] for each in said]
                found |= {f"consolidation.{count}.total": sum(rates),
                          f"consolidation.{count}.p99": max(each["p99"] for each in said)}
                if count > 1:
                    found[f"consolidation.{count}.each"] = min(rates)
        return found


def _counts(stage: Stage) -> list[int]:
    """Those that a quick run has the time for, and the host the memory, as all instances have the same."""
    most = available() // stage.resources.memory
    return [count for count in COUNTS if count == 1 or (count <= most and not (stage.quick and count > _QUICK))]


@dataclass(frozen=True)
class Isolation:
    """What a good instance still does beside each of these bad ones, as a share of what it does alone."""

    name: str = "isolation"
    title: str = "a good instance beside a bad one"
    group: str = "isolation"
    figures: Sequence[Figure] = field(default=tuple(
        Figure(name=f"isolation.{kind}", title=f"left beside {what}", unit="of alone", better="higher")
        for kind, what in STRESSORS.items()))
    needs: Sequence[str] = ()
    rounds: int = LONG
    quick: bool = False
    crowded: bool = True

    def missing(self, stage: Stage) -> str:
        return ""

    def measure(self, stage: Stage) -> Mapping[str, float]:
        found = {}
        with stage.several(2) as (good, bad):
            alone = _work(stage, good)["rate"]
            for kind in STRESSORS:
                if (kind == "log" and not _has_console(stage, bad)) or (kind == "receive" and not bad.address):
                    continue
                number = f"{stage.directory}/stressor-{kind}"
                with contextlib.ExitStack() as stack:
                    stack.callback(bad.spawn([stage.program, "stress", kind, _aim(stage, kind), number]).stop)
                    stage.probe(bad, "stressing", number)
                    if kind == "receive":
                        stack.enter_context(sending(stage, bad.address or ""))
                    found[f"isolation.{kind}"] = _work(stage, good)["rate"] / alone
                    stage.probe(bad, "stressing", number)
        return found


def _has_console(stage: Stage, instance: Instance) -> bool:
    """One of its own: the host's is not ours to flood, and containers may have none."""
    script = "[ -c /dev/console ] && : > /dev/console"
    return not stage.on_host and instance.run(["sh", "-c", script], timeout=30).code == 0


def _aim(stage: Stage, kind: str) -> str:
    return {"network": _NOWHERE, "log": "/dev/console"}.get(kind, f"{stage.directory}/stressed")


WORKS = (Consolidation(), Isolation())
