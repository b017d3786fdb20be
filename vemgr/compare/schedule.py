# SPDX-License-Identifier: GPL-2.0-or-later
"""In which order things are measured, and how long that will still take.

What changes on a host in the course of an hour must change for all contenders alike. So all drivers do a work directly
one after the other, in an order that is drawn anew each time, all works do that in each round, and only then comes the
next round. The order follows from the seed, so that a run which was interrupted is continued and not begun anew.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

WARM_UP = 0
_UNKNOWN = 3.0  # seconds that a task takes of which nothing is known


@dataclass(frozen=True)
class Task:
    """One sample to be taken. Those of round 0 warm up and do not count."""

    round: int
    workload: str
    driver: str

    @property
    def pair(self) -> tuple[str, str]:
        return self.workload, self.driver


def plan(seed: int, rounds: Mapping[str, int], drivers: Sequence[str], cold: Collection[str] = (),
         ranks: Mapping[str, int] | None = None) -> list[Task]:
    """All tasks in their order. `rounds`: how often each work is counted; those of `cold` do not warm up. `ranks`: of
    works that come before (below 0) or after the others of their round, where a run may not come to its end."""
    tasks = []
    ranked = ranks or {}
    for number in range(WARM_UP, max(rounds.values(), default=-1) + 1):
        dice = random.Random(f"{seed} {number}")  # noqa: S311
        wanted = [name for name in rounds if rounds[name] >= number and (number > WARM_UP or name not in cold)]
        for workload in sorted(_shuffled(dice, wanted), key=lambda name: ranked.get(name, 0)):
            tasks += [Task(number, workload, driver) for driver in _shuffled(dice, drivers)]
    return tasks


def _shuffled(dice: random.Random, names: Sequence[str]) -> list[str]:
    return dice.sample(names, len(names))


def time_left(tasks: Iterable[Task], taken: Mapping[tuple[str, str], float]) -> float:
    """Seconds. `taken`: how long each pair of work and driver took the last time. What has not been done yet takes as
    long as the longest of the same work."""
    by_work: dict[str, float] = {}
    for (workload, _), seconds in taken.items():
        by_work[workload] = max(seconds, by_work.get(workload, 0))
    return sum(taken.get(task.pair, by_work.get(task.workload, _UNKNOWN)) for task in tasks)
