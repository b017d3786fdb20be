# SPDX-License-Identifier: GPL-2.0-or-later
"""Takes the samples: each work in each column, in turns, as the schedule says.

What a column cannot do is written down with its reason and does not stop the others.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from vemgr.compare import noise
from vemgr.compare.driver import Driver
from vemgr.compare.environment import counters
from vemgr.compare.keeping import Kept
from vemgr.compare.progress import Progress
from vemgr.compare.schedule import Task, plan, time_left
from vemgr.compare.schema import Absent, Header, Sample
from vemgr.compare.workloads.workload import Stage, Workload
from vemgr.core.errors import VemgrError

_MOST_FAILURES = 3
#: Groups whose works start instances of their own.
SHORT_LIVED = frozenset({"start", "density", "consolidation", "isolation", "update"})
#: A quick run begins with what it is asked for most, and what takes long comes when all else has been done.
_QUICK_RANKS = {"start": -1, "density": 1, "consolidation": 2}
_STARTS = 5  # that such a work takes, as long as nothing else is known of it


class Campaign:
    """`works` and `stages` by name; `stages` has those columns only that can be used. `budget`: seconds after which no
    further round is begun, or infinity."""

    def __init__(self, header: Header, works: Mapping[str, Workload], stages: Mapping[str, Stage], kept: Kept,
                 progress: Progress, budget: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._header, self._works, self._stages, self._kept = header, works, stages, kept
        self._progress, self._clock = progress, clock
        self._deadline = clock() + budget
        self._taken: dict[tuple[str, str], float] = {}
        self._absent = {(line.workload, line.driver) for line in kept.lines if isinstance(line, Absent)}
        self._asked = set(self._absent)
        self._failures: Counter[tuple[str, str]] = Counter()
        # A quick run has no time for the same again: the next round is another attempt.
        self._attempts = 1 if header.quick else noise.MOST_ATTEMPTS

    def run(self) -> None:
        """All that is still to be done. Raises `NoSpace` where samples cannot be kept, and lets interruptions pass."""
        tasks = self._open_tasks()
        total = len(tasks)
        for number, task in enumerate(tasks):
            if task.pair in self._absent:
                continue
            rest = [each for each in tasks[number:] if each.pair not in self._absent]
            left = time_left(rest, self._taken)
            if self._too_late(task):
                continue
            self._progress.at(task, number, total, min(left, self._deadline - self._clock()))
            begin = self._clock()
            self._do(task)
            self._taken[task.pair] = self._clock() - begin

    def _open_tasks(self) -> list[Task]:
        rounds = {work.name: work.rounds for work in self._header.works}
        columns = [column.name for column in self._header.columns if column.name in self._stages]
        done = {Task(line.round, line.workload, line.driver) for line in self._kept.lines if isinstance(line, Sample)
                and (not line.invalid or line.attempt >= self._attempts)}
        quick = self._header.quick
        planned = plan(self._header.seed, rounds, columns, cold=SHORT_LIVED if quick else (),
                       ranks=_QUICK_RANKS if quick else None)
        open_ = [task for task in planned if task.round > 0 and task not in done]
        cold = {task.pair for task in open_}  # after an interruption, too: what was warm is gone
        return [task for task in planned if task.round == 0 and task.pair in cold] + open_

    def _too_late(self, task: Task) -> bool:
        """A quick run leaves out what would not end in time. The warm-up is done in any case: it tells how long things
        take."""
        start = self._taken.get(("start", task.driver), 0)
        unknown = start * _STARTS if task.workload in SHORT_LIVED else 0
        return task.round > 0 and self._clock() + self._taken.get(task.pair, unknown) > self._deadline

    def _do(self, task: Task) -> None:
        work, stage = self._works[task.workload], self._stages[task.driver]
        if task.pair not in self._asked:
            self._asked.add(task.pair)
            if why := _missing(work, stage):
                self._leave_out(task, why)
                return
        for attempt in range(1, self._attempts + 1):
            sample = self._sample(task, work, stage, attempt)
            self._kept.add(sample)
            if sample.error:
                self._failures[task.pair] += 1
                stage.drop_shared()
                if self._failures[task.pair] >= _MOST_FAILURES:
                    self._leave_out(task, f"it has failed {_MOST_FAILURES} times, the last time so: {sample.error}")
                    return
            if not sample.invalid or task.round == 0:
                return

    def _leave_out(self, task: Task, why: str) -> None:
        self._absent.add(task.pair)
        self._kept.add(Absent(workload=task.workload, driver=task.driver, why=why))
        self._progress.say(f"{task.workload} in {task.driver} is left out: {why}")

    def _sample(self, task: Task, work: Workload, stage: Stage, attempt: int) -> Sample:
        if work.name not in SHORT_LIVED:
            with contextlib.suppress(VemgrError):  # what fails now fails again within the measurement
                stage.shared()
        before = counters()
        values: Mapping[str, float] = {}
        error = ""
        try:
            values = work.measure(stage)
        except (VemgrError, OSError) as why:
            error = str(why) or repr(why)  # an error without a word is one all the same
        after = counters()
        disturbed = noise.between(before, after)
        invalid = "" if error else noise.objection(disturbed, self._header.noise, crowded=work.crowded)
        return Sample(round=task.round, workload=task.workload, driver=task.driver, attempt=attempt,
                      seconds=round(after.seconds - before.seconds, 6), values=dict(values), noise=disturbed,
                      error=error, invalid=invalid)


def _missing(work: Workload, stage: Stage) -> str:
    try:
        return work.missing(stage)
    except (VemgrError, OSError) as error:
        return str(error) or repr(error)


def prepared(drivers: Sequence[Driver], prepare: Callable[[Driver], None], progress: Progress) -> dict[str, str]:
    """By driver: why it cannot be used, or nothing."""
    found = {}
    for driver in drivers:
        try:
            why = driver.probe()
            if not why:
                prepare(driver)
        except (VemgrError, OSError) as error:
            why = str(error)
        found[driver.name] = why
        progress.say(f"{driver.name}: {why or driver.label}")
    return found
