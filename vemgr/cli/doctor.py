# SPDX-License-Identifier: GPL-2.0-or-later
"""`vemgr doctor`: whether this host is fit for VEs, asked of the daemon, or without one of `vemgrd --doctor`."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import click

import vemgr
from vemgr.api.client import Client, RemoteError
from vemgr.api.location import DEFAULT_PATH, load_config
from vemgr.cli import tables
from vemgr.core.errors import PermissionDenied, SystemFailure, Unreachable

_UNFIT = 5  # as KernelLacks and NotEnforceable
_PATIENCE = 60.0  # seconds
_UNKNOWN = "org.varlink.service.MethodNotFound"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--all", "all_", is_flag=True, help="Also what is all right.")
@click.pass_context
def doctor(context: click.Context, as_json: bool, all_: bool) -> None:
    """Check this host, and say what to do; exit code 5 when something fails."""
    findings = _findings(context.find_object(str) or DEFAULT_PATH)
    if as_json:
        tables.as_json(findings)
    else:
        shown = [each for each in findings if all_ or each["level"] != "ok"]
        for each in sorted(shown, key=lambda each: ("fail", "warn", "ok").index(each["level"])):
            click.echo("\n".join(_lines(each)))
        counts = {level: sum(each["level"] == level for each in findings) for level in ("ok", "warn", "fail")}
        click.echo(", ".join(f"{count} {level}" for level, count in counts.items()))
    if any(each["level"] == "fail" for each in findings):
        sys.exit(_UNFIT)


def _findings(config: str) -> list[dict[str, Any]]:
    """No daemon is started for it: that it does not run is one of the findings."""
    try:
        client = Client(f"{load_config(config).run_dir}/vemgr.sock", timeout=_PATIENCE)
        found: list[dict[str, Any]] = client.call("Examine", {"installed": vemgr.__version__})["findings"]
        return found
    except PermissionDenied:
        raise
    except RemoteError as error:
        if error.identifier != _UNKNOWN:
            raise
    except Unreachable:
        pass
    run = subprocess.run([sys.executable, "-m", "vemgr.daemon.main", "--config", config, "--doctor"], check=False,
                         stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PATIENCE)
    try:
        without: list[dict[str, Any]] = json.loads(run.stdout)
        return without
    except ValueError:
        raise SystemFailure(f"the checks could not be made: {run.stderr.strip()[-300:] or run.returncode}") from None


def _lines(finding: dict[str, Any]) -> list[str]:
    lines = [f"{finding['level']:<4}  {finding['check']}: {finding['fact']}"]
    if finding["level"] != "ok":
        lines += [f"      {finding['meaning']}"] if finding["meaning"] else []
        lines += [f"      -> {finding['remedy']}"] if finding["remedy"] else []
    return lines
