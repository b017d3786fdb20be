# SPDX-License-Identifier: GPL-2.0-or-later
"""`vemgr group ...`"""

from __future__ import annotations

import click

from vemgr.cli import completion, tables
from vemgr.cli.files import connected
from vemgr.cli.options import given, json_option, setting_options_of
from vemgr.cli.scheduler import show_amount
from vemgr.core.config import BY_KEY
from vemgr.core.groups import GROUP_KEYS

_COLUMNS = ("cpus", "cpu-guarantee", "memory", "memory-guarantee")

_name = click.argument("name", shell_complete=completion.groups)
_options = setting_options_of([BY_KEY[key] for key in GROUP_KEYS])


@click.group()
def group() -> None:
    """VEs that have limits, guarantees and weights together."""


@group.command()
@click.argument("name")
@click.option("--parent", default="", metavar="NAME", help="The group that it is in.",
              shell_complete=completion.groups)
@_options
@click.pass_context
def create(context: click.Context, /, name: str, parent: str, **options: str | None) -> None:
    """Define a group; VEs are put in it by their setting 'group'."""
    connected(context).call("CreateGroup", {"name": name, "parent": parent, "settings": given(options)})


@group.command("set")
@_name
@_options
@click.pass_context
def set_(context: click.Context, /, name: str, **options: str | None) -> None:
    """Change a group, live; 'default' takes a setting back."""
    settings = given(options)
    if not settings:
        raise click.UsageError("say what to set")
    connected(context).call("SetGroup", {"name": name, "settings": settings})


@group.command()
@_name
@click.pass_context
def remove(context: click.Context, name: str) -> None:
    """Remove a group that nothing is in."""
    connected(context).call("RemoveGroup", {"name": name})


@group.command("list")
@json_option
@click.pass_context
def list_(context: click.Context, as_json: bool) -> None:
    """The groups."""
    found = connected(context).call("ListGroups")["groups"]
    if as_json:
        tables.as_json(found)
        return
    more = [column for column in ("parent",) if any(each[column] for each in found)]
    tables.table([{**each, **each["settings"], "ves": len(each["ves"]), "running": len(each["running"])}
                  for each in found], ("name", *more, "ves", "running", *_COLUMNS))


@group.command()
@_name
@json_option
@click.pass_context
def show(context: click.Context, name: str, as_json: bool) -> None:
    """A group: its settings, its VEs, what they use and were promised, and what of it can still be."""
    found = connected(context).call("ShowGroup", {"name": name})
    if as_json:
        tables.as_json(found)
        return
    lines = [("name", found["name"])]
    if found["parent"]:
        lines.append(("in group", found["parent"]))
    for key, text in found["settings"].items():
        in_force = found["inForce"].get(key, text)
        # What VEs in it were promised is protected for the group too, and a weight follows from guarantees.
        differs = in_force != text and key not in ("cpu-weight", "memory-guarantee")
        lines.append((key, f"{text} (in force: {in_force})" if differs else text))
    lines += [("VEs", " ".join(found["ves"])), ("running", " ".join(found["running"]))]
    usage = found["usage"]
    for label, key in (("memory used", "memory_current"), ("processes", "pids_current")):
        if key in usage:
            lines.append((label, f"{usage[key] // 1024}K" if key.startswith("memory") else str(usage[key])))
    if "cpu_usec" in usage:
        lines.append(("cpu time", f"{usage['cpu_usec'] / 1e6:.2f} s"))
    tables.fields(lines)
    click.echo()
    tables.table([{"resource": row["resource"], **{key: show_amount(row["resource"], row[key])
                                                   for key in ("claimed", "promised", "free")},
                   "to": ", ".join(f"{each['ve']} {show_amount(row['resource'], each['amount'])}"
                                   for each in row["holders"])}
                  for row in found["resources"]], ("resource", "claimed", "promised", "free", "to"))
