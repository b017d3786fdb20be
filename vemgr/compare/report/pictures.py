# SPDX-License-Identifier: GPL-2.0-or-later
"""The plots of the page: which figures are in which, and what is said beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from html import escape
from itertools import groupby

from vemgr.compare.report import plots
from vemgr.compare.report.literature import FELTER
from vemgr.compare.report.numbers import digits, with_unit
from vemgr.compare.report.plots import Line, Mark
from vemgr.compare.report.summary import Row, heading, rows, usable, warmth
from vemgr.compare.report.table import TCG
from vemgr.compare.schema import Report
from vemgr.compare.statistics import Estimate

_NEAR = plots.Axis(0.7, 1.3, logarithmic=False)
_APART = ("consolidation", "isolation")  # which have plots of their own


class Seen:
    """A report with what all parts of its page need: rows, columns, and the number of each column's colour."""

    def __init__(self, report: Report) -> None:
        self.report, self.rows, self.columns = report, rows(report), usable(report)
        known = [column.name for column in report.header.columns]
        self.series = {column.name: known.index(column.name) for column in self.columns}
        self.labels = {column.name: heading(column) for column in self.columns}
        self.emulated = any(column.emulated for column in self.columns)

    def figure(self, name: str) -> Row | None:
        return next((row for row in self.rows if row.figure.name == name), None)


def swatch(series: int) -> str:
    return f'<svg class="swatch" viewBox="0 0 16 16" aria-hidden="true">{plots.symbol(series, 8, 8)}</svg>'


def _plot(page: Seen, title: str, explanation: str, *svgs: str) -> str:
    tcg = f'<p class="warning">{TCG}</p>' if page.emulated else ""
    legend = "".join(f'<span class="c{number % plots.COLOURS}">{swatch(number)}{escape(page.labels[name])}</span>'
                     for name, number in page.series.items())
    return (f'<section><h2>{escape(title)}</h2><p>{escape(explanation)}</p><figure><div class="keys">{legend}</div>'
            f'<div class="plots">{"".join(svgs)}</div>{tcg}</figure></section>')


def _ratios(page: Seen) -> str:
    lines: list[Line] = []
    for group, members in groupby(page.rows, key=lambda row: row.work.group):
        found = [Line(row.figure.title, marks) for row in members
                 if row.work.name not in _APART and (marks := _speeds(page, row))]
        lines += [Line(group), *found] if found else []
    if not lines:
        return ""
    published = " Hollow diamonds are published figures (see below)." if any(
        mark.series is None for line in lines for mark in line.marks) else ""
    return _plot(page, "Performance beside the host",
                 f"1 is the host without virtualization, more is faster, whatever the unit.{published}",
                 *_near_and_all(lines))


def _near_and_all(lines: list[Line]) -> Iterator[str]:
    """What is close to the host, where a per cent can be seen; and everything, where that is more."""
    unit = "performance, host = 1"
    near = [Line(line.label, [mark for mark in line.marks if _NEAR.low <= mark.found.value <= _NEAR.high])
            for line in lines]
    rest = sum(len(line.marks) for line in lines) - sum(len(line.marks) for line in near)
    near = [line for line, whole in zip(near, lines, strict=True) if line.marks or not whole.marks]
    if any(line.marks for line in near):
        yield "<h3>Close to the host</h3>" + plots.lanes(near, _NEAR, "what is close to the host", unit, reference=1)
    if rest:
        ends = [end for line in lines for mark in line.marks for end in (mark.found.low, mark.found.high)]
        yield "<h3>All</h3>" + plots.lanes(lines, plots.logarithmic(ends, around=1), "all shares", unit, reference=1)


def _speeds(page: Seen, row: Row) -> list[Mark]:
    marks = []
    for name, cell in row.cells.items():
        if cell.speed:
            tells = (f"{page.labels[name]}, {row.figure.title}: {digits(cell.speed.value)} "
                     f"({digits(cell.speed.low)} to {digits(cell.speed.high)}), n = {cell.speed.count}")
            marks.append(Mark(page.series[name], cell.speed, tells))
    published = FELTER.get(row.figure.name)
    if marks and published:
        for kind, value in (("container", published.container), ("KVM", published.kvm)):
            if value is not None:
                tells = f"{kind}, published: {published.program}, {value:.2f}"
                marks.append(Mark(None, Estimate(value, value, value, 1), tells, f"{kind} {value:.2f}"))
    return marks


def _starts(page: Seen) -> str:
    svgs = []
    labels = {column.name: heading(column, "start and stop") for column in page.columns}
    for name in ("start.first", "start.up", "start.stop"):
        row = page.figure(name)
        found = [(each, cell.estimate) for each, cell in row.cells.items() if cell.estimate] if row else []
        if row and found:
            series = [(page.series[each], labels[each], page.report.values(name, each)) for each, _ in found]
            svgs.append(f"<h3>{escape(row.figure.title)}</h3>"
                        + plots.strips(series, [estimate for _, estimate in found], row.figure.title, row.figure.unit))
    said = ". ".join(filter(None, ["Each dot is one start; the bar is the median", warmth(page.columns)]))
    return _plot(page, "Start and stop", f"{said}.", *svgs) if svgs else ""


def _by_column(page: Seen, name: str) -> tuple[Row, list[Line]] | None:
    row = page.figure(name)
    lines = [Line(page.labels[each], [_absolute(page, row, each, cell.estimate)])
             for each, cell in row.cells.items() if cell.estimate] if row else []
    return (row, lines) if row and lines else None


def _absolute(page: Seen, row: Row, column: str, found: Estimate) -> Mark:
    text = with_unit(found.value, row.figure.unit)
    return Mark(page.series[column], found, f"{page.labels[column]}: {text}, n = {found.count}", text)


def _density(page: Seen) -> str:
    svgs = []
    for name in ("density.memory", "density.host", "density.per-gib", "density.disk"):
        found = _by_column(page, name)
        if found:
            row, lines = found
            values = [mark.found for line in lines for mark in line.marks if mark.found.value > 0]
            if not values:
                continue
            axis = plots.logarithmic(end for each in values for end in (each.low, each.high))
            svgs.append(f"<h3>{escape(row.figure.title)}</h3>"
                        + plots.lanes(lines, axis, row.figure.title, row.figure.unit or "instances"))
    return _plot(page, "Density", "What an instance that does nothing costs the host.", *svgs) if svgs else ""


def _consolidation(page: Seen) -> str:
    svgs = []
    for what, title, unit in (("total", "All together", "transactions a second"),
                              ("each", "The slowest instance", "transactions a second"),
                              ("p99", "99th percentile of a transaction", "µs")):
        found = {row.figure.name.split(".")[1]: row for row in page.rows
                 if row.work.name == "consolidation" and row.figure.name.endswith(
                     (f".{what}", *([".1.total"] * (what == "each"))))}  # one alone is the slowest, too
        series = []
        for name, number in page.series.items():
            cells = [(float(count), row.cells[name].estimate) for count, row in found.items()]
            points = [(count, estimate) for count, estimate in cells if estimate]
            if points:
                series.append((number, page.labels[name], points))
        if series:
            svgs.append(f"<div><h3>{title}</h3>{plots.curves(series, title, unit, 'instances at once')}</div>")
    return _plot(page, "Consolidation", "The same small application in 1, 2 and 4 instances at once.",
                 *svgs) if svgs else ""


def _isolation(page: Seen) -> str:
    lines = []
    for row in page.rows:
        marks = [replace(_absolute(page, row, name, cell.estimate), note="") for name, cell in row.cells.items()
                 if cell.estimate]
        if row.work.name == "isolation" and marks:
            lines.append(Line(row.figure.title, marks))
    if not lines:
        return ""
    axis = plots.linear([1.0, *(mark.found.high for line in lines for mark in line.marks)])
    return _plot(page, "Isolation", "What a good instance does beside a bad one, as a share of what it does alone.",
                 plots.lanes(lines, axis, "performance beside a bad neighbour", "share of its performance alone",
                             reference=1))


def all_plots(page: Seen) -> list[str]:
    """In the order of the page; an empty text where there is nothing to show."""
    return [_ratios(page), _starts(page), _density(page), _consolidation(page), _isolation(page)]
