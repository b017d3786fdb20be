# SPDX-License-Identifier: GPL-2.0-or-later
"""`vemgr push` and `vemgr pull`: files into VEs and out of them. The local side is opened here, with the caller's own
rights and names; what is behind the VE's names only the daemon looks at."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
from collections.abc import Iterator
from typing import Any

import click

from vemgr.api import holding
from vemgr.api.client import Client
from vemgr.api.location import DEFAULT_PATH
from vemgr.cli import completion, connection, ending
from vemgr.core.errors import BadValue

STANDARD = "-"
_recursive = click.option("-r", "--recursive", is_flag=True,
                          help="A directory with all below it; '-' is a tar archive.")


def connected(context: click.Context) -> Client:
    return connection.connect(context.find_object(str) or DEFAULT_PATH)


@contextlib.contextmanager
def hold() -> Iterator[int]:
    """As `api.holding.held`. Ctrl-C ends us at once: nothing of us can say yes after that."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    with holding.held() as descriptor:
        yield descriptor
    signal.signal(signal.SIGINT, before)


@click.command()
@click.argument("source", metavar="FILE|DIRECTORY|-", shell_complete=completion.files)
@click.argument("target", metavar="NAME:PATH")
@_recursive
@click.option("-o", "--owner", default="0:0", metavar="UID[:GID]", show_default=True,
              help="Whose it is in the VE, by number.")
@click.option("-m", "--mode", default="", metavar="MODE", help="Its permissions, in octal, instead of the file's own.")
@click.pass_context
def push(context: click.Context, source: str, target: str, recursive: bool, owner: str, mode: str) -> None:
    """Copy a file or directory into a VE."""
    name, path = _split("target", target)
    uid, gid = _owner(owner)
    fd = 0 if source == STANDARD else opened(source, os.O_RDONLY | (os.O_DIRECTORY if recursive else 0))
    info = os.fstat(fd)
    if stat.S_ISDIR(info.st_mode) and not recursive:
        raise BadValue("source", source, "a directory", remedy="copy it with --recursive")
    parameters: dict[str, Any] = {"uid": uid, "gid": gid, "kind": "file"}
    if source != STANDARD:
        parameters["fileName"] = os.path.basename(os.path.abspath(source))
    if recursive:
        parameters["kind"] = "archive" if source == STANDARD else "directory"
    elif stat.S_ISREG(info.st_mode):
        parameters |= {"mode": stat.S_IMODE(info.st_mode), "mtime": info.st_mtime_ns}
    if mode:
        parameters["mode"] = _mode(mode)
    with hold() as held:
        connected(context).call("Push", {"name": name, "path": path, "stream": 0, "hold": 1, **parameters}, [fd, held])


@click.command()
@click.argument("source", metavar="NAME:PATH")
@click.argument("target", metavar="FILE|DIRECTORY|-", shell_complete=completion.files)
@_recursive
@click.pass_context
def pull(context: click.Context, source: str, target: str, recursive: bool) -> None:
    """Copy a file or directory out of a VE."""
    name, path = _split("source", source)
    client = connected(context)

    def fetch(kind: str, stream: int) -> dict[str, Any]:
        with hold() as held:
            reply = client.call("Pull", {"name": name, "path": path, "kind": kind, "stream": 0, "hold": 1},
                                [stream, held])
        if reply["skippedCount"]:
            ending.say(f"left out as they are no files, directories or symlinks: {reply['skippedCount']}, such as "
                       f"{', '.join(reply['skipped'][:5])}")
        return reply

    if target == STANDARD:
        if recursive and os.isatty(1):
            raise BadValue("target", target, "nobody reads an archive", remedy="name a directory, or use a pipe")
        fetch("archive" if recursive else "file", 1)
        return
    if os.path.isdir(target):
        target = os.path.join(target, os.path.basename(path.rstrip("/")) or name)
    if recursive:
        with _new_directory(target) as fd:
            fetch("directory", fd)
    elif os.path.exists(target) and not os.path.isfile(target):  # /dev/null, a fifo
        fetch("file", opened(target, os.O_WRONLY))
    else:
        with new_file(target) as fd:
            found = fetch("file", fd)
            os.fchmod(fd, found["mode"] & 0o777)  # a VE's set-user-ID program must not be one of the host's
            os.utime(fd, ns=(found["mtime"], found["mtime"]))


def _split(field: str, text: str) -> tuple[str, str]:
    name, colon, path = text.partition(":")
    if not colon or not path.startswith("/"):
        raise BadValue(field, text, "not a place in a VE", remedy="write NAME:/PATH")
    return name, path


def _owner(text: str) -> tuple[int, int]:
    uid, _, gid = text.partition(":")
    if not (uid.isdecimal() and (gid or uid).isdecimal()):
        raise BadValue("--owner", text, "not UID or UID:GID", remedy="write numbers, those of the VE")
    return int(uid), int(gid or uid)


def _mode(text: str) -> int:
    try:
        return int(text, 8)
    except ValueError:
        raise BadValue("--mode", text, "not a number in octal") from None


def opened(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        raise BadValue("file", path, str(error.strerror).lower()) from None


def _temporary(name: str) -> str:
    return f".{name[:200]}.{os.urandom(4).hex()}"


@contextlib.contextmanager
def new_file(path: str) -> Iterator[int]:
    """A file that gets its name when the body has succeeded; until then it has none, so that nothing of it outlives
    us."""
    directory, name = os.path.split(os.path.abspath(path))
    parent = opened(directory, os.O_RDONLY | os.O_DIRECTORY)
    fd = opened(directory, os.O_WRONLY | os.O_TMPFILE)
    try:
        yield fd
        os.fsync(fd)
        temporary = _temporary(name)
        os.link(f"/proc/self/fd/{fd}", temporary, dst_dir_fd=parent, follow_symlinks=True)
        os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
    finally:
        os.close(fd)
        os.close(parent)


@contextlib.contextmanager
def _new_directory(path: str) -> Iterator[int]:
    """A directory that gets its name when the body has succeeded."""
    if os.path.lexists(path):
        raise BadValue("target", path, "exists already")
    directory, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(directory, _temporary(name))
    import shutil  # noqa: PLC0415  (for this alone; not in the error path, where there may be no descriptor left)

    try:
        os.mkdir(temporary, 0o700)
    except OSError as error:
        raise BadValue("target", path, str(error.strerror).lower()) from None
    try:
        fd = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
