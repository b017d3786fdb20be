# SPDX-License-Identifier: GPL-2.0-or-later
"""`vemgr`: the verbs."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import click

import vemgr
from vemgr.api import location
from vemgr.api.client import ENDED, Client, exit_code_of, lost, result_of
from vemgr.cli import completion, connection, console, ending, execute, keys, logs, order, previews, tables
from vemgr.cli.carrying import export, import_command
from vemgr.cli.copies import clone, create_template, rename
from vemgr.cli.doctor import doctor
from vemgr.cli.edit import edit
from vemgr.cli.events import events
from vemgr.cli.files import pull, push
from vemgr.cli.groups import group_command
from vemgr.cli.limits import limits
from vemgr.cli.networks import network
from vemgr.cli.openvz import import_vz_command
from vemgr.cli.profiles import profile
from vemgr.cli.scheduler import scheduler
from vemgr.cli.stats import stats
from vemgr.cli.templates import template
from vemgr.cli.top import top
from vemgr.cli.volumes import volume
from vemgr.core.config import SETTINGS, Setting
from vemgr.core.errors import VemgrError

_DEFAULT_CONFIG = location.DEFAULT_PATH


def names_argument(*states: str) -> Callable[..., Any]:
    """Names of VEs; a shell completes those of VEs in one of `states`, or of all."""
    return click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=completion.ves(*states))


def name_argument(*states: str) -> Callable[..., Any]:
    return click.argument("name", shell_complete=completion.ves(*states))


template_option = click.option("--template", "template_name", default="", metavar="TEMPLATE",
                               help="What the VE is made from.", shell_complete=completion.templates)
detach_keys_option = click.option("--detach-keys", default=keys.DEFAULT, envvar="VEMGR_DETACH_KEYS", metavar="KEYS",
                                  show_default=True, help="What to type to leave a console.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


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


cli.add_command(doctor)
cli.add_command(events)
cli.add_command(limits)
cli.add_command(network)
cli.add_command(profile)
cli.add_command(scheduler)
cli.add_command(stats)
cli.add_command(template)
cli.add_command(top)
cli.add_command(volume)
cli.add_command(clone)
cli.add_command(edit)
cli.add_command(export)
cli.add_command(rename)
template.add_command(create_template)
cli.add_command(push)
cli.add_command(pull)


def client(context: click.Context) -> Client:
    return connection.connect(context.find_object(str) or _DEFAULT_CONFIG)


def setting_options_of(settings: Sequence[Setting]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """One option for each of these rows of the settings table."""
    def with_options(function: Callable[..., Any]) -> Callable[..., Any]:
        for setting in reversed(settings):
            function = click.option(setting.option, setting.attribute, metavar=setting.metavar, help=setting.help,
                                    multiple=setting.repeatable,
                                    shell_complete=completion.SETTINGS.get(setting.key))(function)
        return function

    return with_options


setting_options = setting_options_of(SETTINGS)


def given(options: Mapping[str, str | tuple[str, ...] | None]) -> dict[str, str]:
    """The settings that were given, by key; what was given several times is one text."""
    texts: dict[str, str] = {}
    for setting in SETTINGS:
        value = options.get(setting.attribute)
        if value:
            texts[setting.key] = value if isinstance(value, str) else " ".join(value)
        elif value == "":
            texts[setting.key] = value
    return texts


cli.add_command(group_command(setting_options_of, given))
cli.add_command(import_command(setting_options, template_option, given))
cli.add_command(import_vz_command(setting_options, template_option, given))


def for_each(context: click.Context, names: tuple[str, ...], action: Callable[[Client, str], str | None]) -> None:
    """Do `action` for several VEs at once, each over a connection of its own; fail as the first that failed."""
    def one(name: str) -> VemgrError | None:
        try:
            connected = client(context)
            try:
                said = action(connected, name)
            finally:
                connected.close()
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


@cli.command()
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


@cli.command()
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
        order.start_all(client(context))
        return
    if attach:
        if len(names) != 1 or dry_run or wait:
            raise click.UsageError("--console is for the start of one VE, without --wait")
        starter = client(context)
        sys.exit(console.console(client(context), names[0], read_only=False, force=False, keys=detach_keys,
                                 start=lambda: starter.call("Start", {"name": names[0]})))
    if dry_run:
        for_each(context, names, lambda c, name: "\n".join(c.call("Plan", {"name": name})["steps"]))
    else:
        waiting = {"wait": timeout} if wait else {}
        for_each(context, names, lambda c, name: _nothing(c.call("Start", {"name": name, **waiting})))


@cli.command()
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
        order.stop_all(client(context), timeout, kill=kill)
        return

    def stop_one(connected: Client, name: str) -> str:
        reply = connected.call("Stop", {"name": name, "timeout": timeout, "kill": kill})
        return f"{name}: {reply['step']}"

    for_each(context, names, stop_one)


@cli.command()
@names_argument("running")
@click.option("--timeout", type=int, metavar="SECONDS", help="How long to wait before killing.")
@click.pass_context
def restart(context: click.Context, names: tuple[str, ...], timeout: int | None) -> None:
    """Stop VEs and start them again."""
    for_each(context, names, lambda c, name: f"{name}: " + c.call(
        "Restart", {"name": name, "timeout": timeout})["step"])


@cli.command()
@names_argument("running")
@click.pass_context
def suspend(context: click.Context, names: tuple[str, ...]) -> None:
    """Freeze VEs where they are."""
    for_each(context, names, lambda c, name: _nothing(c.call("Suspend", {"name": name})))


@cli.command()
@names_argument("suspended")
@click.pass_context
def resume(context: click.Context, names: tuple[str, ...]) -> None:
    """Let frozen VEs go on."""
    for_each(context, names, lambda c, name: _nothing(c.call("Resume", {"name": name})))


@cli.command()
@names_argument()
@click.option("--force", is_flag=True, help="Also those that run.")
@click.pass_context
def destroy(context: click.Context, names: tuple[str, ...], force: bool) -> None:
    """Remove VEs with all their data."""
    for_each(context, names, lambda c, name: _nothing(c.call("Destroy", {"name": name, "force": force})))


@cli.command("list")
@json_option
@click.option("--running", is_flag=True, help="Only those that run.")
@click.pass_context
def list_(context: click.Context, as_json: bool, running: bool) -> None:
    """All VEs."""
    ves = [ve for ve in client(context).call("List")["ves"] if not running or ve["state"] != "stopped"]
    if as_json:
        tables.as_json(ves)
    else:
        for ve in ves:
            ve["address"] = ", ".join(filter(None, (ve["address"], ve["address6"])))
        # Columns that few hosts fill.
        more = [column for column in ("group", "publish") if any(ve[column] for ve in ves)]
        tables.table(ves, ("name", "state", "template", "address", *more, "pid"))


@cli.command()
@names_argument()
@json_option
@click.pass_context
def show(context: click.Context, names: tuple[str, ...], as_json: bool) -> None:
    """Everything about VEs; limits as read back from the kernel."""
    found: dict[str, dict[str, Any]] = {}
    try:
        for_each(context, names, lambda c, name: found.update({name: c.call("Show", {"name": name})}))
    finally:  # those that there are, even if another is not
        details = [found[name] for name in dict.fromkeys(names) if name in found]
        if as_json and len(names) > 1:
            tables.as_json(details)
        elif as_json and details:
            tables.as_json(details[0])
        elif details:
            tables.paragraphs([_lines(each) for each in details])


def _lines(details: dict[str, Any]) -> list[tuple[str, Any]]:
    lines = [(key, details[key]) for key in ("name", "state", "template", "hostname", "pid", "created")]
    if details["state"] == "running" and not details["ready"]:
        lines[1] = ("state", "running (coming up)")
    in_use = {link["interface"]: link for link in details["networkInUse"]}
    for link in details["network"]:
        name = link["interface"]
        used = in_use.pop(name, link)
        lines.append((name, _link(link) if used == link else f"{_link(link)} (in use: {_link(used)})"))
    lines += [(name, f"- (in use: {_link(link)})") for name, link in in_use.items()]
    if details["lastExit"]:
        lines.append(("last exit", details["lastExit"]))
    if details["restarts"]:
        lines.append(("restarts", f"{details['restarts']}{_restart(details)}"))
    lines.append(("ids", f"{details['idBase']} to {details['idBase'] + 65535}"))
    for key, text in details["settings"].items():
        if key in ("hostname", "address", "mac"):
            continue
        in_force = details["inForce"].get(key)
        differs = in_force is not None and in_force != text
        lines.append((key, f"{text} (in force: {in_force})" if differs else text))
    lines.append(("disk by", details["diskBy"]))
    if details["view"]:
        lines.append(("view of memory and CPUs by", details["view"]))
    usage = details["usage"]
    for label, key in (("memory used", "memory_current"), ("processes", "pids_current")):
        if key in usage:
            lines.append((label, f"{usage[key] // 1024}K" if key.startswith("memory") else usage[key]))
    if "cpu_stat.usage_usec" in usage:
        lines.append(("cpu time", f"{usage['cpu_stat.usage_usec'] / 1e6:.2f} s"))
    return lines


def _restart(details: dict[str, Any]) -> str:
    if details["givenUp"]:
        return ", given up"
    return f", next in {details['restartIn']} s" if details["restartIn"] >= 0 else ""


def _link(link: dict[str, str]) -> str:
    return " ".join(filter(None, (link["address"], link["address6"], link["mac"], f"on {link['network']}")))


@cli.command("set")
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
        previews.show(client(context).call("PreviewSet", {"name": name, "settings": settings}), name)
        return
    pending = client(context).call("Set", {"name": name, "settings": settings})["pending"]
    if pending:
        click.echo(f"{name}: at the next start: {', '.join(pending)}", err=True)


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


@cli.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@command_options
@name_argument("running")
@click.argument("argv", nargs=-1, required=True, metavar="-- COMMAND...")
@click.pass_context
def exec_(context: click.Context, name: str, argv: tuple[str, ...], terminal: bool, interactive: bool,
          env: tuple[str, ...], cwd: str, user: str) -> NoReturn:
    """Run a command in a VE; returns its exit code."""
    del interactive
    command = execute.command_of(_command(argv), list(env), cwd, user, terminal)
    connected = client(context)
    sys.exit(_execute(lambda parameters, fds: connected.call("Exec", {"name": name, **parameters}, fds), command))


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


@cli.command()
@name_argument("running")
@click.option("-u", "--user", default="root", metavar="USER[:GROUP]", help="Enter as this user of the VE.")
@click.pass_context
def enter(context: click.Context, name: str, user: str) -> NoReturn:
    """Open a shell in a VE."""
    command = execute.command_of([], [], "", user, sys.stdin.isatty())
    connected = client(context)
    sys.exit(_execute(lambda parameters, fds: connected.call("Exec", {"name": name, **parameters}, fds), command))


@cli.command("console")
@name_argument()
@click.option("--read-only", is_flag=True, help="Look on; others may, too.")
@click.option("--force", is_flag=True, help="Send away who is attached and types.")
@detach_keys_option
@click.pass_context
def console_(context: click.Context, name: str, read_only: bool, force: bool, detach_keys: str) -> NoReturn:
    """Attach to a VE's console, now or when it starts."""
    sys.exit(console.console(client(context), name, read_only=read_only, force=force, keys=detach_keys))


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
    (directory,) = client(context).call("OpenLog", {"name": name})["descriptors"]
    logs.show(directory, tail=tail, follow=follow, raw=raw, since=begin, timestamps=timestamps)


@cli.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
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
    connected = client(context)
    sys.exit(_execute(lambda parameters, fds: connected.call("Run", {
        "name": name, "template": template_name, "settings": given(options), **parameters}, fds), command))


@cli.command()
@json_option
@click.pass_context
def host(context: click.Context, as_json: bool) -> None:
    """What this host can enforce, and where things are."""
    found = client(context).call("GetHost")
    if as_json:
        tables.as_json(found)
    else:
        found["controllers"] = found["controllers"] or "none: limits are refused"
        del found["networks"]  # 'vemgr network list' shows them
        tables.fields(list(found.items()))


@cli.command()
@click.option("--timeout", type=int, metavar="SECONDS", help="How long to wait before killing VEs.")
@click.pass_context
def shutdown(context: click.Context, timeout: int | None) -> None:
    """Stop all VEs, give the network back, end daemon and keeper."""
    context.invoke(stop, names=(), all_=True, timeout=timeout, kill=False)
    connected = client(context)
    connected.call("Shutdown")
    connected.await_end()


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
