# SPDX-License-Identifier: GPL-2.0-or-later
"""What a shell may complete: names that the daemon knows. For click, as `shell_complete` of an argument or option.

A key press must not start a daemon, wait for one, or say anything: without an answer at once there are no names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from vemgr.api.client import Client
from vemgr.api.location import DEFAULT_PATH, load_config
from vemgr.core.errors import VemgrError
from vemgr.core.privileges import ADDABLE, FEATURES, NONE
from vemgr.core.scheduling import Policy

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_PATIENCE = 1.0  # seconds

Completion = Callable[[click.Context, click.Parameter, str], list[str]]


def ves(*states: str) -> Completion:
    """Names of VEs, of those in one of `states` if any are given."""
    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        given = context.params.get(parameter.name or "") if parameter.nargs == -1 else None
        return [ve["name"] for ve in _ask(context, "List", "ves")
                if ve["name"].startswith(incomplete) and ve["name"] not in (given or ())
                and (not states or ve["state"] in states)]
    return complete


def templates(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    return [found["name"] for found in _ask(context, "ListTemplates", "templates")
            if found["name"].startswith(incomplete)]


def volumes(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    return [found["name"] for found in _ask(context, "ListVolumes", "volumes") if found["name"].startswith(incomplete)]


def networks(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    known = [found["name"] for found in _ask(context, "GetHost", "networks")]
    return [name for name in [*known, "none"] if known and name.startswith(incomplete)]


def groups(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    return [found["name"] for found in _ask(context, "ListGroups", "groups") if found["name"].startswith(incomplete)]


def policies(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    return [policy for policy in Policy if policy.startswith(incomplete)]


def words(*known: str) -> Completion:
    def complete(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
        return [word for word in known if word.startswith(incomplete)]
    return complete


def files(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem  # noqa: PLC0415  (only where something is completed)

    return [CompletionItem(incomplete, type="file")]


#: By key of a setting.
SETTINGS = {
    "network": networks, "group": groups, "after": ves(), "device": files, "feature": words(*FEATURES, NONE),
    "capability": words(*(f"+{name}" for name in ADDABLE), NONE),  # click takes a word with "-" for an option
}


def _ask(context: click.Context, method: str, what: str) -> list[dict[str, str]]:
    path = context.find_root().params.get("config") or DEFAULT_PATH
    try:
        client = Client(f"{load_config(path).run_dir}/vemgr.sock", timeout=_PATIENCE)
        try:
            found: list[dict[str, str]] = client.call(method)[what]
            return found
        finally:
            client.close()
    except VemgrError:
        return []
