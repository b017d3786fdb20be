# SPDX-License-Identifier: GPL-2.0-or-later
"""Two reports against each other: what has become worse by more than chance.

Worse is what has both medians in intervals that do not overlap. That is a strict test: at 95 % each, it cries wolf in
fewer than one figure of a hundred, which matters where there are a hundred figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from vemgr.compare.schema import Figure, Report
from vemgr.compare.statistics import LEAST_RUNS, Estimate, estimate

Verdict = Literal["worse", "better", "same", "lost", "new", "few"]
_HOST_FACTS = ("host", "kernel", "CPU", "mitigations")


@dataclass(frozen=True)
class Change:
    """`few`: it looks otherwise, but the runs are too few to say so. `lost`: the first report has it and the second has
    not, although it has the column and was to do the work."""

    figure: Figure
    driver: str
    verdict: Verdict
    before: Estimate | None
    after: Estimate | None

    @property
    def factor(self) -> float | None:
        """Of the value, not of the performance."""
        if not self.before or not self.after or not self.before.value:
            return None
        return self.after.value / self.before.value


def changes(first: Report, second: Report) -> Iterator[Change]:
    """Of the figures and columns that both reports have."""
    planned = {figure.name for _, figure in second.figures()}
    columns = {column.name for column in second.header.columns}
    for _, figure in first.figures():
        if figure.name not in planned:
            continue
        for column in first.header.columns:
            if column.name not in columns:
                continue
            before, after = first.values(figure.name, column.name), second.values(figure.name, column.name)
            if before or after:
                yield _change(figure, column.name, before, after)


def _change(figure: Figure, driver: str, before: list[float], after: list[float]) -> Change:
    old, new = estimate(before) if before else None, estimate(after) if after else None
    if old is None or new is None:
        return Change(figure, driver, "new" if old is None else "lost", old, new)
    if old.overlaps(new):
        return Change(figure, driver, "same", old, new)
    if min(old.count, new.count) < LEAST_RUNS:
        return Change(figure, driver, "few", old, new)
    higher = new.value > old.value
    return Change(figure, driver, "better" if higher == (figure.better == "higher") else "worse", old, new)


def other_circumstances(first: Report, second: Report) -> list[str]:
    """What makes the comparison one of hosts rather than of versions."""
    before, after = first.header.environment, second.header.environment
    found = [f"{fact}: {before.get(fact, 'unknown')} / {after.get(fact, 'unknown')}" for fact in _HOST_FACTS
             if before.get(fact) != after.get(fact)]
    if first.header.template != second.header.template:
        found.append(f"template: {first.header.template} / {second.header.template}")
    if (first.header.cpus, first.header.memory) != (second.header.cpus, second.header.memory):
        found.append("the instances had other resources")
    return found
