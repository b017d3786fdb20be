# SPDX-License-Identifier: GPL-2.0-or-later
"""One verb, killed at system call after system call of one target, and what has come of it each time."""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.sweep.doing import Doing, WrongError
from tests.sweep.expected import Expected
from tests.sweep.stage import Caller, Stage, alive
from tests.sweep.tracer import Traced
from tests.sweep.verbs import BYSTANDER, SUBJECT, Verb
from vemgr.core.errors import VemgrError

_ANSWER = 30.0  # seconds for the daemon to answer when another process was killed


@dataclass
class Report:
    """`total`: calls from request to answer, when last counted. `wrong`: point, call and what was wrong. `slowest`:
    seconds from the start of a new daemon or keeper until all was well; `late`: where that was too many."""

    verb: str
    target: str
    total: int = 0
    points: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0
    late: list[str] = field(default_factory=list)

    def line(self) -> str:
        outcomes = ", ".join(f"{count} {what}" for what, count in sorted(self.outcomes.items()))
        return (f"{self.verb:16} {self.target:7} {self.points:5} of {self.total:5} points: {outcomes or '-'}; "
                f"slowest {self.slowest:.2f} s, late {len(self.late)}, wrong {len(self.wrong)}")


class Sweep:
    """`within`: seconds for a restarted daemon or keeper to bring all in order."""

    def __init__(self, stage: Stage, verb: Verb, report: Report, within: float = 1.0) -> None:
        self._stage = stage
        self._verb = verb
        self._report = report
        self._within = within
        self._doing = Doing(stage, verb, report.target)
        self._expected = Expected(self._doing)

    def learn(self) -> None:
        self._expected.learn()

    def point(self, at: int) -> bool:
        """Kill at call number `at`. False when the verb has come to its end before that. Raises `WrongError`."""
        report = self._report
        self._doing.base()
        pid = self._pid_of(BYSTANDER) if self._verb.bystander else 0
        before = self._pid_of(SUBJECT) if self._verb.renews else 0
        traced, caller = self._doing.traced(at)
        if traced.killed:
            report.points += 1
        else:
            report.total = traced.calls
        try:
            outcome = self._judge(traced, caller, pid, before)
        except (WrongError, VemgrError, AssertionError, OSError) as error:
            report.wrong.append(f"{at} {traced.call or 'untouched'}: {type(error).__name__}: {error}")
            raise WrongError(report.wrong[-1]) from error
        if traced.killed:
            report.outcomes[outcome] += 1
        return bool(traced.killed)

    def _pid_of(self, ve: str) -> int:
        return int(self._stage.ves()[ve]["pid"])

    def _judge(self, traced: Traced, caller: Caller, bystander: int, subject: int) -> str:
        """The outcome, if all is well: which of the expected states, nobody else touched, and the verb still works.

        `bystander`, `subject`: the pids of their inits before.
        """
        began = self._begin_anew(traced, caller)
        outcome = "untouched"
        if traced.killed:
            outcome = self._expected.await_one_of(self._expected.after_kill, "after the kill")
            took = time.monotonic() - began
            self._report.slowest = max(self._report.slowest, took)
            if took > self._within:
                self._report.late.append(f"{traced.calls} {traced.call}: {took:.2f} s until '{outcome}'")
        if self._verb.bystander and self._report.target != "keeper":
            now = self._pid_of(BYSTANDER)
            if now != bystander:
                raise WrongError(f"the VE that nobody touched had pid {bystander} and has {now}")
        if subject and self._report.target == "daemon":
            self._stage.wait(lambda: self._pid_of(SUBJECT) not in (0, subject), "its init is the old one")
        self._doing.base()
        self._doing.perform()
        self._doing.base()
        self._expected.await_one_of(self._expected.base, "after the verb was done again and undone")
        return outcome

    def _begin_anew(self, traced: Traced, caller: Caller) -> float:
        """Start what was killed, and take the answer if there is to be one; returns when it was started."""
        stage, target = self._stage, self._report.target if traced.killed else ""
        stage.reap()
        if target in ("daemon", "keeper"):
            stage.wait(lambda: not alive(traced.killed), "who was killed does not end")
        if self._verb.ends_all:
            # What has been asked to end ends; what was killed or has ended is started by the next command.
            ending = [stage.daemon, stage.keeper]
            with contextlib.suppress(TimeoutError):
                stage.wait(lambda: not any(map(alive, ending)), "", 0.1 if target == "daemon" else 10.0)
            began = time.monotonic()
            stage.start_missing()
            return began
        began = time.monotonic()
        if target == "daemon":
            stage.start_daemon()
            return began
        if target == "keeper":
            stage.start_keeper()
        if self._verb.begin is None and caller.answer(_ANSWER) is None:
            raise WrongError("the daemon has ended too")
        return began


def points(start: int, every: int, sample: int, seed: int, total: int) -> Iterator[int]:
    """Which calls to kill at: from `start` each `every`-th, without end; or `sample` of `total` by chance."""
    if sample:
        yield from sorted(random.Random(seed).sample(range(1, total + 1), min(sample, total)))
        return
    at = start
    while True:
        yield at
        at += every
