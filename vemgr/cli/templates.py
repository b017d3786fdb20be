# SPDX-License-Identifier: GPL-2.0-or-later
"""`vemgr template`: list, show, build, import, remove.

What is built or packed streams through a pipe into the daemon's import, so there is one way into the store, and it
is the one that trusts no archive.
"""

from __future__ import annotations

import os
from typing import Any

import click

from vemgr.api.client import Client
from vemgr.api.location import DEFAULT_PATH
from vemgr.cli import completion, connection, tables
from vemgr.core.errors import BadValue, NotEnoughResources
from vemgr.core.layers import check_template_name

_DEBIAN = {"11": "bullseye", "12": "bookworm", "13": "trixie", "sid": "sid"}
_UBUNTU = {"22.04": "jammy", "24.04": "noble", "26.04": "resolute"}
_KEYRINGS = {"debian": "/usr/share/keyrings/debian-archive-keyring.gpg",
             "ubuntu": "/usr/share/keyrings/ubuntu-archive-keyring.gpg"}
_PACKAGES = "systemd,systemd-sysv,dbus,iproute2,iputils-ping,procps,ca-certificates"


def _client(context: click.Context) -> Client:
    return connection.connect(context.find_object(str) or DEFAULT_PATH)


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
@click.argument("name", shell_complete=completion.templates)
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
@click.argument("name", shell_complete=completion.templates)
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
@click.argument("source", metavar="FILE|DIRECTORY|-", shell_complete=completion.files)
@click.option("--description", default="", help="A line for people.")
@click.pass_context
def import_(context: click.Context, name: str, source: str, description: str) -> None:
    """Make a template of a root file system: a tar archive (gz, xz, zst), a directory, or standard input."""
    check_template_name(name)
    connected = _client(context)
    if source == "-":
        if os.isatty(0):
            raise BadValue("source", source, "nobody types an archive", remedy="name a file, or use a pipe")
        _import(connected, name, description, 0)
    elif os.path.isdir(source):
        _stream(connected, name, description, [
            "tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--one-file-system", "-C", source,
            "-cf", "-", "."])
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
@click.option("--keyring", default="", metavar="FILE", help="The distribution's keys.", shell_complete=completion.files)
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
    import shutil  # noqa: PLC0415  (10 ms for its compression modules, at every command)

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
    _stream(connected, name, f"{distribution} {suite}, built by mmdebstrap", command)


def _stream(connected: Client, name: str, description: str, command: list[str]) -> None:
    from vemgr.cli.producers import Producer, stream  # noqa: PLC0415  (threads and processes, for two verbs)

    stream(Producer(command), lambda fd: _import(connected, name, description, fd),
           lambda: connected.call("RemoveTemplate", {"name": name}))
