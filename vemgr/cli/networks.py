# SPDX-License-Identifier: GPL-2.0-or-later
"""`vemgr network ...`"""

from __future__ import annotations

import click

from vemgr.api.client import Client
from vemgr.api.location import DEFAULT_PATH
from vemgr.cli import connection, tables


def _client(context: click.Context) -> Client:
    return connection.connect(context.find_object(str) or DEFAULT_PATH)


@click.group()
def network() -> None:
    """The networks of this host, which are described in vemgr.toml."""


@network.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def list_(context: click.Context, as_json: bool) -> None:
    """The networks, with their subnets."""
    found = _client(context).call("GetHost")["networks"]
    if as_json:
        tables.as_json(found)
    else:
        tables.table(found, ("name", "bridge", "mode", "subnet", "subnet6"))


@network.command()
@click.pass_context
def restore(context: click.Context) -> None:
    """Put bridges and firewall rules right that somebody else has changed or deleted."""
    _client(context).call("RestoreNetwork")
