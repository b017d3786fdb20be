# SPDX-License-Identifier: GPL-2.0-or-later
"""`vemgr profile ...`"""

from __future__ import annotations

import click

from vemgr.cli import tables
from vemgr.cli.files import connected
from vemgr.core.errors import BadValue


@click.group()
def profile() -> None:
    """Settings under a name, for 'create --profile NAME'."""


@profile.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def list_(context: click.Context, as_json: bool) -> None:
    """The profiles, with their settings or why they cannot be used."""
    found = connected(context).call("ListProfiles")["profiles"]
    if as_json:
        tables.as_json(found)
    else:
        tables.table([{"name": each["name"], "settings": each["error"] or " ".join(
            f"{key}={text}" for key, text in each["settings"].items())} for each in found], ("name", "settings"))


@profile.command()
@click.argument("name")
@click.pass_context
def show(context: click.Context, name: str) -> None:
    """The settings of a profile."""
    found = {each["name"]: each for each in connected(context).call("ListProfiles")["profiles"]}
    if name not in found or found[name]["error"]:
        raise BadValue("profile", name, found[name]["error"] if name in found else "there is none of this name")
    tables.fields(list(found[name]["settings"].items()))
