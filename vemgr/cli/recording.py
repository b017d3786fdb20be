# SPDX-License-Identifier: GPL-2.0-or-later
"""`vemgr scheduler record`: the demand of this host's VEs, look by look, into a file."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import click

from vemgr.api.client import Client
from vemgr.api.location import DEFAULT_PATH
from vemgr.cli import connection
from vemgr.core.errors import BadValue, SystemFailure, Unreachable


@click.command()
@click.option("--seconds", type=click.FloatRange(0.1, 10**9), metavar="N", help="How long; until Ctrl-C without.")
@click.option("--interval", type=click.FloatRange(0.1, 3600), default=10.0, show_default=True, metavar="SECONDS",
              help="How long each look takes.")
@click.argument("file", type=click.Path(dir_okay=False))
@click.pass_context
def record(context: click.Context, seconds: float | None, interval: float, file: str) -> None:
    """Record what VEs use and want, for `scheduler simulate`."""
    from vemgr.scheduler.recording import head  # noqa: PLC0415  (which no other verb needs)

    source = _Source(context.find_object(str) or DEFAULT_PATH)
    capacity = source.call("GetCapacity")
    total = {each["resource"]: each["total"] for each in capacity["resources"]}
    samples = 0
    try:
        with open(file, "x", encoding="utf-8") as out:
            out.write(head(interval, total["cpus"], total["memory"], capacity["policy"]))
            out.flush()
            try:
                for lines in _looks(source, interval, seconds):
                    out.writelines(lines)
                    out.flush()
                    samples += 1
            except KeyboardInterrupt:
                pass  # which is how a recording without an end is ended
    except FileExistsError as error:
        raise BadValue("FILE", file, "it is there already", remedy="name another, or remove it") from error
    except OSError as error:
        raise SystemFailure(f"{file} cannot be written: {error.strerror}", remedy="the samples in it can be used",
                            path=file) from error
    click.echo(f"{samples} samples in {file}", err=True)


def _looks(source: _Source, interval: float, seconds: float | None) -> Iterator[Iterable[str]]:
    """The lines of each look. A daemon that is away for a while makes a longer one."""
    from vemgr.scheduler.recording import Recorder  # noqa: PLC0415

    ves = source.call("GetDemand")["ves"]
    began = time.monotonic()
    recorder, due, end = Recorder(began, ves), began, began + (seconds or float("inf"))
    while due < end:
        due = min(end, max(due + interval, time.monotonic()))
        time.sleep(max(0.0, due - time.monotonic()))
        try:
            ves = source.call("GetDemand")["ves"]
        except Unreachable:
            source.client = None
            continue
        yield recorder.look(time.monotonic(), ves)


class _Source:
    """The daemon, and the next one when that has ended."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.client: Client | None = None

    def call(self, method: str) -> dict[str, Any]:
        if self.client is None:
            self.client = connection.connect(self._path)
        return self.client.call(method)
