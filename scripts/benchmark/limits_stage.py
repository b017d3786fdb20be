# SPDX-License-Identifier: GPL-2.0-or-later
"""VEs to put load in, and results with their spread."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmark.bench import BARE
from benchmark.instance import Instance


@dataclass
class Result:
    """`values`: of each repetition. `held`: whether the bar was met in all of them, None where this host can have no
    such thing."""

    name: str
    text: str
    values: list[float] = field(default_factory=list)
    held: bool | None = True

    def __str__(self) -> str:
        verdict = {True: "ok  ", False: "MISS", None: "n/a "}[self.held]
        return f"{verdict} {self.name}: {self.text}"


def spread(values: Sequence[float], form: str = "{:.3f}") -> str:
    """Median and range."""
    low, middle, high = (form.format(value) for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


def jain(parts: Sequence[float]) -> float:
    """Jain's index of what was received by what was due: 1 when all got the same part."""
    return sum(parts) ** 2 / (len(parts) * sum(part * part for part in parts))


class Stage:
    def __init__(self, vemgr: Instance, repeat: int, seconds: float) -> None:
        self.vemgr, self.repeat, self.seconds = vemgr, repeat, seconds
        self.base = Path(vemgr.host["cgroup"])
        self.controllers = frozenset(vemgr.host["controllers"])
        self._names = itertools.count(1)
        self._running: list[str] = []

    def ve(self, **settings: str) -> str:
        """A running VE with an init that does nothing."""
        name = f"l{next(self._names)}"
        texts = {key.replace("_", "-"): text for key, text in settings.items()}
        self.vemgr.call("Create", name=name, template=BARE, settings={"network": "none", **texts})
        self._running.append(name)
        self.vemgr.call("Start", name=name)
        return name

    def set(self, ve: str, **settings: str) -> None:
        self.vemgr.call("Set", name=ve, settings={key.replace("_", "-"): text for key, text in settings.items()})

    def clear(self) -> None:
        while self._running:
            self.vemgr.call("Destroy", name=self._running.pop(), force=True)

    def group(self, ve: str) -> str:
        return str(self.base / ve)

    def number(self, ve: str, file: str) -> int:
        return int((self.base / ve / file).read_text())

    def table(self, ve: str, file: str) -> dict[str, int]:
        lines = (line.split() for line in (self.base / ve / file).read_text().splitlines())
        return {key: int(value) for key, value in lines}

    def used(self, ves: Sequence[str], seconds: float) -> list[float]:
        """CPUs that each got. `seconds` is made a whole number of the kernel's periods of 100 ms."""
        def look() -> tuple[float, list[int]]:
            return time.monotonic(), [self.table(ve, "cpu.stat")["usage_usec"] for ve in ves]

        began, before = look()
        time.sleep(round(seconds, 1))
        ended, after = look()
        return [(b - a) / 1e6 / (ended - began) for a, b in zip(before, after, strict=True)]
