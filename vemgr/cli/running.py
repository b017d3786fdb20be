# SPDX-License-Identifier: GPL-2.0-or-later
"""`vemgr exec`, `enter` and `run`: commands in VEs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NoReturn

import click

from vemgr.cli import ending, execute
from vemgr.cli.files import connected
from vemgr.cli.options import given, name_argument, setting_options, template_option
from vemgr.core.errors import VemgrError

exec_options = [
    click.option("-t", "--tty", "terminal", is_flag=True, help="Give the command a terminal."),
    click.option("-i", "--interactive", is_flag=True, help="For the habit: standard input is always passed."),
    click.option("-e", "--env", multiple=True, metavar="KEY=VALUE", help="Set a variable."),
    click.option("-C", "--cwd", default="", metavar="DIR", help="Start there instead of in the user's home."),
    click.option("-u", "--user", default="root", metavar="USER[:GROUP]", help="Run as this user of the VE."),
]


def command_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(exec_options):
        function = option(function)
    return function


@click.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@command_options
@name_argument("running")
@click.argument("argv", nargs=-1, required=True, metavar="-- COMMAND...")
@click.pass_context
def exec_(context: click.Context, name: str, argv: tuple[str, ...], terminal: bool, interactive: bool,
          env: tuple[str, ...], cwd: str, user: str) -> NoReturn:
    """Run a command in a VE; returns its exit code."""
    del interactive
    command = execute.command_of(_command(argv), list(env), cwd, user, terminal)
    client = connected(context)
    sys.exit(_execute(lambda parameters, fds: client.call("Exec", {"name": name, **parameters}, fds), command))


def _command(argv: tuple[str, ...]) -> list[str]:
    """Click keeps the "--" that ends our options when a positional argument came before it."""
    words = list(argv)
    if words and words[0] == "--":
        del words[0]
    if not words:
        raise click.UsageError("say what to run after --")
    return words


def _execute(call: execute.Call, command: dict[str, Any]) -> int:
    try:
        return execute.execute(call, command)
    except VemgrError as error:
        if error.identifier != "ExecFailed":
            raise
        ending.say(str(error))
        return int(error.facts.get("status", "126"))


@click.command()
@name_argument("running")
@click.option("-u", "--user", default="root", metavar="USER[:GROUP]", help="Enter as this user of the VE.")
@click.pass_context
def enter(context: click.Context, name: str, user: str) -> NoReturn:
    """Open a shell in a VE."""
    command = execute.command_of([], [], "", user, sys.stdin.isatty())
    client = connected(context)
    sys.exit(_execute(lambda parameters, fds: client.call("Exec", {"name": name, **parameters}, fds), command))


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@template_option
@click.option("--name", default="", help="Its name, chosen by vemgr otherwise.")
@setting_options
@command_options
@click.argument("argv", nargs=-1, required=True, metavar="-- COMMAND...")
@click.pass_context
def run(context: click.Context, /, template_name: str, name: str, argv: tuple[str, ...], terminal: bool,
        interactive: bool, env: tuple[str, ...], cwd: str, user: str, **options: str | None) -> NoReturn:
    """Run a command in a new VE that goes away with it."""
    del interactive
    command = execute.command_of(_command(argv), list(env), cwd, user, terminal)
    client = connected(context)
    sys.exit(_execute(lambda parameters, fds: client.call("Run", {
        "name": name, "template": template_name, "settings": given(options), **parameters}, fds), command))
