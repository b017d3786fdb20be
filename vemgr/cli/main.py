# SPDX-License-Identifier: GPL-2.0-or-later
"""`vemgr`: all verbs together, and those that are about no single module: consoles, logs, the end of it all."""

from __future__ import annotations

import io
import sys
from typing import NoReturn

import click

import vemgr
from vemgr.api import location
from vemgr.api.client import ENDED, lost, result_of
from vemgr.cli import console, ending, logs
from vemgr.cli.carrying import export, import_
from vemgr.cli.copies import clone, create_template, rename
from vemgr.cli.doctor import doctor
from vemgr.cli.edit import edit
from vemgr.cli.events import events
from vemgr.cli.files import connected, pull, push
from vemgr.cli.groups import group
from vemgr.cli.lifecycle import create, destroy, restart, resume, set_, start, stop, suspend
from vemgr.cli.limits import limits
from vemgr.cli.networks import network
from vemgr.cli.openvz import import_vz
from vemgr.cli.options import detach_keys_option, name_argument
from vemgr.cli.profiles import profile
from vemgr.cli.running import enter, exec_, run
from vemgr.cli.scheduler import scheduler
from vemgr.cli.showing import host, list_, show
from vemgr.cli.stats import stats
from vemgr.cli.templates import template
from vemgr.cli.top import top
from vemgr.cli.volumes import volume

_DEFAULT_CONFIG = location.DEFAULT_PATH


class _Verbs(click.Group):
    """All verbs; those of `compare` are imported when they are asked for, since no other verb needs any of it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "compare"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name != "compare":
            return super().get_command(ctx, cmd_name)
        from vemgr.cli.compare import compare  # noqa: PLC0415

        return compare


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", default=_DEFAULT_CONFIG, envvar="VEMGR_CONFIG", show_default=True,
              help="Host configuration.")
@click.version_option(vemgr.__version__, prog_name="vemgr")
@click.pass_context
def cli(context: click.Context, config: str) -> None:
    """Virtual environments on one Linux kernel."""
    context.obj = config


for verb in (clone, create, destroy, doctor, edit, enter, events, exec_, export, group, host, import_, import_vz,
             limits, list_, network, profile, pull, push, rename, restart, resume, run, scheduler, set_, show, start,
             stats, stop, suspend, template, top, volume):
    cli.add_command(verb)
template.add_command(create_template)


@cli.command("console")
@name_argument()
@click.option("--read-only", is_flag=True, help="Look on; others may, too.")
@click.option("--force", is_flag=True, help="Send away who is attached and types.")
@detach_keys_option
@click.pass_context
def console_(context: click.Context, name: str, read_only: bool, force: bool, detach_keys: str) -> NoReturn:
    """Attach to a VE's console, now or when it starts."""
    sys.exit(console.console(connected(context), name, read_only=read_only, force=force, keys=detach_keys))


@cli.command("logs")
@name_argument()
@click.option("-f", "--follow", is_flag=True, help="Go on as more is printed, until the VE is destroyed.")
@click.option("-n", "--tail", type=click.IntRange(0), metavar="N", help="Only the last N lines.")
@click.option("--since", metavar="TIME", help="Only what was printed from then on: 10m (ago) or 2026-11-22T21:30:00Z.")
@click.option("--timestamps", is_flag=True, help="Begin each line with the time at which it was begun, in UTC.")
@click.option("--raw", is_flag=True, help="As it was printed, with escape sequences.")
@click.pass_context
def logs_(context: click.Context, name: str, follow: bool, tail: int | None, raw: bool, since: str | None,
          timestamps: bool) -> None:
    """What a VE has printed on its console."""
    if raw and timestamps:
        raise click.UsageError("--raw prints what the VE has printed and nothing else: not with --timestamps")
    begin = logs.parse_since(since) if since is not None else 0
    (directory,) = connected(context).call("OpenLog", {"name": name})["descriptors"]
    logs.show(directory, tail=tail, follow=follow, raw=raw, since=begin, timestamps=timestamps)


@cli.command()
@click.option("--timeout", type=int, metavar="SECONDS", help="How long to wait before killing VEs.")
@click.pass_context
def shutdown(context: click.Context, timeout: int | None) -> None:
    """Stop all VEs, give the network back, end daemon and keeper."""
    context.invoke(stop, names=(), all_=True, timeout=timeout, kill=False)
    client = connected(context)
    client.call("Shutdown")
    client.await_end()


def main(reply: bytes | None = None) -> NoReturn:
    """`reply`: to a call that has been made already."""
    # Names may hold bytes that are no text here; showing them in another way is better than failing.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(ending.exit_code(lambda: cli(prog_name="vemgr", standalone_mode=False) if reply is None
                              else _accept(reply)))


def _accept(reply: bytes) -> None:
    if not reply.endswith(b"\0"):
        raise lost(ENDED)
    result_of(reply[:-1])
