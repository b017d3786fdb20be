# SPDX-License-Identifier: GPL-2.0-or-later
"""`vemgr create`, `start`, `stop` and the like: what VEs are made to do, several at once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from vemgr.api.client import Client, exit_code_of
from vemgr.cli import completion, console, ending, order, previews
from vemgr.cli.files import connected
from vemgr.cli.options import (
    detach_keys_option,
    given,
    name_argument,
    names_argument,
    setting_options,
    template_option,
)
from vemgr.core.errors import VemgrError


def for_each(context: click.Context, names: tuple[str, ...], action: Callable[[Client, str], str | None]) -> None:
    """Do `action` for several VEs at once, each over a connection of its own; fail as the first that failed."""
    def one(name: str) -> VemgrError | None:
        try:
            client = connected(context)
            try:
                said = action(client, name)
            finally:
                client.close()
        except VemgrError as error:
            return error
        if said:
            click.echo(said)
        return None

    if len(names) == 1:
        outcomes = [one(names[0])]
    else:
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  (10 ms that one name does not need)

        with ThreadPoolExecutor(min(len(names), 32)) as pool:
            outcomes = list(pool.map(one, dict.fromkeys(names)))
    failures = [error for error in outcomes if error is not None]
    for error in failures:
        ending.say(str(error))
    if failures:
        sys.exit(exit_code_of(failures[0]))


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@template_option
@setting_options
@click.pass_context
def create(context: click.Context, /, names: tuple[str, ...], template_name: str, **options: str | None) -> None:
    """Define VEs; 'host' as template links to this host's own system."""
    settings = given(options)
    for_each(context, names, lambda c, name: _nothing(c.call("Create", {
        "name": name, "template": template_name, "settings": settings})))


def _nothing(_reply: dict[str, Any]) -> None:
    """For verbs that have nothing to say when all is well."""


@click.command()
@click.argument("names", nargs=-1, metavar="NAME...", shell_complete=completion.ves("stopped"))
@click.option("--all", "all_", is_flag=True, help="All that are stopped, in the order of their settings.")
@click.option("--dry-run", is_flag=True, help="Print what would be done, step by step.")
@click.option("--wait", is_flag=True, help="Until the VE's init says that it is up, as systemd does.")
@click.option("--timeout", type=int, default=120, metavar="SECONDS", show_default=True,
              help="How long to wait for that.")
@click.option("--console", "attach", is_flag=True, help="Attach to the console before it starts; for one VE.")
@detach_keys_option
@click.pass_context
def start(context: click.Context, names: tuple[str, ...], all_: bool, dry_run: bool, wait: bool, timeout: int,
          attach: bool, detach_keys: str) -> None:
    """Start VEs."""
    if all_ == bool(names):
        raise click.UsageError("name the VEs, or say --all")
    if all_:
        if attach or dry_run or wait:
            raise click.UsageError("--all waits for each VE as its ready-timeout says, and takes no other option")
        order.start_all(connected(context))
        return
    if attach:
        if len(names) != 1 or dry_run or wait:
            raise click.UsageError("--console is for the start of one VE, without --wait")
        starter = connected(context)
        sys.exit(console.console(connected(context), names[0], read_only=False, force=False, keys=detach_keys,
                                 start=lambda: starter.call("Start", {"name": names[0]})))
    if dry_run:
        for_each(context, names, lambda c, name: "\n".join(c.call("Plan", {"name": name})["steps"]))
    else:
        waiting = {"wait": timeout} if wait else {}
        for_each(context, names, lambda c, name: _nothing(c.call("Start", {"name": name, **waiting})))


@click.command()
@click.argument("names", nargs=-1, metavar="NAME...", shell_complete=completion.ves("running", "suspended"))
@click.option("--all", "all_", is_flag=True, help="All that run, in reverse order of their start.")
@click.option("--timeout", type=int, metavar="SECONDS", help="How long to wait before killing.")
@click.option("--kill", is_flag=True, help="Do not ask, kill.")
@click.pass_context
def stop(context: click.Context, names: tuple[str, ...], all_: bool, timeout: int | None, kill: bool) -> None:
    """Stop VEs: ask, wait, kill; says which step ended each."""
    if all_ == bool(names):
        raise click.UsageError("name the VEs, or say --all")
    if all_:
        order.stop_all(connected(context), timeout, kill=kill)
        return

    def stop_one(client: Client, name: str) -> str:
        reply = client.call("Stop", {"name": name, "timeout": timeout, "kill": kill})
        return f"{name}: {reply['step']}"

    for_each(context, names, stop_one)


@click.command()
@names_argument("running")
@click.option("--timeout", type=int, metavar="SECONDS", help="How long to wait before killing.")
@click.pass_context
def restart(context: click.Context, names: tuple[str, ...], timeout: int | None) -> None:
    """Stop VEs and start them again."""
    for_each(context, names, lambda c, name: f"{name}: " + c.call(
        "Restart", {"name": name, "timeout": timeout})["step"])


@click.command()
@names_argument("running")
@click.pass_context
def suspend(context: click.Context, names: tuple[str, ...]) -> None:
    """Freeze VEs where they are."""
    for_each(context, names, lambda c, name: _nothing(c.call("Suspend", {"name": name})))


@click.command()
@names_argument("suspended")
@click.pass_context
def resume(context: click.Context, names: tuple[str, ...]) -> None:
    """Let frozen VEs go on."""
    for_each(context, names, lambda c, name: _nothing(c.call("Resume", {"name": name})))


@click.command()
@names_argument()
@click.option("--force", is_flag=True, help="Also those that run.")
@click.pass_context
def destroy(context: click.Context, names: tuple[str, ...], force: bool) -> None:
    """Remove VEs with all their data."""
    for_each(context, names, lambda c, name: _nothing(c.call("Destroy", {"name": name, "force": force})))


@click.command("set")
@name_argument()
@click.option("--dry-run", is_flag=True, help="Print what would be written to cgroups, and why; change nothing.")
@setting_options
@click.pass_context
def set_(context: click.Context, /, name: str, dry_run: bool, **options: str | None) -> None:
    """Change settings, live where the VE runs; 'default' takes one back."""
    settings = given(options)
    if not settings:
        raise click.UsageError("say what to set")
    if dry_run:
        previews.show(connected(context).call("PreviewSet", {"name": name, "settings": settings}), name)
        return
    pending = connected(context).call("Set", {"name": name, "settings": settings})["pending"]
    if pending:
        click.echo(f"{name}: at the next start: {', '.join(pending)}", err=True)
