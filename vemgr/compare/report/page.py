# SPDX-License-Identifier: GPL-2.0-or-later
"""The report as one HTML page that needs nothing else: no network, no script, light or dark as the reader's desk is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby

from vemgr.compare.report import pictures, plots
from vemgr.compare.report.literature import FELTER, SOURCE
from vemgr.compare.report.numbers import digits, interval, with_unit
from vemgr.compare.report.pictures import Seen
from vemgr.compare.report.style import STYLE
from vemgr.compare.report.summary import Cell, Row, heading, losses, warmth
from vemgr.compare.report.table import INCOMPLETE, TCG
from vemgr.compare.schema import FACT, Report
from vemgr.compare.statistics import LEAST_RUNS

_METHOD = """All kinds do a work directly one after the other, in an order that is drawn anew each time; when all works
are done once the next round begins. The first round warms up and does not count. A figure is the median of its runs,
with the interval that holds it with 95 % confidence (bootstrap). A run during which the hypervisor took CPU time, or
others made our tasks wait, is invalid and done again; it is never part of a median. Starts are cold: nothing is made
beforehand or pooled, but for what each kind shares between its instances, such as a guest's image."""


def render(report: Report) -> str:
    page = Seen(report)
    sections = [_facts(page), _lost(page), *pictures.all_plots(page), _tables(page), _absent(page), _published(page),
                f"<section><h2>Method</h2><p>{_METHOD}</p></section>"]
    title = f"vemgr compare, {report.header.started}"
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<style>{STYLE}</style></head>\n<body><main><h1>The same work under each kind of virtualization</h1>\n"
            + "\n".join(section for section in sections if section) + "\n</main></body></html>\n")


def _facts(page: Seen) -> str:
    header = page.report.header
    facts = {"vemgr": header.vemgr, "started": header.started, **header.environment, "template": header.template,
             "each instance": f"{header.cpus} CPU{'s' * (header.cpus > 1)}, {header.memory >> 20} MiB",
             "noise bound": f"{header.noise:.0%}"}
    rows_ = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts.items())
    kinds = "".join(
        f'<li class="c{page.series[column.name] % plots.COLOURS}">{pictures.swatch(page.series[column.name])}<b>'
        f"{escape(page.labels[column.name])}</b> {escape(column.label)}</li>" for column in page.columns)
    warnings = []
    if page.emulated:
        warnings.append(TCG)
    if not page.report.complete:
        warnings.append(f"Not complete: {INCOMPLETE[header.quick]}")
    said = "".join(f'<p class="warning">{escape(warning)}</p>' for warning in warnings)
    return (f'<ul class="legend">{kinds}</ul>{said}'
            f'<details open><summary>Where this was measured</summary><table class="facts">{rows_}</table></details>')


def _lost(page: Seen) -> str:
    found = "".join(
        f"<li>{escape(loss.row.work.group)}, {escape(loss.row.figure.title)}: {digits(loss.speed.value)} of "
        f"{escape(loss.to)} <small>({digits(loss.speed.low)} to {digits(loss.speed.high)})</small></li>"
        for loss in losses(page.report, page.rows))
    if "ve" not in page.series:
        return ""
    nowhere = f"<p>Nowhere beyond chance, as far as {LEAST_RUNS} runs or more tell.</p>"
    return f"<section><h2>Where a VE loses</h2>{f'<ul>{found}</ul>' if found else nowhere}</section>"


def _tables(page: Seen) -> str:
    parts = []
    for group, members in groupby(page.rows, key=lambda row: row.work.group):
        body = "".join(_row(page, row) for row in members if any(cell.estimate for cell in row.cells.values()))
        if body:
            head = "".join(f"<th>{escape(heading(column, group))}</th>" for column in page.columns)
            parts.append(f'<h3>{escape(group)}</h3><div class="wide"><table class="figures"><thead><tr><th></th>{head}'
                         f"</tr></thead><tbody>{body}</tbody></table></div>")
            if said := warmth(page.columns, group):
                parts.append(f'<p class="warning">{escape(said)}</p>')
    tcg = f'<p class="warning">{TCG}</p>' if page.emulated else ""
    return ("<section><h2>All figures</h2><p>Medians; below them the interval, and the share of the host's performance."
            f"</p>{''.join(parts)}{tcg}</section>")


def _row(page: Seen, row: Row) -> str:
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


def _absent(page: Seen) -> str:
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


def _published(page: Seen) -> str:
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
