# SPDX-License-Identifier: GPL-2.0-or-later
"""`vemgr template`: list, show, build, import, remove.

What is built or packed streams through a pipe into the daemon's import, so there is one way into the store, and it
is the one that trusts no archive.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import IO, Any

import click

from vemgr.api.client import Client
from vemgr.cli import connection, tables
from vemgr.core.errors import BadValue, NotEnoughResources, SystemFailure, VemgrError
from vemgr.core.layers import check_template_name

_DEBIAN = {"11": "bullseye", "12": "bookworm", "13": "trixie", "sid": "sid"}
_UBUNTU = {"22.04": "jammy", "24.04": "noble", "26.04": "resolute"}
_KEYRINGS = {"debian": "/usr/share/keyrings/debian-archive-keyring.gpg",
             "ubuntu": "/usr/share/keyrings/ubuntu-archive-keyring.gpg"}
_PACKAGES = "systemd,systemd-sysv,dbus,iproute2,iputils-ping,procps,ca-certificates"
_KEPT_LINES = 5


def _client(context: click.Context) -> Client:
    return connection.connect(context.find_object(str) or "/etc/vemgr/vemgr.toml")


@click.group()
def template() -> None:
    """What VEs are made from."""


@template.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def list_(context: click.Context, as_json: bool) -> None:
    """All templates."""
    found = _client(context).call("ListTemplates")["templates"]
    if as_json:
        tables.as_json(found)
    else:
        tables.table(found, ("name", "kind", "distribution", "version", "files", "users", "description"))


@template.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def show(context: click.Context, name: str, as_json: bool) -> None:
    """One template and who uses it."""
    found = _client(context).call("ShowTemplate", {"name": name})
    if as_json:
        tables.as_json(found)
    else:
        tables.fields(list(found.items()))


@template.command()
@click.argument("name")
@click.pass_context
def remove(context: click.Context, name: str) -> None:
    """Remove a template that no VE uses."""
    _client(context).call("RemoveTemplate", {"name": name})


@template.command("refresh-host")
@click.pass_context
def refresh_host(context: click.Context) -> None:
    """Make the template 'host' anew after the host's packages have changed."""
    _client(context).call("RefreshHostTemplate")


@template.command("import")
@click.argument("name")
@click.argument("source", metavar="FILE|DIRECTORY|-")
@click.option("--description", default="", help="A line for people.")
@click.pass_context
def import_(context: click.Context, name: str, source: str, description: str) -> None:
    """Make a template of a root file system: a tar archive (gz, xz, zst), a directory, or standard input."""
    check_template_name(name)
    connected = _client(context)
    if source == "-":
        _import(connected, name, description, 0)
    elif os.path.isdir(source):
        _stream(connected, name, description, Producer(
            "tar", ["tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--one-file-system", "-C", source,
                    "-cf", "-", "."]))
    else:
        try:
            fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise BadValue("source", source, str(error.strerror).lower()) from None
        _import(connected, name, description, fd)


def _import(connected: Client, name: str, description: str, fd: int) -> dict[str, Any]:
    return connected.call("ImportTemplate", {"name": name, "description": description, "archive": 0}, [fd])


@template.command()
@click.argument("name")
@click.option("--suite", default="", help="Suite of the distribution, where the name does not tell.")
@click.option("--mirror", default="", metavar="URL", help="Package mirror.")
@click.option("--include", default="", metavar="PACKAGES", help="More packages, separated by commas.")
@click.option("--keyring", default="", metavar="FILE", help="The distribution's keys.")
@click.pass_context
def build(context: click.Context, name: str, suite: str, mirror: str, include: str, keyring: str) -> None:
    """Build a template with mmdebstrap: debian-12, debian-13, ubuntu-24.04, ..."""
    check_template_name(name)
    distribution, _, version = name.partition("-")
    suite = suite or {"debian": _DEBIAN, "ubuntu": _UBUNTU}.get(distribution, {}).get(version, "")
    if not suite:
        known = [f"debian-{v}" for v in _DEBIAN] + [f"ubuntu-{v}" for v in _UBUNTU]
        raise BadValue("template", name, "no suite is known by this name",
                       remedy=f"use one of {', '.join(known)}, or name a suite with --suite")
    if shutil.which("mmdebstrap") is None:
        raise NotEnoughResources("mmdebstrap is not installed", remedy="apt install mmdebstrap")
    keyring = keyring or _KEYRINGS.get(distribution, _KEYRINGS["debian"])
    if not os.path.exists(keyring):
        raise NotEnoughResources(f"the keys of {distribution} are missing: {keyring}",
                                 remedy=f"apt install {distribution}-archive-keyring (or {distribution}-keyring)")
    connected = _client(context)
    packages = ",".join(filter(None, (_PACKAGES, include)))
    command = ["mmdebstrap", "--mode=root", "--variant=minbase", f"--include={packages}", f"--keyring={keyring}",
               "--format=tar", suite, "-", *([mirror] if mirror else [])]
    _stream(connected, name, f"{distribution} {suite}, built by mmdebstrap", Producer("mmdebstrap", command))


@dataclass
class Producer:
    """A program whose standard output is an archive."""

    name: str
    command: list[str]


def _stream(connected: Client, name: str, description: str, producer: Producer) -> None:
    """Import what a program writes. Its own failure is told in preference to the torn archive that follows from it."""
    lines: list[str] = []
    process = subprocess.Popen(producer.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=False, env={**os.environ, "LC_ALL": "C"})
    assert process.stdout is not None
    assert process.stderr is not None
    watcher = threading.Thread(target=_show_progress, args=(process.stderr, lines), daemon=True)
    watcher.start()
    failure: VemgrError | None = None
    try:
        _import(connected, name, description, process.stdout.fileno())
    except VemgrError as error:
        failure = error
    # Nobody reads any more: a program that is not at its end gets SIGPIPE now.
    process.stdout.close()
    code = process.wait()
    watcher.join()
    process.stderr.close()
    if code > 0:
        if failure is None:
            connected.call("RemoveTemplate", {"name": name})
        raise SystemFailure(f"{producer.name} failed with status {code}: {'; '.join(lines[-_KEPT_LINES:])}")
    if failure is not None:
        raise failure


def _show_progress(stream: IO[bytes], lines: list[str]) -> None:
    """Lines of progress: one that is overwritten on a terminal, all of them in a log."""
    terminal = sys.stderr.isatty()
    for raw in stream:
        line = raw.decode(errors="replace").strip()
        if not line:
            continue
        lines.append(line)
        del lines[:-50]
        if terminal:
            click.echo(f"\r\033[K{line[:100]}", err=True, nl=False)
        else:
            click.echo(line, err=True)
    if terminal:
        click.echo("\r\033[K", err=True, nl=False)
