# SPDX-License-Identifier: GPL-2.0-or-later
"""`vemgr set --dry-run`: what would be written, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click


def show(found: Mapping[str, Any], name: str) -> None:
    for change in found["changes"]:
        click.echo(f"{change['file']}: {_text(change['old'])} -> {_text(change['new'])}: {change['reason']}")
    for change in found["others"]:
        click.echo(f"{change['file']} of {change['of']}: {change['old']} -> {change['new']}")
    if not found["changes"] and not found["others"]:
        click.echo("no file of a cgroup would change")
    if found["pending"]:
        click.echo(f"{name}: at the next start: {', '.join(found['pending'])}")


def _text(value: str) -> str:
    """On one line: io.max has one for each disk."""
    return value.replace("\n", ", ") or "(empty)"
