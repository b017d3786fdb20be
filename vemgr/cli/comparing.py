# SPDX-License-Identifier: GPL-2.0-or-later
"""What `vemgr compare run`, `diff` and `report` do; imported by them alone."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType

import click

from vemgr.api.location import load_config
from vemgr.cli import connection
from vemgr.compare import comparison, keeping, schema
from vemgr.compare.comparison import Wish
from vemgr.compare.driver import Context, Resources
from vemgr.compare.progress import Lines, Progress, Terminal
from vemgr.compare.report import difference, numbers, page, table
from vemgr.core.errors import BadValue
from vemgr.core.resources import parse_size

_LEAST_MEMORY = 256 << 20  # the largest work has 144 MiB, and a guest's kernel wants some
_REGRESSION = 1  # as diff(1) has it


def run(context: Context, drivers: tuple[str, ...], workloads: tuple[str, ...], *, quick: bool, repeat: int | None,
        template: str, cpus: int, memory: str, noise: int, seed: int | None, output: Path | None,
        resume: bool) -> None:
    amount = parse_size("--memory", memory, least=_LEAST_MEMORY)
    if amount is None:
        raise BadValue("--memory", memory, "a guest needs to know how much it has", remedy="say a size")
    if resume and output is None:
        raise click.UsageError("--resume goes on with a run: say which with --output")
    wish = Wish(output or Path(time.strftime("vemgr-compare-%Y%m%d-%H%M%S")), drivers, workloads,
                Resources(cpus, amount), repeat, quick, resume, noise / 100, seed)
    wish.check()
    if resume:
        template = comparison.begun_with(wish.output).template
    client = connection.connect(context.config)
    try:
        template = comparison.choose_template(client.call("ListTemplates")["templates"], template)
    finally:
        client.close()
    root = Path(load_config(context.config).state_dir) / "templates" / template / "rootfs"
    signal.signal(signal.SIGTERM, _interrupt)  # so that what runs is cleared away
    comparison.compare(wish, replace(context, template=template), root, _progress())


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _progress() -> Progress:
    return Terminal(sys.stdout) if sys.stdout.isatty() and os.environ.get("TERM") != "dumb" else Lines(sys.stdout)


def load(path: Path) -> schema.Report:
    """A report, or a directory that has one. Raises `BadValue`."""
    file = path / keeping.REPORT if path.is_dir() else path
    try:
        return schema.decode(file.read_bytes(), str(file))
    except OSError as error:
        raise BadValue("report", file, str(error.strerror).lower()) from error


def diff(first: Path, second: Path, *, every: bool) -> None:
    before, after = load(first), load(second)
    for circumstance in difference.other_circumstances(before, after):
        click.echo(f"not the same circumstances: {circumstance}", err=True)
    found = list(difference.changes(before, after))
    if not found:
        raise BadValue("report", second, f"it has no figure in common with {first}")
    for change in found:
        if every or change.verdict not in ("same", "new"):
            click.echo(_change(change))
    worse = sum(change.verdict in ("worse", "lost") for change in found)
    better = sum(change.verdict == "better" for change in found)
    few = sum(change.verdict == "few" for change in found)
    click.echo(f"{len(found)} figures: {worse} worse, {better} better, beyond their intervals"
               + f"; {few} of too few runs to say" * bool(few))
    if worse:
        sys.exit(_REGRESSION)


def _change(change: difference.Change) -> str:
    values = " -> ".join(
        f"{numbers.with_unit(each.value, change.figure.unit)} ({numbers.interval(each, change.figure.unit)})"
        if each else "nothing" for each in (change.before, change.after))
    factor = f", {change.factor:.2f} times" if change.factor else ""
    return f"{change.verdict:<6}  {change.driver}, {change.figure.title}: {values}{factor}"


def report(path: Path, html: Path | None) -> None:
    found = load(path)
    if html is None:
        click.echo(table.render(found), nl=False)
    else:
        with keeping.telling(html):
            html.write_text(page.render(found), encoding="utf-8")
