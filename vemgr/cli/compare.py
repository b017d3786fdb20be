# SPDX-License-Identifier: GPL-2.0-or-later
"""`vemgr compare ...`; imported when it is asked for (main.py), as no other verb needs any of it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from vemgr.api.location import DEFAULT_PATH, load_config
from vemgr.cli import connection, tables
from vemgr.compare import drivers as registry
from vemgr.compare import stage
from vemgr.compare.driver import Context
from vemgr.core.errors import VemgrError

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
uri_option = click.option("--uri", default="", metavar="URI",
                          help="Connection of libvirt for the guests, instead of the one that is found.")


@click.group()
def compare() -> None:
    """The same work under every kind of virtualization that this host can run."""


def context_of(context: click.Context, *, template: str = "", uri: str = "") -> Context:
    """What drivers are made with. Starts the daemon where that is ours to do, and then takes this process into a mount
    namespace where that is what runtimes need."""
    config = context.find_object(str) or DEFAULT_PATH
    with contextlib.suppress(VemgrError):  # the driver 've' says why, and the others need no daemon
        connection.connect(config).close()
    with contextlib.suppress(VemgrError, OSError):  # those that need it say that they cannot start
        stage.enter()
    return Context(Path(load_config(config).state_dir) / "compare", config, template, uri)


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
        why = driver.probe()
        rows.append({"name": name, "label": driver.label, "available": not why, "why": why})
    if as_json:
        tables.as_json(rows)
    else:
        tables.table([{**row, "available": "yes" if row["available"] else f"no: {row['why']}"} for row in rows],
                     ("name", "label", "available"))
