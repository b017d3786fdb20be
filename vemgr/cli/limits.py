# SPDX-License-Identifier: GPL-2.0-or-later
"""`vemgr limits ...`"""

from __future__ import annotations

import sys

import click

from vemgr.api.location import DEFAULT_PATH
from vemgr.cli import completion, connection


@click.group()
def limits() -> None:
    """Whether what VEs were given is enforced."""


@limits.command()
@click.argument("name", shell_complete=completion.ves("running"))
@click.option("--resource", multiple=True, type=click.Choice(["cpu", "memory", "pids", "io", "network"]),
              help="Only this; may be given again.")
@click.option("--seconds", type=click.FloatRange(1, 60), default=3.0, show_default=True,
              help="How long each rate is measured.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def verify(context: click.Context, name: str, resource: tuple[str, ...], seconds: float, as_json: bool) -> None:
    """Measure each limit of a running VE with real load in its cgroup."""
    import subprocess  # noqa: PLC0415  (no other verb needs it)

    config = context.find_object(str) or DEFAULT_PATH
    connection.connect(config).close()  # starts the daemon, or says why not
    words = [sys.executable, "-m", "vemgr.verify", "--config", config, "--seconds", str(seconds)]
    words += [f"--resource={each}" for each in resource] + ["--json"] * as_json + ["--", name]
    sys.exit(subprocess.run(words, check=False).returncode)
