# SPDX-License-Identifier: GPL-2.0-or-later
"""What was measured, beside its bar, and whether the host was calm enough for that to say something."""

from __future__ import annotations

import os
import statistics
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

_SPIN = 0.3  # seconds
_CALM = 0.9  # of the best pace seen
_COUNT = struct.Struct("=Q")


@dataclass
class Result:
    """`values`: of each repetition. `held`: whether the bar was met in all of them, None where this host can have no
    such thing. `pace`: how many turns its CPUs made just before or after, as a part of the most that they made."""

    name: str
    bar: str
    text: str
    values: list[float] = field(default_factory=list)
    held: bool | None = True
    pace: float = 1.0

    @property
    def verdict(self) -> str:
        """A bar that is met although others use the host is met; one that is missed then may be their doing."""
        if self.held is False and self.pace < _CALM:
            return "noisy"
        return {True: "ok", False: "MISS", None: "n/a"}[self.held]

    def __str__(self) -> str:
        noise = f" (the CPUs made {self.pace:.0%} of their best pace)" if self.pace < _CALM else ""
        return f"{self.verdict:5} {self.name}: {self.text}; bar: {self.bar}{noise}"


def spread(values: Sequence[float], form: str = "{:.3f}") -> str:
    """Median and range."""
    low, middle, high = (form.format(value) for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


def jain(parts: Sequence[float]) -> float:
    """Jain's index of what was received by what was due: 1 when all got the same part."""
    return sum(parts) ** 2 / (len(parts) * sum(part * part for part in parts))


class Pace:
    """Whether others use the CPUs. The kernel tells of what is stolen from a virtual machine only where its host
    tells it, and one without KVM does not; so they are made to count."""

    def __init__(self) -> None:
        self._best = 0.0

    def look(self) -> float:
        """What all CPUs together get done, as a part of the most that they have got done so far."""
        found = sum(_spin_on_each())
        self._best = max(self._best, found)
        return found / self._best


def _spin_on_each() -> list[int]:
    spinning = []
    for _ in range(os.cpu_count() or 1):
        ready, done = os.pipe()
        pid = os.fork()
        if pid == 0:
            turns, end = 0, time.monotonic() + _SPIN
            while time.monotonic() < end:
                turns += 1
            os.write(done, _COUNT.pack(turns))
            os._exit(0)
        os.close(done)
        spinning.append((pid, ready))
    counts = []
    for pid, ready in spinning:
        counts.append(_COUNT.unpack(os.read(ready, _COUNT.size))[0])
        os.close(ready)
        os.waitpid(pid, 0)
    return counts
