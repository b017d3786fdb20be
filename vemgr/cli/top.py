# SPDX-License-Identifier: GPL-2.0-or-later
"""`vemgr top`: what VEs are doing, live."""

from __future__ import annotations

import os
import sys

import click

from vemgr.api.location import DEFAULT_PATH
from vemgr.cli import connection

_ORDERS = {"cpu": "c", "memory": "m", "io": "i", "network": "n", "processes": "p"}


@click.command()
@click.option("-b", "--batch", is_flag=True, help="Plain lines, for a file or a pipe.")
@click.option("--once", is_flag=True, help="The same, once.")
@click.option("-d", "--interval", type=click.FloatRange(0.1, 3600), default=2.0, show_default=True, metavar="SECONDS",
              help="How long each look takes.")
@click.option("--sort", type=click.Choice(list(_ORDERS)), default="cpu", show_default=True, help="What comes first.")
@click.pass_context
def top(context: click.Context, batch: bool, once: bool, interval: float, sort: str) -> None:
    """What VEs are doing, live. Keys: c, m, i, n and p sort, q ends."""
    if not (batch or once or (os.isatty(0) and os.isatty(1))):
        raise click.UsageError("this is no terminal: say --batch or --once")
    from vemgr.cli import monitor  # noqa: PLC0415  (which no other verb needs)

    source = monitor.Source(lambda: connection.connect(context.find_object(str) or DEFAULT_PATH))
    if batch or once:
        monitor.print_looks(source, interval, _ORDERS[sort], once=once)
    else:
        sys.exit(monitor.watch(source, interval, _ORDERS[sort]))
