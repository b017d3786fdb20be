# SPDX-License-Identifier: GPL-2.0-or-later
"""`vemgr import-vz`: a VE as an OpenVZ container's configuration describes it."""

from __future__ import annotations

import os
import re

import click

from vemgr.cli import completion
from vemgr.cli.files import connected
from vemgr.cli.options import given, setting_options, template_option
from vemgr.core.errors import BadValue


@click.command("import-vz")
@click.argument("file", metavar="FILE", shell_complete=completion.files)
@click.option("--name", default="", help="Its name, instead of the file's.")
@click.option("--dry-run", is_flag=True, help="Say what would be taken, and make nothing.")
@template_option
@setting_options
@click.pass_context
def import_vz(context: click.Context, /, file: str, name: str, dry_run: bool, template_name: str,
              **options: str | None) -> None:
    """Define a VE by an OpenVZ container's ID.conf; says of each line what it comes to."""
    from vemgr.core import openvz  # noqa: PLC0415  (for this verb alone)

    try:
        with open(file, encoding="utf-8", errors="surrogateescape") as stream:
            found = openvz.read(stream.read(1 << 17))
    except OSError as error:
        raise BadValue("file", file, str(error.strerror).lower()) from None
    for line in found.lines:
        taken = ", ".join(line.taken) or "not taken"
        click.echo(f"{line.number}: {line.key}: {taken}" + (f" ({line.why})" if line.why else ""))
    name = name or found.name or re.sub(r"^(\d+)$", r"ct\1", os.path.basename(file).removesuffix(".conf"))
    template = template_name or found.template
    click.echo(f"VE {name} from template {template or '(none: give --template)'}")
    if not dry_run:
        connected(context).call("Create", {"name": name, "template": template,
                                           "settings": found.texts | given(options)})
