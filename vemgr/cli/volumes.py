# SPDX-License-Identifier: GPL-2.0-or-later
"""`vemgr volume ...`"""

from __future__ import annotations

from typing import Any

import click

from vemgr.cli import completion, tables
from vemgr.cli.files import connected
from vemgr.core.resources import format_size

_size = click.option("--size", metavar="SIZE", help="What all in it may take: 10G, or 'unlimited'.")
_inodes = click.option("--inodes", metavar="N", help="How many files and directories, or 'unlimited'.")


@click.group()
def volume() -> None:
    """Directories that VEs mount ('--mount NAME:DST') and that outlive them."""


@volume.command()
@click.argument("name")
@_size
@_inodes
@click.pass_context
def create(context: click.Context, name: str, size: str | None, inodes: str | None) -> None:
    """Make a volume."""
    connected(context).call("CreateVolume", {"name": name, **_given(size, inodes)})


@volume.command("set")
@click.argument("name", shell_complete=completion.volumes)
@_size
@_inodes
@click.pass_context
def set_(context: click.Context, name: str, size: str | None, inodes: str | None) -> None:
    """Change what a volume may take, at once."""
    connected(context).call("SetVolume", {"name": name, **_given(size, inodes)})


@volume.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def list_(context: click.Context, as_json: bool) -> None:
    """The volumes, what is in them, and the VEs that have them."""
    found = connected(context).call("ListVolumes")["volumes"]
    if as_json:
        tables.as_json(found)
    else:
        tables.table([{**each, **_sizes(each)} for each in found], ("name", "size", "used", "inodes", "files", "users"))


@volume.command()
@click.argument("name", shell_complete=completion.volumes)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def show(context: click.Context, name: str, as_json: bool) -> None:
    """One volume."""
    found = connected(context).call("ShowVolume", {"name": name})
    if as_json:
        tables.as_json(found)
    else:
        tables.fields(list({**found, **_sizes(found)}.items()))


@volume.command()
@click.argument("name", shell_complete=completion.volumes)
@click.pass_context
def remove(context: click.Context, name: str) -> None:
    """Remove a volume that no VE has, with all that is in it."""
    connected(context).call("RemoveVolume", {"name": name})


def _given(size: str | None, inodes: str | None) -> dict[str, str]:
    return {key: text for key, text in (("size", size), ("inodes", inodes)) if text is not None}


def _sizes(found: dict[str, Any]) -> dict[str, str]:
    """As people read them; "" for what is not limited, or not counted."""
    return {key: "" if found[key] is None else format_size(found[key]) for key in ("size", "used")}
