# SPDX-License-Identifier: GPL-2.0-or-later
"""`start --all` and `stop --all`: the daemon knows the order."""

from __future__ import annotations

import sys
from typing import Any

import click

from vemgr.api.client import Client
from vemgr.cli import ending


def start_all(client: Client) -> None:
    _tell(client, "StartAll", {}, say_steps=False)


def stop_all(client: Client, timeout: int | None, *, kill: bool) -> None:
    _tell(client, "StopAll", {"timeout": timeout, "kill": kill}, say_steps=True)


def _tell(client: Client, method: str, parameters: dict[str, Any], *, say_steps: bool) -> None:
    """Say what has come of each VE as it is told; fail as the first that failed."""
    code = 0
    for reply in client.stream(method, parameters):
        for outcome in reply["outcomes"]:
            if outcome["error"]:
                ending.say(outcome["error"])
                code = code or outcome["exitCode"]
            elif say_steps:
                click.echo(f"{outcome['name']}: {outcome['step']}")
        sys.stdout.flush()
    if code:
        sys.exit(code)
