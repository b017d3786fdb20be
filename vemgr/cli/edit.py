# SPDX-License-Identifier: GPL-2.0-or-later
"""`vemgr edit`: a VE's settings in an editor. What comes back is checked here, so that an error can name its line, and
takes effect as by `vemgr set`, all of it or nothing."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping

import click

from vemgr.cli import completion, ending
from vemgr.cli.files import connected
from vemgr.core.config import BY_KEY, DEFAULTS, SETTINGS, parse_settings
from vemgr.core.errors import BadValue, SystemFailure, VemgrError

_HEADER = "# Settings of VE {name}. Lines with a '#' are defaults.\n\n"


@click.command()
@click.argument("name", shell_complete=completion.ves())
@click.pass_context
def edit(context: click.Context, name: str) -> None:
    """Change a VE's settings in $VISUAL or $EDITOR."""
    client = connected(context)
    before = {key: text for key, text in client.call("Show", {"name": name})["settings"].items() if key in BY_KEY}
    text = _HEADER.format(name=name) + "".join(_line(key, value) for key, value in before.items())
    while True:
        edited = _edited(text)
        try:
            changes = _changes(before, _parse(edited))
            if not changes:
                click.echo(f"{name}: nothing has changed", err=True)
                return
            pending = client.call("Set", {"name": name, "settings": changes})["pending"]
        except VemgrError as error:
            if not (sys.stdin.isatty() and sys.stderr.isatty()):
                raise
            ending.say(str(error))
            if not click.confirm("Nothing has changed. Edit again?", default=True, err=True):
                raise click.Abort from None
            text = edited
        else:
            if pending:
                click.echo(f"{name}: at the next start: {', '.join(pending)}", err=True)
            return


def _line(key: str, value: str) -> str:
    setting = BY_KEY[key]
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    mark = "#" if value == _default(key) else ""
    return f'# {setting.help}\n{mark}{key} = "{quoted}"\n\n'


def _default(key: str) -> str:
    setting = BY_KEY[key]
    return setting.show(getattr(DEFAULTS, setting.attribute))


def _edited(text: str) -> str:
    import subprocess  # noqa: PLC0415  (for this verb only)
    import tempfile  # noqa: PLC0415

    command = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    with tempfile.NamedTemporaryFile("w+", encoding="utf-8", prefix="vemgr-edit-", suffix=".toml") as file:
        file.write(text)
        file.flush()
        try:
            code = subprocess.run([*command, file.name], check=False).returncode
        except OSError as error:
            raise SystemFailure(f"the editor {command[0]} cannot be run: {error.strerror}",
                                remedy="name another in $VISUAL or $EDITOR") from None
        if code:
            raise SystemFailure(f"the editor {command[0]} ended with code {code}: nothing has changed")
        with open(file.name, encoding="utf-8", errors="replace") as saved:  # many editors write another file
            return saved.read()


def _parse(text: str) -> dict[str, str]:
    """The settings in a text. Raises `BadValue`, `BadParameter`, with the line."""
    import tomllib  # noqa: PLC0415

    try:
        found = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadValue("definition", "...", f"not TOML: {error}") from None
    settings: dict[str, str] = {}
    for key, value in found.items():
        try:
            settings[key] = _text(key, value)
            parse_settings({key: settings[key]})
        except VemgrError as error:
            # That one setting needs another is seen when all are known.
            if not (error.identifier == "BadValue" and key in BY_KEY and _stands_with(found, key)):
                error.message = f"line {_line_of(text, key)}: {error.message}"
                raise
    parse_settings(settings)
    return settings


def _stands_with(found: Mapping[str, object], key: str) -> bool:
    try:
        parse_settings({each: _text(each, value) for each, value in found.items() if each in BY_KEY})
        BY_KEY[key].parse(key, _text(key, found[key]))
    except VemgrError:
        return False
    return True


def _text(key: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (str, int, float)):
        return str(value)
    raise BadValue(key, ascii(value)[:80], "not a text or number", remedy=f'write {key} = "..."')


def _line_of(text: str, key: str) -> int:
    for number, line in enumerate(text.splitlines(), 1):
        if line.split("=")[0].strip().strip("\"'[]").split(".")[0] == key:
            return number
    return 1


def _changes(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    """What `set` has to be told: what is not there any more goes back to its default."""
    changes = {key: text for key, text in after.items() if text != before.get(key)}
    gone = {setting.key for setting in SETTINGS} - set(after)
    return {**changes, **{key: "default" for key in gone if key in before and before[key] != _default(key)}}
