# SPDX-License-Identifier: GPL-2.0-or-later
"""Printing: tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Columns as wide as they need to be, under their names in capitals; an empty value is a dash."""
    texts = [[column.upper() for column in columns]]
    texts += [[_text(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(len(line[position]) for line in texts) for position in range(len(columns))]
    # At once: click flushes after each call, which with thousands of lines takes longer than all else.
    click.echo("\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in texts))


def fields(pairs: Sequence[tuple[str, Any]]) -> None:
    """Name and value, one a line, values under each other."""
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        click.echo(f"{name + ':':<{width + 1}}  {_text(value)}".rstrip())


def paragraphs(items: Sequence[Sequence[tuple[str, Any]]]) -> None:
    """Fields of several things, an empty line between them."""
    for position, pairs in enumerate(items):
        if position:
            click.echo()
        fields(pairs)


def as_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, sort_keys=True))


def _text(value: Any) -> str:
    if value in ("", None, 0, []):
        return "-"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
