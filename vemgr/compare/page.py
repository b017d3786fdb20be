# SPDX-License-Identifier: GPL-2.0-or-later
"""The report as one HTML page that needs nothing else: no network, no script, light or dark as the reader's desk is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby

from vemgr.compare import plots
from vemgr.compare.literature import FELTER, SOURCE
from vemgr.compare.numbers import digits, interval, with_unit
from vemgr.compare.plots import Line, Mark
from vemgr.compare.schema import FACT, Report
from vemgr.compare.statistics import Estimate
from vemgr.compare.style import STYLE
from vemgr.compare.summary import Cell, Row, losses, rows, usable
from vemgr.compare.table import TCG

_METHOD = """All kinds do a work directly one after the other, in an order that is drawn anew each time; when all works
are done once the next round begins. The first round warms up and does not count. A figure is the median of its runs,
with the interval that holds it with 95 % confidence (bootstrap). A run during which the hypervisor took CPU time, or
others made our tasks wait, is invalid and done again; it is never part of a median. Starts are cold: nothing is made
beforehand or pooled, but for what each kind shares between its instances, such as a guest's image."""


_NEAR = plots.Axis(0.7, 1.3, logarithmic=False)
_APART = ("consolidation", "isolation")  # which have plots of their own


class _Page:
    def __init__(self, report: Report) -> None:
        self.report, self.rows, self.columns = report, rows(report), usable(report)
        known = [column.name for column in report.header.columns]
        self.series = {column.name: known.index(column.name) for column in self.columns}
        self.labels = {column.name: column.name + (" (TCG)" if column.emulated else "") for column in self.columns}
        self.emulated = any(column.emulated for column in self.columns)

    def figure(self, name: str) -> Row | None:
        return next((row for row in self.rows if row.figure.name == name), None)


def render(report: Report) -> str:
    page = _Page(report)
    sections = [_facts(page), _lost(page), _ratios(page), _starts(page), _density(page), _consolidation(page),
                _isolation(page), _tables(page), _absent(page), _published(page),
                f"<section><h2>Method</h2><p>{_METHOD}</p></section>"]
    title = f"vemgr compare, {report.header.started}"
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<style>{STYLE}</style></head>\n<body><main><h1>The same work under each kind of virtualization</h1>\n"
            + "\n".join(section for section in sections if section) + "\n</main></body></html>\n")


def _facts(page: _Page) -> str:
    header = page.report.header
    facts = {"vemgr": header.vemgr, "started": header.started, **header.environment, "template": header.template,
             "each instance": f"{header.cpus} CPU{'s' * (header.cpus > 1)}, {header.memory >> 20} MiB",
             "noise bound": f"{header.noise:.0%}"}
    rows_ = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts.items())
    kinds = "".join(
        f'<li class="c{page.series[column.name] % plots.COLOURS}">{_swatch(page.series[column.name])}<b>'
        f"{escape(page.labels[column.name])}</b> {escape(column.label)}</li>" for column in page.columns)
    warnings = []
    if page.emulated:
        warnings.append(TCG)
    if not page.report.complete:
        warnings.append("Not complete: it was interrupted, or time was short")
    said = "".join(f'<p class="warning">{escape(warning)}</p>' for warning in warnings)
    return (f'<ul class="legend">{kinds}</ul>{said}'
            f'<details open><summary>Where this was measured</summary><table class="facts">{rows_}</table></details>')


def _swatch(series: int) -> str:
    return f'<svg class="swatch" viewBox="0 0 16 16" aria-hidden="true">{plots.symbol(series, 8, 8)}</svg>'


def _lost(page: _Page) -> str:
    found = "".join(f"<li>{escape(loss.row.figure.title)}: {digits(loss.speed.value)} of {escape(page.labels[loss.to])}"
                    f" <small>({digits(loss.speed.low)} to {digits(loss.speed.high)})</small></li>"
                    for loss in losses(page.report, page.rows))
    if "ve" not in page.series:
        return ""
    return ("<section><h2>Where a VE loses</h2>"
            + (f'<ul class="losses">{found}</ul>' if found else "<p>Nowhere beyond chance.</p>") + "</section>")


def _plot(page: _Page, title: str, explanation: str, *svgs: str) -> str:
    tcg = f'<p class="warning">{TCG}</p>' if page.emulated else ""
    legend = "".join(f'<span class="c{number % plots.COLOURS}">{_swatch(number)}{escape(page.labels[name])}</span>'
                     for name, number in page.series.items())
    return (f'<section><h2>{escape(title)}</h2><p>{escape(explanation)}</p><figure><div class="keys">{legend}</div>'
            f'<div class="plots">{"".join(svgs)}</div>{tcg}</figure></section>')


def _ratios(page: _Page) -> str:
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


def _speeds(page: _Page, row: Row) -> list[Mark]:
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


def _starts(page: _Page) -> str:
    svgs = []
    for name in ("start.first", "start.up", "start.stop"):
        row = page.figure(name)
        found = [(each, cell.estimate) for each, cell in row.cells.items() if cell.estimate] if row else []
        if row and found:
            series = [(page.series[each], page.labels[each], page.report.values(name, each)) for each, _ in found]
            svgs.append(f"<h3>{escape(row.figure.title)}</h3>"
                        + plots.strips(series, [estimate for _, estimate in found], row.figure.title, row.figure.unit))
    return _plot(page, "Start and stop", "Each dot is one start; the bar is the median.", *svgs) if svgs else ""


def _by_column(page: _Page, name: str) -> tuple[Row, list[Line]] | None:
    row = page.figure(name)
    lines = [Line(page.labels[each], [_absolute(page, row, each, cell.estimate)])
             for each, cell in row.cells.items() if cell.estimate] if row else []
    return (row, lines) if row and lines else None


def _absolute(page: _Page, row: Row, column: str, found: Estimate) -> Mark:
    text = with_unit(found.value, row.figure.unit)
    return Mark(page.series[column], found, f"{page.labels[column]}: {text}, n = {found.count}", text)


def _density(page: _Page) -> str:
    svgs = []
    for name in ("density.memory", "density.per-gib", "density.disk"):
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


def _consolidation(page: _Page) -> str:
    svgs = []
    for what, title, unit in (("total", "All together", "transactions a second"),
                              ("each", "The slowest instance", "transactions a second"),
                              ("p99", "99th percentile of a transaction", "µs")):
        found = {row.figure.name.split(".")[1]: row for row in page.rows
                 if row.work.name == "consolidation" and row.figure.name.endswith(f".{what}")}
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


def _isolation(page: _Page) -> str:
    lines = []
    for row in page.rows:
        marks = [_absolute(page, row, name, cell.estimate) for name, cell in row.cells.items() if cell.estimate]
        if row.work.name == "isolation" and marks:
            lines.append(Line(row.figure.title, marks))
    if not lines:
        return ""
    axis = plots.linear([1.0, *(mark.found.high for line in lines for mark in line.marks)])
    return _plot(page, "Isolation", "What a good instance does beside a bad one, as a share of what it does alone.",
                 plots.lanes(lines, axis, "performance beside a bad neighbour", "share of its performance alone",
                             reference=1))


def _tables(page: _Page) -> str:
    parts = []
    for group, members in groupby(page.rows, key=lambda row: row.work.group):
        body = "".join(_row(page, row) for row in members if any(cell.estimate for cell in row.cells.values()))
        if body:
            head = "".join(f"<th>{escape(label)}</th>" for label in page.labels.values())
            parts.append(f'<h3>{escape(group)}</h3><div class="wide"><table class="figures"><thead><tr><th></th>{head}'
                         f"</tr></thead><tbody>{body}</tbody></table></div>")
    tcg = f'<p class="warning">{TCG}</p>' if page.emulated else ""
    return ("<section><h2>All figures</h2><p>Medians; below them the interval, and the share of the host's performance."
            f"</p>{''.join(parts)}{tcg}</section>")


def _row(page: _Page, row: Row) -> str:
    cells = "".join(_cell(row, row.cells[name]) for name in page.series)
    better = f"{row.figure.better} is better"
    return f"<tr><th>{escape(row.figure.title)}<small>{better}</small></th>{cells}</tr>"


def _cell(row: Row, cell: Cell) -> str:
    if cell.estimate is None:
        return f'<td class="none" title="{escape(cell.why)}">-</td>'
    facts = [interval(cell.estimate, row.figure.unit) if cell.estimate.count > 1 else "one run"]
    if row.figure.unit == FACT:
        facts = []
    if cell.speed:
        facts.append(f"{digits(cell.speed.value)} of the host")
    if cell.estimate.count < row.work.rounds or cell.invalid or cell.failed:
        facts.append(", ".join([f"n = {cell.estimate.count}", *([f"{cell.invalid} invalid"] * bool(cell.invalid)),
                                *([f"{cell.failed} failed"] * bool(cell.failed))]))
    small = "".join(f"<small>{escape(fact)}</small>" for fact in facts)
    return f"<td>{escape(with_unit(cell.estimate.value, row.figure.unit))}{small}</td>"


def _absent(page: _Page) -> str:
    def items() -> Iterator[str]:
        for column in page.report.header.columns:
            if column.why:
                yield f"<li><b>{escape(column.name)}</b>: {escape(column.why)}</li>"
        whys: dict[tuple[str, str], list[str]] = {}
        for row in page.rows:
            for name, cell in row.cells.items():
                if cell.estimate is None and name not in whys.setdefault((row.work.title, cell.why), []):
                    whys[row.work.title, cell.why].append(name)
        for (title, why), names in whys.items():
            if names:
                yield f"<li><b>{escape(title)}</b> ({escape(', '.join(names))}): {escape(why)}</li>"

    found = "".join(items())
    return f"<section><h2>Not measured</h2><ul>{found}</ul></section>" if found else ""


def _published(page: _Page) -> str:
    lines = []
    for row in page.rows:
        published = FELTER.get(row.figure.name)
        if published:
            ours = row.cells["ve"].speed if "ve" in row.cells else None
            values: Sequence[float | None] = (published.container, published.kvm, ours.value if ours else None)
            cells = "".join(f"<td>{f'{each:.2f}' if each is not None else '-'}</td>" for each in values)
            lines.append(f"<tr><th>{escape(row.figure.title)}<small>{escape(published.program)}</small></th>{cells}</tr>")
    if not lines:
        return ""
    return ('<section><h2>Published figures</h2><p>As a share of the bare machine\'s performance. '
            f'{escape(SOURCE)}.</p><div class="wide"><table class="figures"><thead><tr><th></th><th>container</th>'
            f"<th>KVM</th><th>our VE</th></tr></thead><tbody>{''.join(lines)}</tbody></table></div></section>")
