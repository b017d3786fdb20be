# SPDX-License-Identifier: GPL-2.0-or-later
"""`vemgr events`: what has happened to VEs."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from collections.abc import Collection
from datetime import datetime
from typing import Any

import click

from vemgr.api.client import Client
from vemgr.api.location import DEFAULT_PATH, load_config
from vemgr.cli import completion, connection, ending
from vemgr.core.errors import Unreachable

_PAUSE = 0.2  # seconds
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _since(_context: click.Context, _parameter: click.Parameter, text: str) -> float:
    """How long ago, or a time of this host's zone; as Unix time."""
    if not text:
        return 0.0
    ago = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if ago:
        return time.time() - int(ago[1]) * _UNITS[ago[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise click.BadParameter("say 90s, 10m, 2h, 1d, or a time such as '2026-11-22 21:00'") from None


follow_option = click.option("-f", "--follow", is_flag=True, help="Go on as more happens.")
since_option = click.option("--since", callback=_since, default="", metavar="TIME",
                            help="10m, 2h, 1d, or a time; all by default.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")


@click.command()
@click.argument("name", required=False, default="", shell_complete=completion.ves())
@follow_option
@since_option
@json_option
@click.pass_context
def events(context: click.Context, name: str, follow: bool, since: float, as_json: bool) -> None:
    """What has happened to VEs: starts and ends, limits that were hit."""
    show(context.find_object(str) or DEFAULT_PATH, {"name": name, "since": since, "follow": follow}, as_json)


def show(config: str, wanted: dict[str, Any], as_json: bool, kinds: Collection[str] = ()) -> None:
    """Print events, of some kinds or of all; who follows goes on with the next daemon."""
    client = connection.connect(config)
    while True:
        try:
            for reply in client.stream("WatchEvents", wanted):
                for event in reply["events"]:
                    wanted["after"] = max(event["number"], wanted.get("after", 0))
                    if not kinds or event["kind"] in kinds:
                        click.echo(json.dumps(event, sort_keys=True) if as_json else line(event))
                sys.stdout.flush()
        except Unreachable as error:
            if not wanted["follow"]:
                raise
            ending.say(f"{error.message}; going on when there is one again")
            client.close()
            client = _next(config)
        else:
            return


def _next(config: str) -> Client:
    """The next daemon, whoever starts it. Who may not ask it any more is told so."""
    while True:
        time.sleep(_PAUSE)
        with contextlib.suppress(Unreachable):
            return Client(f"{load_config(config).run_dir}/vemgr.sock")


def line(event: dict[str, Any]) -> str:
    when = datetime.fromtimestamp(event["time"]).strftime("%Y-%m-%d %H:%M:%S")
    times = f" x{event['count']}" if event["count"] > 1 else ""
    return f"{when}  {event['ve'] or '-'}  {event['kind']}{times}  {event['detail']}".rstrip()
