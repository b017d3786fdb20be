# SPDX-License-Identifier: GPL-2.0-or-later
"""`vemgr clone`, `vemgr rename` and `vemgr template create`: what is made of a stopped VE."""

from __future__ import annotations

import click

from vemgr.cli import completion
from vemgr.cli.files import connected, hold

_stopped = completion.ves("stopped")


@click.command()
@click.argument("name", shell_complete=_stopped)
@click.argument("new")
@click.pass_context
def clone(context: click.Context, name: str, new: str) -> None:
    """Make another VE with the settings and data of a stopped one."""
    with hold() as held:
        connected(context).call("Clone", {"name": name, "new": new, "hold": 0}, [held])


@click.command()
@click.argument("name", shell_complete=_stopped)
@click.argument("new")
@click.pass_context
def rename(context: click.Context, name: str, new: str) -> None:
    """Give a stopped VE another name."""
    connected(context).call("Rename", {"name": name, "new": new})


@click.command("create")
@click.argument("name")
@click.option("--from", "ve", required=True, metavar="VE", shell_complete=_stopped, help="The VE, stopped.")
@click.option("--description", default="", help="A line for people.")
@click.pass_context
def create_template(context: click.Context, name: str, ve: str, description: str) -> None:
    """Make a template of a VE's data and of the template that it stands on."""
    with hold() as held:
        connected(context).call("CreateTemplate", {
            "name": name, "ve": ve, "description": description or f"made of VE {ve}", "hold": 0}, [held])
