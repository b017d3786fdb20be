# SPDX-License-Identifier: GPL-2.0-or-later
"""`vemgr list`, `show` and `host`."""

from __future__ import annotations

from typing import Any

import click

from vemgr.cli import tables
from vemgr.cli.files import connected
from vemgr.cli.lifecycle import for_each
from vemgr.cli.options import json_option, names_argument


@click.command("list")
@json_option
@click.option("--running", is_flag=True, help="Only those that run.")
@click.pass_context
def list_(context: click.Context, as_json: bool, running: bool) -> None:
    """All VEs."""
    ves = [ve for ve in connected(context).call("List")["ves"] if not running or ve["state"] != "stopped"]
    if as_json:
        tables.as_json(ves)
    else:
        for ve in ves:
            ve["address"] = ", ".join(filter(None, (ve["address"], ve["address6"])))
        # Columns that few hosts fill.
        more = [column for column in ("group", "publish") if any(ve[column] for ve in ves)]
        tables.table(ves, ("name", "state", "template", "address", *more, "pid"))


@click.command()
@names_argument()
@json_option
@click.pass_context
def show(context: click.Context, names: tuple[str, ...], as_json: bool) -> None:
    """Everything about VEs; limits as read back from the kernel."""
    found: dict[str, dict[str, Any]] = {}
    try:
        for_each(context, names, lambda c, name: found.update({name: c.call("Show", {"name": name})}))
    finally:  # those that there are, even if another is not
        details = [found[name] for name in dict.fromkeys(names) if name in found]
        if as_json and len(names) > 1:
            tables.as_json(details)
        elif as_json and details:
            tables.as_json(details[0])
        elif details:
            tables.paragraphs([_lines(each) for each in details])


def _lines(details: dict[str, Any]) -> list[tuple[str, Any]]:
    lines = [(key, details[key]) for key in ("name", "state", "template", "hostname", "pid", "created")]
    if details["state"] == "running" and not details["ready"]:
        lines[1] = ("state", "running (coming up)")
    in_use = {link["interface"]: link for link in details["networkInUse"]}
    for link in details["network"]:
        name = link["interface"]
        used = in_use.pop(name, link)
        lines.append((name, _link(link) if used == link else f"{_link(link)} (in use: {_link(used)})"))
    lines += [(name, f"- (in use: {_link(link)})") for name, link in in_use.items()]
    if details["lastExit"]:
        lines.append(("last exit", details["lastExit"]))
    if details["restarts"]:
        lines.append(("restarts", f"{details['restarts']}{_restart(details)}"))
    lines.append(("ids", f"{details['idBase']} to {details['idBase'] + 65535}"))
    for key, text in details["settings"].items():
        if key in ("hostname", "address", "mac"):
            continue
        in_force = details["inForce"].get(key)
        differs = in_force is not None and in_force != text
        lines.append((key, f"{text} (in force: {in_force})" if differs else text))
    lines.append(("disk by", details["diskBy"]))
    if details["view"]:
        lines.append(("view of memory and CPUs by", details["view"]))
    usage = details["usage"]
    for label, key in (("memory used", "memory_current"), ("processes", "pids_current")):
        if key in usage:
            lines.append((label, f"{usage[key] // 1024}K" if key.startswith("memory") else usage[key]))
    if "cpu_stat.usage_usec" in usage:
        lines.append(("cpu time", f"{usage['cpu_stat.usage_usec'] / 1e6:.2f} s"))
    return lines


def _restart(details: dict[str, Any]) -> str:
    if details["givenUp"]:
        return ", given up"
    return f", next in {details['restartIn']} s" if details["restartIn"] >= 0 else ""


def _link(link: dict[str, str]) -> str:
    return " ".join(filter(None, (link["address"], link["address6"], link["mac"], f"on {link['network']}")))


@click.command()
@json_option
@click.pass_context
def host(context: click.Context, as_json: bool) -> None:
    """What this host can enforce, and where things are."""
    found = connected(context).call("GetHost")
    if as_json:
        tables.as_json(found)
    else:
        found["controllers"] = found["controllers"] or "none: limits are refused"
        del found["networks"]  # 'vemgr network list' shows them
        tables.fields(list(found.items()))
