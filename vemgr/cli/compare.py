# SPDX-License-Identifier: GPL-2.0-or-later
"""`vemgr compare ...`; imported when it is asked for (main.py), as no other verb needs any of it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from vemgr.api.location import DEFAULT_PATH, load_config
from vemgr.cli import completion, connection, tables
from vemgr.compare import drivers as registry
from vemgr.compare import stage
from vemgr.compare.driver import Context
from vemgr.core.errors import VemgrError

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
uri_option = click.option("--uri", default="", metavar="URI",
                          help="Connection of libvirt for the guests, instead of the one that is found.")


class _RunsUnlessTold(click.Group):
    """`vemgr compare --quick` is `vemgr compare run --quick`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ("-h", "--help")):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_RunsUnlessTold)
def compare() -> None:
    """The same work under every kind of virtualization that this host can run."""


def directory_of(context: click.Context) -> Path:
    """Where images, journals and the kernel of the guests are."""
    return Path(load_config(context.find_object(str) or DEFAULT_PATH).state_dir) / "compare"


def context_of(context: click.Context, *, template: str = "", uri: str = "") -> Context:
    """What drivers are made with. Starts the daemon where that is ours to do, and then takes this process into a mount
    namespace where that is what runtimes need."""
    config = context.find_object(str) or DEFAULT_PATH
    directory = directory_of(context)
    with contextlib.suppress(VemgrError):  # the driver 've' says why, and the others need no daemon
        connection.connect(config).close()
    with contextlib.suppress(VemgrError, OSError):  # those that need it say that they cannot start
        stage.enter()
    return Context(directory, config, template, uri)


@compare.command()
@click.pass_context
def kernel(context: click.Context) -> None:
    """Fetch a kernel for the guests, where this host has none with the modules they need."""
    from vemgr.compare.guests import kernel as kernels  # noqa: PLC0415

    directory = directory_of(context)
    click.echo(f"kernel {kernels.fetch(directory)} is in {directory / 'kernel'}")


@compare.command()
@json_option
@uri_option
@click.pass_context
def drivers(context: click.Context, as_json: bool, uri: str) -> None:
    """What can be compared here, and why the rest cannot."""
    made_with = context_of(context, uri=uri)
    rows = []
    for name in registry.NAMES:
        driver = registry.driver(name, made_with)
        try:
            why = driver.probe()
        finally:
            driver.close()
        rows.append({"name": name, "label": driver.label, "available": not why, "why": why})
    if as_json:
        tables.as_json(rows)
    else:
        tables.table([{**row, "available": "yes" if row["available"] else f"no: {row['why']}"} for row in rows],
                     ("name", "label", "available"))


@compare.command()
@click.option("--quick", is_flag=True, help="Less of it, in less than five minutes.")
@click.option("--driver", "chosen", multiple=True, metavar="NAME", help="Only these kinds; can be given several times.")
@click.option("--workload", "workloads", multiple=True, metavar="NAME",
              help="Only these works; can be given several times.")
@click.option("--repeat", type=click.IntRange(1, 1000), metavar="N", help="Count each work N times.")
@click.option("--template", default="", metavar="TEMPLATE", help="What the instances are made from.",
              shell_complete=completion.templates)
@click.option("--cpus", type=click.IntRange(1, 1024), default=1, show_default=True, metavar="N",
              help="CPUs of each instance.")
@click.option("--memory", default="512M", show_default=True, metavar="SIZE", help="Memory of each instance.")
@click.option("--noise", type=click.IntRange(1, 100), default=10, show_default=True, metavar="PERCENT",
              help="A run with more steal time, or waiting for CPUs, is invalid.")
@click.option("--seed", type=int, metavar="N", help="Of the order in which things are done.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              help="Where samples and reports go; a new directory here unless given.")
@click.option("--resume", is_flag=True, help="Go on with the interrupted run in --output.")
@uri_option
@click.pass_context
def run(context: click.Context, quick: bool, chosen: tuple[str, ...], workloads: tuple[str, ...], repeat: int | None,
        template: str, cpus: int, memory: str, noise: int, seed: int | None, output: Path | None, resume: bool,
        uri: str) -> None:
    """Measure, and write reports: what 'vemgr compare' does unless told otherwise."""
    from vemgr.cli import comparing  # noqa: PLC0415  (what measures is not for those who list or read)

    comparing.run(context_of(context, uri=uri), chosen, workloads, quick=quick, repeat=repeat, template=template,
                  cpus=cpus, memory=memory, noise=noise, seed=seed, output=output, resume=resume)


@compare.command()
@click.argument("first", type=click.Path(path_type=Path), metavar="A")
@click.argument("second", type=click.Path(path_type=Path), metavar="B")
@click.option("--all", "every", is_flag=True, help="Also what has not changed.")
def diff(first: Path, second: Path, every: bool) -> None:
    """What is worse in report B than in A, beyond their intervals; then the exit code is 1."""
    from vemgr.cli import comparing  # noqa: PLC0415

    comparing.diff(first, second, every=every)


@compare.command()
@click.argument("source", type=click.Path(path_type=Path), metavar="REPORT")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write the page there.")
def report(source: Path, html: Path | None) -> None:
    """Print the table of a report, or make its page anew."""
    from vemgr.cli import comparing  # noqa: PLC0415

    comparing.report(source, html)
