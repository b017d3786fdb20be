# SPDX-License-Identifier: GPL-2.0-or-later
"""`vemgr stats`: what VEs have of each resource."""

from __future__ import annotations

from typing import Any

import click

from vemgr.api.location import DEFAULT_PATH
from vemgr.cli import completion, connection, tables

_ABSENT = "n/a"
_SUFFIXES = ("", "K", "M", "G", "T")
#: What is told per second.
FLOWS = ("cpus", "io-read", "io-write", "iops-read", "iops-write", "net-in", "net-out")


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME...]", shell_complete=completion.ves())
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def stats(context: click.Context, names: tuple[str, ...], as_json: bool) -> None:
    """What VEs hold, held at most, may have, can count on, and how often they were refused."""
    client = connection.connect(context.find_object(str) or DEFAULT_PATH)
    found = client.call("GetStatistics", {"names": list(names)} if names else {})["ves"]
    if as_json:
        tables.as_json(found)
    else:
        rows = [_row(ve["name"], counter) for ve in found for counter in ve["counters"]]
        tables.table(rows, ("name", "resource", "held", "maxheld", "limit", "guarantee", "failcnt"))


def _row(name: str, counter: dict[str, Any]) -> dict[str, str]:
    resource, unit = counter["resource"], counter["unit"]

    def text(key: str, absent: str = "-") -> str:
        amount = counter.get(key)
        return absent if amount is None else shown(amount, unit)

    held, limit, guarantee = text("held", _ABSENT), text("limit"), text("guarantee")
    if resource in FLOWS:
        limit, guarantee = (_per_second(counter.get(key), unit) for key in ("limit", "guarantee"))
    return {"name": name, "resource": resource, "held": held, "maxheld": text("maxHeld"),
            "limit": "unlimited" if counter["unlimited"] else limit, "guarantee": guarantee,
            "failcnt": "-" if counter.get("failures") is None else str(counter["failures"])}


def _per_second(amount: int | None, unit: str) -> str:
    if amount is None:
        return "-"
    return f"{amount / 1e6:g}" if unit == "us" else f"{shown(amount, unit)}/s"  # CPUs: seconds in a second


def shown(amount: float, unit: str) -> str:
    """Short and readable: 12.5M, 3.02s, 17."""
    if unit == "us":
        return f"{amount / 1e6:.2f}s"
    if unit != "bytes":
        return f"{amount:.0f}"
    power = next((power for power in range(len(_SUFFIXES) - 1) if amount < 1024 ** (power + 1)), len(_SUFFIXES) - 1)
    text = f"{amount / 1024**power:.1f}" if power else f"{amount:.0f}"
    return text.removesuffix(".0") + _SUFFIXES[power]
