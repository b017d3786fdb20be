# SPDX-License-Identifier: GPL-2.0-or-later
"""From samples to the cells of a table: medians with intervals, ratios to the bare host, and who loses where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vemgr.compare.schema import FACT, Column, Figure, Report, Work
from vemgr.compare.statistics import LEAST_RUNS, Estimate, estimate, ratio

HOST = "host"
_STARTS = ("start and stop", "manageability")  # groups with figures that have starts in them
_LEAST_LOSS = 0.01  # what is closer to the host than this is no loss that anybody would notice


@dataclass(frozen=True)
class Cell:
    """One figure of one column. `speed`: performance as a share of the host's, above 1 is better, whatever the unit.
    `why` there is no estimate. `invalid`, `failed`: runs that do not count."""

    estimate: Estimate | None
    speed: Estimate | None
    why: str = ""
    invalid: int = 0
    failed: int = 0


@dataclass(frozen=True)
class Row:
    work: Work
    figure: Figure
    cells: Mapping[str, Cell]


def rows(report: Report) -> list[Row]:
    """One for each figure, with a cell for each column that can be used."""
    columns = usable(report)
    return [Row(work, figure, {column.name: _cell(report, work, figure, column.name) for column in columns})
            for work, figure in report.figures()]


def usable(report: Report) -> list[Column]:
    return [column for column in report.header.columns if not column.why]


def _cell(report: Report, work: Work, figure: Figure, driver: str) -> Cell:
    values, host = report.values(figure.name, driver), report.values(figure.name, HOST)
    runs = [each for each in report.samples if (each.workload, each.driver) == (work.name, driver) and each.round]
    invalid, failed = sum(bool(each.invalid) for each in runs), sum(bool(each.error) for each in runs)
    if not values:
        errors = [each.error for each in runs if each.error]
        why = report.why_absent(work.name, driver) or _why_none(len(runs), invalid, errors)
        return Cell(None, None, why, invalid, failed)
    speed = None
    if host and driver != HOST and min(values) > 0 and figure.unit != FACT:
        speed = ratio(values, host) if figure.better == "higher" else ratio(host, values)
    return Cell(estimate(values), speed, "", invalid, failed)


def _why_none(runs: int, invalid: int, errors: Sequence[str]) -> str:
    if invalid:
        return f"too noisy: none of {runs} runs is valid"
    if errors:
        return f"all of {runs} runs have failed, the last one so: {errors[-1]}"
    return "none of its runs could tell" if runs else "not measured yet"


def heading(column: Column, group: str = "") -> str:
    """What stands for a column in a table of this group, with what must not be overlooked."""
    marks = ["TCG"] * column.emulated + ["warm"] * (bool(column.warm) and group in _STARTS)
    return f"{column.name} ({', '.join(marks)})" if marks else column.name


def warmth(columns: Sequence[Column], group: str = _STARTS[0]) -> str:
    """What "warm" means in a table of this group, or nothing."""
    found = [f"warm, {column.name}: started in {column.warm}" for column in columns if column.warm and group in _STARTS]
    return "; ".join([*found, "all others are cold"]) if found else ""


@dataclass(frozen=True)
class Loss:
    """`column` is slower than `to` (a heading) in this figure, by more than chance; `speed` is its share of the
    other's."""

    row: Row
    column: str
    to: str
    speed: Estimate


def losses(report: Report, found: list[Row], column: str = "ve") -> Iterator[Loss]:
    """Where `column` loses, against any other: the interval of the ratio lies below 1 as a whole."""
    for row in found:
        for other in usable(report):
            ours, theirs = report.values(row.figure.name, column), report.values(row.figure.name, other.name)
            if other.name == column or not ours or not theirs or min(*ours, *theirs) <= 0 or row.figure.unit == FACT:
                continue
            speed = ratio(ours, theirs) if row.figure.better == "higher" else ratio(theirs, ours)
            if speed and speed.count >= LEAST_RUNS and speed.high < 1 and speed.value < 1 - _LEAST_LOSS:
                yield Loss(row, column, heading(other, row.work.group), speed)
