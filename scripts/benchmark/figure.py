# SPDX-License-Identifier: GPL-2.0-or-later
"""A figure: what was measured, against what, and whether that is good."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmark.measure import Estimate, Samples, percentile, ratio


@dataclass(frozen=True)
class Bar:
    """`good`: what a figure has to reach; `moonshot`: what would be excellent. NaN where it is only information."""

    good: float = math.nan
    moonshot: float = math.nan
    more_is_better: bool = False

    def judge(self, value: float) -> str:
        if math.isnan(self.good):
            return "information"
        for limit, verdict in ((self.moonshot, "moonshot"), (self.good, "good")):
            if value >= limit if self.more_is_better else value <= limit:
                return verdict
        return "missed"


@dataclass(frozen=True)
class Definition:
    """`what`: a line for the table. `unit`: "x" for a ratio, otherwise that of the value itself."""

    key: str
    what: str
    bar: Bar = field(default_factory=Bar)
    unit: str = "x"


@dataclass
class Figure:
    """`samples`: what it was computed from, ours first. `notes`: what else a reader has to know of this run.
    `invalid`: why it cannot be judged."""

    definition: Definition
    estimate: Estimate = field(default_factory=lambda: Estimate(math.nan))
    samples: list[Samples] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    invalid: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        return "invalid" if self.invalid else self.definition.bar.judge(self.estimate.value)


def compare(definition: Definition, samples: Mapping[str, Samples], theirs: str, missing: Mapping[str, str],
            share: float = 0.5) -> Figure:
    """Our samples, named "vemgr", against `theirs`. A contender that is missing, or failed once, makes the figure
    invalid; only our own failures count as slow, or a broken contender would make us look good."""
    ours = samples["vemgr"]
    if theirs not in samples:
        return Figure(definition, samples=[ours], invalid=[f"no {theirs}: {missing.get(theirs, 'not measured')}"])
    other = samples[theirs]
    figure = Figure(definition, ratio(ours.values, other.values, share), [ours, other])
    if other.errors:
        figure.invalid.append(f"{theirs} failed {len(other.errors)} of {len(other.values)} times: {other.errors[0]}")
    return figure


def spread(values: list[float]) -> Estimate:
    """A figure without a contender: its median, and its 10th and 90th percentile."""
    return Estimate(percentile(values, 0.5), percentile(values, 0.1), percentile(values, 0.9))
