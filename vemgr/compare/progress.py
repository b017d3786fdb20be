# SPDX-License-Identifier: GPL-2.0-or-later
"""What a person sees while it goes on: one line that changes on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import shutil
import time
from typing import Protocol, TextIO

from vemgr.compare.schedule import Task

_SILENCE = 15.0  # seconds between lines where there is no terminal


class Progress(Protocol):
    def say(self, text: str) -> None:
        """Something that stays."""

    def at(self, task: Task, done: int, total: int, left: float) -> None:
        """This is done next. `left`: seconds until all is done, as far as one can say."""

    def end(self) -> None:
        """Nothing more comes."""


class Quiet:
    """Tells nothing."""

    def say(self, text: str) -> None: ...

    def at(self, task: Task, done: int, total: int, left: float) -> None: ...

    def end(self) -> None: ...


def clock(seconds: float) -> str:
    whole = max(0, round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


class Lines:
    """For a pipe or a log."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._last, self._round = out, 0.0, -1

    def say(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    def at(self, task: Task, done: int, total: int, left: float) -> None:
        now = time.monotonic()
        if task.round != self._round or now - self._last >= _SILENCE:
            self._round, self._last = task.round, now
            self.say(_line(task, done, total, left))

    def end(self) -> None: ...


class Terminal:
    """For a person."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._shown = out, False

    def say(self, text: str) -> None:
        self.end()
        print(text, file=self._out, flush=True)

    def at(self, task: Task, done: int, total: int, left: float) -> None:
        width = shutil.get_terminal_size().columns - 1
        bar = "#" * round(20 * done / max(1, total))
        self._out.write(f"\r\x1b[K{f'[{bar:<20}] {_line(task, done, total, left)}'[:width]}")
        self._out.flush()
        self._shown = True

    def end(self) -> None:
        if self._shown:
            self._out.write("\r\x1b[K")
            self._out.flush()
            self._shown = False


def _line(task: Task, done: int, total: int, left: float) -> str:
    round_ = f"round {task.round}" if task.round else "warm-up"
    return f"{done}/{total}, {clock(left)} left: {round_}, {task.workload} in {task.driver}"
