# SPDX-License-Identifier: GPL-2.0-or-later
"""`vemgr export` and `vemgr import`: a VE to one file, and of one."""

from __future__ import annotations

import os

import click

from vemgr.cli import completion, ending
from vemgr.cli.files import STANDARD, connected, hold, new_file, opened
from vemgr.cli.options import given, setting_options, template_option
from vemgr.core.errors import BadValue


@click.command("export")
@click.argument("name", shell_complete=completion.ves())
@click.argument("file", metavar="FILE|-", shell_complete=completion.files)
@click.option("--with-template", is_flag=True, help="Put the template in, too.")
@click.option("--stop", "stops", is_flag=True, help="Stop it if it runs, and start it again afterwards.")
@click.pass_context
def export(context: click.Context, name: str, file: str, with_template: bool, stops: bool) -> None:
    """Write a stopped VE to one file."""
    client = connected(context)

    def write(stream: int) -> None:
        with hold() as held:
            reply = client.call("Export", {"name": name, "withTemplate": with_template, "stream": 0, "hold": 1},
                                [stream, held])
        if reply["skipped"]:
            ending.say(f"left out, as no VE can have made them: {', '.join(reply['skipped'][:5])}")

    if file == STANDARD and os.isatty(1):
        raise BadValue("file", file, "nobody reads an archive", remedy="name a file, or use a pipe")
    running = stops and client.call("Show", {"name": name})["state"] != "stopped"
    if running:
        client.call("Stop", {"name": name})
    try:
        if file == STANDARD:
            write(1)
        elif os.path.exists(file) and not os.path.isfile(file):  # /dev/null, a fifo
            write(opened(file, os.O_WRONLY))
        else:
            with new_file(file) as fd:
                os.fchmod(fd, 0o600)  # it holds what only the VE's root may read
                write(fd)
    finally:
        if running:
            client.call("Start", {"name": name})


@click.command("import")
@click.argument("file", metavar="FILE|-", shell_complete=completion.files)
@click.option("--name", default="", help="Its name, instead of the one that it had.")
@click.option("--trusted", is_flag=True,
              help="Take from the file also what opens something of this host: mounts, devices, features, "
                   "capabilities, system calls, published ports.")
@template_option
@setting_options
@click.pass_context
def import_(context: click.Context, /, file: str, name: str, trusted: bool, template_name: str,
            **options: str | None) -> None:
    """Make a VE of a file of 'vemgr export'; settings are instead of the file's."""
    fd = 0 if file == STANDARD else opened(file, os.O_RDONLY)
    with hold() as held:
        reply = connected(context).call("Import", {
            "name": name, "template": template_name, "settings": given(options), "trusted": trusted, "stream": 0,
            "hold": 1}, [fd, held])
    for note in reply["notes"]:
        ending.say(f"{reply['name']}: {note}")
    click.echo(reply["name"])
