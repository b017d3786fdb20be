# SPDX-License-Identifier: GPL-2.0-or-later
"""Looking at all VEs again and again, on a screen or as plain lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import datetime

import click

from vemgr.api.client import Client
from vemgr.cli.rates import KEYS, Look, rows, sorted_by, table
from vemgr.cli.screen import EndedBySignal, Screen
from vemgr.core.errors import Unreachable

_BATCH_COLUMNS = 200
_SOBER, _REVERSE = "\x1b[0m", "\x1b[7m"


class Source:
    """The daemon, and the next one when that has ended."""

    def __init__(self, connect: Callable[[], Client]) -> None:
        self._connect = connect
        self._client: Client | None = None
        self.before = self.now = self._take()

    def _take(self) -> Look:
        if self._client is None:
            self._client = self._connect()
        return Look(time.monotonic(), self._client.call("GetStatistics")["ves"])

    def look(self) -> str:
        """Returns why there is nothing new, or ""."""
        try:
            found = self._take()
        except Unreachable as error:
            if self._client is not None:
                self._client.close()
                self._client = None
            return error.message
        self.before, self.now = self.now, found
        return ""

    def lines(self, key: str, columns: int) -> list[str]:
        return table(sorted_by(key, rows(self.before, self.now)), columns)


def print_looks(source: Source, interval: float, key: str, *, once: bool) -> None:
    while True:
        time.sleep(interval)
        problem = source.look()
        said = f"({problem})" if problem else ""
        click.echo("\n".join([_heading(source, key, said), *source.lines(key, _BATCH_COLUMNS)]))
        if once:
            return
        click.echo()
        sys.stdout.flush()


def watch(source: Source, interval: float, key: str) -> int:
    """Returns the exit code: 0 for q, and as a shell says it for a signal."""
    try:
        with Screen() as screen:
            problem, due = "", time.monotonic() + min(interval, 0.5)  # rates need two looks: the first come soon
            while True:
                columns, _ = screen.size()
                heading, first, *others = [_heading(source, key, problem or "keys: c m i n p, q ends"),
                                           *source.lines(key, columns)]
                screen.show([heading[:columns], f"{_REVERSE}{first}{_SOBER}", *others])
                typed = screen.key(due - time.monotonic())
                if typed == "q":
                    return 0
                key = typed if typed in KEYS else key
                if time.monotonic() >= due:
                    problem, due = source.look(), time.monotonic() + interval
    except EndedBySignal as ended:
        return 128 + ended.signum


def _heading(source: Source, key: str, said: str) -> str:
    running = sum(bool(ve["counters"]) for ve in source.now.ves)
    now = datetime.now().strftime("%H:%M:%S")
    return f"{now}  {running} of {len(source.now.ves)} VEs run, by {KEYS[key][0]}  {said}".rstrip()
