# SPDX-License-Identifier: GPL-2.0-or-later
"""The report as plain text: the host first, then figures, then what is missing and who loses."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from vemgr.compare.report.literature import FELTER, SOURCE
from vemgr.compare.report.numbers import digits, with_unit
from vemgr.compare.report.summary import HOST, Cell, Row, heading, losses, rows, usable, warmth
from vemgr.compare.schema import Report
from vemgr.compare.statistics import LEAST_RUNS

TCG = "TCG: software emulation, not hardware virtualization"

INCOMPLETE = {True: "five minutes were too short for all rounds; n is of how many runs a figure is",
              False: "it was interrupted; --resume goes on"}


def render(report: Report) -> str:
    found = rows(report)
    parts = [_head(report), *_tables(report, found), _absent(report, found), _lost(report, found), _published(found)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(report: Report) -> str:
    header = report.header
    facts = {"vemgr": header.vemgr, "started": header.started, **header.environment, "template": header.template,
             "each instance": f"{header.cpus} CPUs, {header.memory >> 20} MiB",
             "a run is invalid": f"above {header.noise:.0%} of steal, or of waiting for a CPU where one process works"}
    width = max(map(len, facts))
    lines = [f"{name:<{width}}  {value}" for name, value in facts.items()]
    if not report.complete:
        lines.append(f"NOT COMPLETE: {INCOMPLETE[header.quick]}")
    return "\n".join(lines)


def _tables(report: Report, found: list[Row]) -> Iterator[str]:
    """One for each group. A cell: the median, and in brackets its share of the host's performance."""
    columns = usable(report)
    for group, members in groupby(found, key=lambda row: row.work.group):
        rows_ = [row for row in members if any(cell.estimate for cell in row.cells.values())]
        if not rows_:
            continue
        head = [group.upper(), *(heading(column, group) for column in columns)]
        lines = [head, *([row.figure.title, *(_cell(row, row.cells[column.name]) for column in columns)]
                         for row in rows_)]
        notes = [TCG] * any(column.emulated for column in columns) + [warmth(columns, group)]
        yield "\n".join([_aligned(lines), *filter(None, notes)])


def _cell(row: Row, cell: Cell) -> str:
    if cell.estimate is None:
        return "-"
    text = with_unit(cell.estimate.value, row.figure.unit)
    if cell.speed:
        text += f" ({digits(cell.speed.value)})"
    if cell.invalid or cell.failed or cell.estimate.count < row.work.rounds:
        text += f" n={cell.estimate.count}"
    return text


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(len(line[position]) for line in lines) for position in range(len(lines[0]))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
                     for line in lines)


def _absent(report: Report, found: list[Row]) -> str:
    lines = [f"{column.name}: {column.why}" for column in report.header.columns if column.why]
    said = dict.fromkeys((row.work.name, name, cell.why) for row in found for name, cell in row.cells.items()
                         if cell.estimate is None)
    whys: dict[tuple[str, str], list[str]] = {}
    for work, name, why in said:
        whys.setdefault((work, why), []).append(name)
    lines += [f"{work} ({', '.join(names)}): {why}" for (work, why), names in whys.items()]
    return "NOT MEASURED\n" + "\n".join(lines) if lines else ""


def _lost(report: Report, found: list[Row]) -> str:
    lines = [f"{loss.row.work.group}, {loss.row.figure.title}: {loss.speed.value:.2f} of {loss.to} "
             f"({loss.speed.low:.2f} to {loss.speed.high:.2f})" for loss in losses(report, found)]
    return f"WHERE A VE LOSES, beyond chance ({LEAST_RUNS} runs and more)\n" + "\n".join(lines) if lines else ""


def _published(found: list[Row]) -> str:
    lines = [["PUBLISHED, as a share of the bare machine's", "container", "KVM", "our VE"]]
    for row in found:
        published = FELTER.get(row.figure.name)
        ours = row.cells["ve"].speed if "ve" in row.cells else None
        if published:
            lines.append([f"{row.figure.title}: {published.program}", *(
                f"{each:.2f}" if each is not None else "-"
                for each in (published.container, published.kvm, ours.value if ours else None))])
    return f"{_aligned(lines)}\n{SOURCE}" if len(lines) > 1 and HOST in {n for row in found for n in row.cells} else ""
