# SPDX-License-Identifier: GPL-2.0-or-later
"""From two looks at the VEs' counters to what each of them is doing: the lines of `vemgr top`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vemgr.cli.stats import FLOWS, shown

_ABSENT = "n/a"
_LEAST_NAME = 20
_WIDTHS = {"CPU%": 6, "MEM": 7, "MEM%": 4, "PIDS": 6, "READ/s": 7, "WRITE/s": 7, "IN/s": 7, "OUT/s": 7}
_REST = sum(width + 1 for width in _WIDTHS.values())
#: What a key sorts by: a word for it, and the resources whose sum counts.
KEYS = {"c": ("CPU", ("cpus",)), "m": ("memory", ("memory",)), "i": ("disk I/O", ("io-read", "io-write")),
        "n": ("network", ("net-in", "net-out")), "p": ("processes", ("pids",))}


@dataclass(frozen=True)
class Look:
    """`at`: seconds of a clock that does not jump."""

    at: float
    ves: Sequence[Mapping[str, Any]]

    def held(self) -> dict[str, dict[str, int]]:
        return {ve["name"]: {row["resource"]: row["held"] for row in ve["counters"] if row.get("held") is not None}
                for ve in self.ves}


@dataclass(frozen=True)
class Row:
    """`amounts`: what is held, or used in a second, by resource; without those that are not available."""

    name: str
    state: str
    amounts: Mapping[str, float]
    memory_limit: int | None


def rows(before: Look, now: Look) -> list[Row]:
    """Those that run. A counter that has fallen is one of a VE that was started again: it has no rate yet."""
    earlier, seconds = before.held(), max(now.at - before.at, 1e-6)
    found = []
    for ve, held in zip(now.ves, now.held().values(), strict=True):
        if not ve["counters"]:
            continue
        was = earlier.get(ve["name"], {})
        amounts: dict[str, float] = {}
        for resource, amount in held.items():
            if resource not in FLOWS:
                amounts[resource] = amount
            elif amount >= was.get(resource, amount + 1):
                amounts[resource] = (amount - was[resource]) / seconds
        limit = next((row.get("limit") for row in ve["counters"] if row["resource"] == "memory"), None)
        found.append(Row(ve["name"], ve["state"], amounts, limit))
    return found


def sorted_by(key: str, found: Sequence[Row]) -> list[Row]:
    """The most first; equals, and those of whom it is not known, by name."""
    _, resources = KEYS[key]
    return sorted(found, key=lambda row: (-sum(row.amounts.get(each, 0) for each in resources), row.name))


def table(found: Sequence[Row], columns: int) -> list[str]:
    """A heading and one line for each VE, none wider than the screen; 80 columns show all of it."""
    longest = max([_LEAST_NAME, *(len(row.name) for row in found)])
    width = max(_LEAST_NAME, min(longest, columns - _REST))
    lines = [f"{'NAME':<{width}}" + "".join(f" {name:>{size}}" for name, size in _WIDTHS.items())]
    for row in found:
        name = row.name if len(row.name) <= width else f"{row.name[:width - 1]}+"
        lines.append(f"{name:<{width}}" + "".join(f" {text:>{size}}" for text, size in
                                                  zip(_texts(row), _WIDTHS.values(), strict=True)))
    return [line[:columns] for line in lines]


def _texts(row: Row) -> list[str]:
    cpus, memory = row.amounts.get("cpus"), row.amounts.get("memory")
    return [
        _ABSENT if cpus is None else f"{cpus / 1e4:.1f}",
        _text(memory, "bytes"),
        f"{100 * memory / row.memory_limit:.0f}" if memory is not None and row.memory_limit else "-",
        _text(row.amounts.get("pids"), ""),
        *(_text(row.amounts.get(each), "bytes") for each in ("io-read", "io-write", "net-in", "net-out")),
    ]


def _text(amount: float | None, unit: str) -> str:
    return _ABSENT if amount is None else shown(amount, unit)
