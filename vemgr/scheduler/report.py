# SPDX-License-Identifier: GPL-2.0-or-later
"""What comes out of a simulation, added up tick by tick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vemgr.scheduler.filling import Claim
from vemgr.scheduler.scenario import Kind, Scenario

_SHORT = 0.99  # a guarantee counts as kept with this part of it
_STEPS = 400  # of the history at most; with more ticks each stands for several


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
    looks: int = 0
    fairness: float = 0.0
    least: float = 1.0
    guarantees: int = 0
    unmet: int = 0
    worst: float = 1.0

    def add(self, other: _Resource) -> None:
        self.capacity += other.capacity
        self.usable += other.usable
        self.got += other.got
        self.looks += other.looks
        self.fairness += other.fairness
        self.least = min(self.least, other.least)
        self.guarantees += other.guarantees
        self.unmet += other.unmet
        self.worst = min(self.worst, other.worst)

    def as_dict(self, name: str) -> dict[str, Any]:
        return {"resource": name, "utilization": self.got / self.capacity,
                "conserved": self.got / max(1, self.usable),
                "fairness": self.fairness / self.looks, "leastFairness": self.least,
                "unmet": self.unmet / max(1, self.guarantees), "worst": self.worst}


@dataclass(slots=True)
class _Step:
    """A part of the time, from tick `first` on."""

    first: int
    ticks: int = 0
    moves: int = 0
    resources: dict[str, _Resource] = field(default_factory=dict)


class Report:
    """`moves`: how often a cpu.weight was written."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._kinds = {kind.name: _Kind() for kind in scenario.kinds}
        self._resources: dict[str, _Resource] = {}
        self._steps: list[_Step] = []
        self._width = -(-scenario.ticks // _STEPS)  # ticks
        self._moves = 0

    def begin(self, tick: int) -> None:
        """What is told from now on happens in the tick of this number."""
        if tick % self._width == 0:
            self._steps.append(_Step(tick))
        self._steps[-1].ticks += 1

    def moved(self) -> None:
        self._moves += 1
        self._steps[-1].moves += 1

    def started(self, kind: Kind) -> None:
        self._kinds[kind.name].started += 1

    def refused(self, kind: Kind) -> None:
        self._kinds[kind.name].refused += 1

    def tick(self, resource: str, capacity: int, kinds: Sequence[Kind], wanted: Sequence[int], fair: Sequence[Claim],
             entitled: Sequence[int], got: Sequence[int]) -> None:
        """One resource of one host at one time; the sequences go by VE. `fair`: promise and usable demand."""
        fairness = jain([share / due for share, due in zip(got, entitled, strict=True) if due])
        now = _Resource(capacity, min(capacity, sum(claim.limit or 0 for claim in fair)), sum(got), 1, fairness,
                        fairness)
        for kind, want, claim, share in zip(kinds, wanted, fair, got, strict=True):
            sums = self._kinds[kind.name]
            sums.wanted[resource] = sums.wanted.get(resource, 0) + want
            sums.got[resource] = sums.got.get(resource, 0) + share
            if claim.promise:
                now.guarantees += 1
                kept = share / claim.promise
                now.worst = min(now.worst, kept)
                now.unmet += kept < _SHORT
        self._resources.setdefault(resource, _Resource()).add(now)
        self._steps[-1].resources.setdefault(resource, _Resource()).add(now)

    def as_dict(self) -> dict[str, Any]:
        """Parts of 1; `unmet` of the times at which a VE wanted something of its guarantee. `history`: the same over
        the time, in order."""
        minutes = self._scenario.ticks * self._scenario.tick / 60
        return {
            "description": self._scenario.description,
            "hosts": self._scenario.hosts, "ticks": self._scenario.ticks, "seconds": minutes * 60,
            "movesPerMinute": self._moves / minutes,
            "resources": [each.as_dict(name) for name, each in self._resources.items()],
            "kinds": [{
                "kind": name, "started": each.started, "refused": each.refused,
                "satisfied": {resource: each.got[resource] / wanted if wanted else 1.0
                              for resource, wanted in each.wanted.items()},
            } for name, each in self._kinds.items()],
            "history": [{
                "seconds": step.first * self._scenario.tick,
                "movesPerMinute": step.moves / (step.ticks * self._scenario.tick / 60),
                "resources": [each.as_dict(name) for name, each in step.resources.items()],
            } for step in self._steps],
        }
