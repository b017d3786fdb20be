# SPDX-License-Identifier: GPL-2.0-or-later
"""Samples, their spread, and ratios of them.

A run that fails counts as infinitely long, so failing is never fast: it moves the percentiles, and more than half of it
makes the median infinite.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

_RESAMPLES = 1000
_CONFIDENCE = 0.95


class Failed(Exception):
    """A run that did not do what it was to do."""


@dataclass
class Samples:
    """What one contender took, in seconds; `math.inf` for a run that failed."""

    name: str
    values: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def take(self, run: Callable[[], float]) -> None:
        try:
            self.values.append(run())
        except Failed as error:
            self.values.append(math.inf)
            self.errors.append(str(error))

    def percentile(self, share: float) -> float:
        return percentile(self.values, share)

    @property
    def p50(self) -> float:
        return self.percentile(0.5)


def percentile(values: Sequence[float], share: float) -> float:
    """By nearest rank: always a value that was measured, which an infinite one does not spoil."""
    if not values:
        return math.inf
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def interleave(rounds: int, contenders: Mapping[str, Callable[[], float]], warm_up: int = 2) -> dict[str, Samples]:
    """Run A B C A B C ...: what changes on the host meanwhile changes for all of them. A contender warms up too."""
    found = {name: Samples(name) for name in contenders}
    for number in range(-warm_up, rounds):
        for name, run in contenders.items():
            (found[name] if number >= 0 else Samples(name)).take(run)
    return found


@dataclass(frozen=True)
class Estimate:
    """A figure, and the interval that holds it with 95 % confidence; NaN where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan


def ratio(ours: Sequence[float], theirs: Sequence[float], our_share: float = 0.5) -> Estimate:
    """`our_share` percentile of ours to the median of theirs, with a bootstrap interval: both are drawn anew from what
    was measured, a thousand times. The seed is fixed, so the same samples give the same interval."""
    value = _quotient(percentile(ours, our_share), percentile(theirs, 0.5))
    if min(len(ours), len(theirs)) < 2:
        return Estimate(value)
    dice = random.Random(1)  # noqa: S311
    drawn = [_quotient(percentile(dice.choices(ours, k=len(ours)), our_share),
                       percentile(dice.choices(theirs, k=len(theirs)), 0.5)) for _ in range(_RESAMPLES)]
    return Estimate(value, percentile(drawn, (1 - _CONFIDENCE) / 2), percentile(drawn, (1 + _CONFIDENCE) / 2))


def _quotient(ours: float, theirs: float) -> float:
    """Infinite when ours is, whatever theirs: no failure of another makes a failure of ours good."""
    if math.isinf(ours) or not theirs:
        return math.inf
    return ours / theirs
