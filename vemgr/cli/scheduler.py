# SPDX-License-Identifier: GPL-2.0-or-later
"""`vemgr scheduler ...`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vemgr.api.client import Client
from vemgr.api.location import DEFAULT_PATH
from vemgr.cli import completion, connection, tables
from vemgr.cli.events import follow_option, line, show, since_option
from vemgr.cli.events import json_option as events_json_option
from vemgr.cli.recording import record
from vemgr.core.errors import BadValue, SystemFailure
from vemgr.core.events import SCHEDULER
from vemgr.core.resources import format_cpus

if TYPE_CHECKING:
    from vemgr.scheduler.scenario import Scenario

_SCENARIOS = Path(__file__).parents[1] / "scheduler/scenarios"
_RECORDING = ".jsonl"

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _client(context: click.Context) -> Client:
    return connection.connect(context.find_object(str) or DEFAULT_PATH)


def show_amount(resource: str, amount: int) -> str:
    if resource == "network":
        return f"{amount / 1e6:g}Mbit/s"
    return format_cpus(amount) if resource == "cpus" else f"{amount >> 20}M"


@click.group()
def scheduler() -> None:
    """What is promised to VEs, what they are entitled to, and why."""


@scheduler.command()
@json_option
@click.pass_context
def capacity(context: click.Context, as_json: bool) -> None:
    """What the host has, keeps, has promised and can still promise."""
    found = _client(context).call("GetCapacity")
    if as_json:
        tables.as_json(found)
        return
    click.echo(f"policy: {found['policy']}")
    rows = found["resources"]
    tables.table([_row(each) for each in rows], ("resource", "total", "reserve", "overcommit", "promisable",
                                                 "promised", "free", "used"))
    holders = [{"promised to": holder["ve"], "resource": row["resource"],
                "amount": show_amount(row["resource"], holder["amount"])} for row in rows for holder in row["holders"]]
    if holders:
        click.echo()
        tables.table(holders, ("promised to", "resource", "amount"))


def _row(found: dict[str, Any]) -> dict[str, str]:
    resource = found["resource"]
    amounts = {key: show_amount(resource, found[key])
               for key in ("total", "reserve", "promisable", "promised", "free", "used")}
    return {**amounts, "resource": resource, "overcommit": f"{found['overcommit']:g}"}


@scheduler.command()
@click.option("--cpus", default="", metavar="N", help="CPUs guaranteed to each.")
@click.option("--memory", default="", metavar="SIZE", help="Memory guaranteed to each.")
@click.option("--network", default="", metavar="RATE", help="Rate of the uplink guaranteed to each.")
@click.option("--group", default="", metavar="NAME", help="In this group.", shell_complete=completion.groups)
@json_option
@click.pass_context
def plan(context: click.Context, cpus: str, memory: str, network: str, group: str, as_json: bool) -> None:
    """How many more VEs with such guarantees would fit."""
    asked = {key: text for key, text in (("cpus", cpus), ("memory", memory), ("network", network)) if text}
    if not asked:
        raise click.UsageError("say what each is to be guaranteed: --cpus, --memory, --network, or some of them")
    found = _client(context).call("CountFitting", {**asked, **({"group": group} if group else {})})
    if as_json:
        tables.as_json(found)
    elif found["unlimited"]:
        click.echo("any number: nothing is guaranteed to them")
    else:
        click.echo(f"{found['count']} more ({found['scarce']} ends first)")


@scheduler.command()
@click.argument("name", shell_complete=completion.ves())
@json_option
@click.pass_context
def explain(context: click.Context, name: str, as_json: bool) -> None:
    """What a VE is promised, entitled to and uses, and why its cgroup files are as they are."""
    found = _client(context).call("Explain", {"name": name})
    if as_json:
        tables.as_json(found)
        return
    group = f" in group {found['group']}" if found["group"] else ""
    click.echo(f"{found['name']}: {found['state']}{group}, policy {found['policy']}")
    tables.table(found["shares"], ("resource", "guarantee", "limit", "weight", "entitled", "used"))
    if found["workingSet"] is not None:
        click.echo(f"memory that is not idle: {found['workingSet'] >> 20}M")
    click.echo()
    for knob in found["knobs"]:
        click.echo(f"{knob['file']} {_state_of(knob, found['state'])}: {knob['reason']}")
    if found["decisions"]:
        click.echo("\nwhat was done last:")
    for event in found["decisions"]:
        click.echo(line(event))


def _state_of(knob: dict[str, str], state: str) -> str:
    if knob["value"]:
        return f"= {knob['value']}" + (f", should be {knob['wanted']}" if knob["value"] != knob["wanted"] else "")
    missing = "is not there on this host, " if state != "stopped" else ""
    return f"{missing}would be {knob['wanted']}"


@scheduler.command()
@click.argument("name", required=False, default="", shell_complete=completion.ves())
@follow_option
@since_option
@events_json_option
@click.pass_context
def events(context: click.Context, name: str, follow: bool, since: float, as_json: bool) -> None:
    """What the scheduler has done, and why; what others have changed; guarantees that were not kept."""
    show(context.find_object(str) or DEFAULT_PATH, {"name": name, "since": since, "follow": follow}, as_json, SCHEDULER)


@scheduler.command()
@click.argument("name", required=False, default="", shell_complete=completion.policies)
@json_option
@click.pass_context
def policy(context: click.Context, name: str, as_json: bool) -> None:
    """Show what counts as promised, or switch it until the host is started again."""
    client = _client(context)
    if name:
        client.call("SetPolicy", {"policy": name})
        return
    found = client.call("GetPolicy")
    if as_json:
        tables.as_json(found)
    else:
        differs = found["policy"] != found["configured"]
        click.echo(found["policy"] + (f" (vemgr.toml: {found['configured']})" if differs else ""))


def _scenarios(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in _own_scenarios() if name.startswith(incomplete)]


def _own_scenarios() -> list[str]:
    return sorted(path.stem for path in _SCENARIOS.glob("*.toml"))


@scheduler.command()
@click.argument("scenario", shell_complete=_scenarios)
@json_option
@click.option("--html", type=click.Path(dir_okay=False), metavar="FILE", help="Write a page with plots as well.")
def simulate(scenario: str, as_json: bool, html: str | None) -> None:
    """What the scheduler makes of a scenario, a file or one of vemgr's own, or of a recording; nothing of this host is
    touched."""
    # A tenth of a second that no other verb needs.
    from vemgr.scheduler.simulation import Simulation  # noqa: PLC0415

    found = Simulation(_scenario(scenario)).run().as_dict()
    if html is not None:
        _write_page(html, found, Path(scenario).stem)
    if as_json:
        tables.as_json(found)
        return
    if found["description"]:
        click.echo(found["description"])
    click.echo(f"{found['hosts']} hosts, {found['ticks']} ticks, {found['seconds']:g} s; "
               f"{found['movesPerMinute']:.1f} weights written per minute\n")
    parts = ("utilization", "conserved", "fairness", "leastFairness", "unmet", "worst")
    tables.table([{"resource": row["resource"], "least fair": f"{row['leastFairness']:.4f}",
                   **{key: f"{row[key]:.4f}" for key in parts}} for row in found["resources"]],
                 ("resource", "utilization", "conserved", "fairness", "least fair", "unmet", "worst"))
    click.echo()
    tables.table([{**row, **{name: f"{part:.4f}" for name, part in row["satisfied"].items()}}
                  for row in found["kinds"]], ("kind", "started", "refused", "cpus", "memory", "io"))


def _write_page(file: str, found: dict[str, Any], name: str) -> None:
    from vemgr.cli.simulation_page import render  # noqa: PLC0415

    try:
        Path(file).write_text(render(found, name), encoding="utf-8")
    except OSError as error:
        raise SystemFailure(f"{file} cannot be written: {error.strerror}", path=file) from error


def _scenario(text: str) -> Scenario:
    """A file that ends in .jsonl is a recording, and a scenario's key `recording` names one beside it."""
    from vemgr.scheduler.recording import read_recording  # noqa: PLC0415
    from vemgr.scheduler.scenario import parse_scenario  # noqa: PLC0415

    own = "/" not in text and not text.endswith((".toml", _RECORDING))
    path = _SCENARIOS / f"{text}.toml" if own else Path(text)
    document: dict[str, Any] = {"recording": path.name} if text.endswith(_RECORDING) else _read(path, text)
    if "recording" not in document:
        return parse_scenario(document)
    recorded = path.parent / str(document["recording"])
    try:
        with recorded.open(encoding="utf-8") as lines:
            return parse_scenario(document, read_recording(lines))
    except (OSError, ValueError) as error:
        raise SystemFailure(f"{recorded} cannot be read: {error}", path=recorded) from error


def _read(path: Path, scenario: str) -> dict[str, Any]:
    import tomllib  # noqa: PLC0415

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        remedy = f"name a file ending in .toml or {_RECORDING}, or one of: {', '.join(_own_scenarios())}"
        raise BadValue("scenario", scenario, "not found", remedy=remedy) from error
    except (OSError, ValueError, RecursionError) as error:
        raise SystemFailure(f"{path} cannot be read: {error}", path=path) from error


scheduler.add_command(record)
