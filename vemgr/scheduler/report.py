# SPDX-License-Identifier: GPL-2.0-or-later
"""What comes out of a simulation, added up tick by tick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vemgr.scheduler.filling import Claim
from vemgr.scheduler.scenario import Kind, Scenario

_SHORT = 0.99  # a guarantee counts as kept with this part of it


def jain(ratios: Sequence[float]) -> float:
    """Jain's index of what was received by what was due: 1 where all ratios are the same, 1/n where one has all.
    (Jain, Chiu, Hawe 1984.)"""
    squares = sum(ratio * ratio for ratio in ratios)
    return sum(ratios) ** 2 / (len(ratios) * squares) if squares else 1.0


@dataclass(slots=True)
class _Kind:
    started: int = 0
    refused: int = 0
    wanted: dict[str, int] = field(default_factory=dict)
    got: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Resource:
    """Sums over all ticks and hosts. `usable`: what could have been used, of capacity and of demand the less;
    `guarantees`: how often somebody wanted what was promised."""

    capacity: int = 0
    usable: int = 0
    got: int = 0
    fairness: list[float] = field(default_factory=list)
    guarantees: int = 0
    unmet: int = 0
    worst: float = 1.0


class Report:
    """`moves`: how often a cpu.weight was written."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._kinds = {kind.name: _Kind() for kind in scenario.kinds}
        self._resources: dict[str, _Resource] = {}
        self.moves = 0

    def started(self, kind: Kind) -> None:
        self._kinds[kind.name].started += 1

    def refused(self, kind: Kind) -> None:
        self._kinds[kind.name].refused += 1

    def tick(self, resource: str, capacity: int, kinds: Sequence[Kind], wanted: Sequence[int], fair: Sequence[Claim],
             entitled: Sequence[int], got: Sequence[int]) -> None:
        """One resource of one host at one time; the sequences go by VE. `fair`: promise and usable demand."""
        found = self._resources.setdefault(resource, _Resource())
        found.capacity += capacity
        found.usable += min(capacity, sum(claim.limit or 0 for claim in fair))
        found.got += sum(got)
        found.fairness.append(jain([share / due for share, due in zip(got, entitled, strict=True) if due]))
        for kind, want, claim, share in zip(kinds, wanted, fair, got, strict=True):
            sums = self._kinds[kind.name]
            sums.wanted[resource] = sums.wanted.get(resource, 0) + want
            sums.got[resource] = sums.got.get(resource, 0) + share
            if claim.promise:
                found.guarantees += 1
                kept = share / claim.promise
                found.worst = min(found.worst, kept)
                found.unmet += kept < _SHORT

    def as_dict(self) -> dict[str, Any]:
        """Parts of 1; `unmet` of the times at which a VE wanted something of its guarantee."""
        minutes = self._scenario.ticks * self._scenario.tick / 60
        return {
            "description": self._scenario.description,
            "hosts": self._scenario.hosts, "ticks": self._scenario.ticks, "seconds": minutes * 60,
            "movesPerMinute": self.moves / minutes,
            "resources": [{
                "resource": name, "utilization": each.got / each.capacity,
                "conserved": each.got / max(1, each.usable),
                "fairness": sum(each.fairness) / len(each.fairness), "leastFairness": min(each.fairness),
                "unmet": each.unmet / max(1, each.guarantees), "worst": each.worst,
            } for name, each in self._resources.items()],
            "kinds": [{
                "kind": name, "started": each.started, "refused": each.refused,
                "satisfied": {resource: each.got[resource] / wanted if wanted else 1.0
                              for resource, wanted in each.wanted.items()},
            } for name, each in self._kinds.items()],
        }
