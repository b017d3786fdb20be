# SPDX-License-Identifier: GPL-2.0-or-later
"""push and pull. The VE's side is done as its root; the host's side, where it is a tree, by a process that is still
the host's root, with a tar stream between the two."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import tarfile
from dataclasses import replace
from typing import Any, BinaryIO

from vemgr.files import opening, single
from vemgr.files.packing import Packer
from vemgr.files.sides import other_side
from vemgr.kernel.openat2 import open_in_root
from vemgr.templates.archive import unpack
from vemgr.templates.archive_entry import metadata
from vemgr.templates.tree_writer import Metadata


def push(job: dict[str, Any]) -> dict[str, Any]:
    """A file, a directory or an archive into a VE."""
    root, userns = _open(job)
    source, kind, owner = job["stream"], job["kind"], (job["uid"], job["gid"])
    if kind == "directory":
        with other_side(lambda target: _pack_host(source, target, owner), reads=False) as stream:
            opening.become_root_of(userns)
            _unpack_inside(root, job, stream)
        return {}
    opening.become_root_of(userns)
    if kind == "archive":
        with open(os.dup(source), "rb") as archive:
            _unpack_inside(root, job, archive)
    else:
        place = single.open_place(root, job["path"], job["name"])
        single.write_file(place, source, job["mode"], owner, job.get("mtime"), lambda: _confirm(job["hold"]))
    return {}


def pull(job: dict[str, Any]) -> dict[str, Any]:
    """A file, or a directory as a tree or an archive, out of a VE."""
    root, userns = _open(job)
    target, kind, path = job["stream"], job["kind"], job["path"]
    if kind == "file":
        opening.become_root_of(userns)
        fd = single.open_file(root, path)
        single.copy(fd, target)
        info = os.fstat(fd)
        return {"mode": stat.S_IMODE(info.st_mode), "mtime": info.st_mtime_ns, "skipped": []}
    if kind == "archive":
        opening.become_root_of(userns)
        with open(os.dup(target), "wb") as archive:
            return _pack_inside(root, path, archive)
    with other_side(lambda stream: _unpack_on_host(stream, target), reads=True) as stream:
        opening.become_root_of(userns)
        return _pack_inside(root, path, stream)


def _open(job: dict[str, Any]) -> tuple[int, int]:
    if "pid" in job:
        return opening.open_running(job["pid"], job["pidfd"])
    return opening.open_stopped(job["trees"], job["data"], job["disk"], job["id-base"], job["stage"])


def _confirm(hold: int) -> None:
    """Ask who has asked for it. The end of a pipe tells nothing: with Ctrl-C, what writes to it ends when the client
    does, and half a file must not take the place of a whole one."""
    fcntl.fcntl(hold, fcntl.F_SETFL, 0)  # no signals from now on, and to wait for the answer
    if not os.write(hold, b"?") or not os.read(hold, 1):
        raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))


def _unpack_inside(root: int, job: dict[str, Any], stream: BinaryIO) -> None:
    place = single.open_place(root, job["path"], job["name"])
    with single.new_directory(place, lambda: _confirm(job["hold"])) as directory:
        unpack(stream, directory)


def _pack_inside(root: int, path: str, stream: BinaryIO) -> dict[str, Any]:
    top = open_in_root(root, path, os.O_RDONLY | os.O_DIRECTORY)
    packer = Packer(stream)
    packer.tree(top)
    packer.close()
    stream.flush()
    return {"mode": stat.S_IMODE(os.fstat(top).st_mode), "mtime": 0, "skipped": packer.skipped.names,
            "skippedCount": packer.skipped.count}


def _pack_host(source: int, stream: BinaryIO, owner: tuple[int, int]) -> None:
    top = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=source)
    packer = Packer(stream, owner=owner)
    packer.tree(top)
    packer.close()


def _unpack_on_host(stream: BinaryIO, target: int) -> None:
    unpack(stream, target, describe=_harmless)


def _harmless(member: tarfile.TarInfo) -> tuple[Metadata, int]:
    """What a VE says of its files, for a host: they belong to who has asked for them, and give nobody rights. A program
    that a VE's root has made set-user-ID must not become one of the host's root."""
    meta, dropped = metadata(member)
    return replace(meta, uid=os.getuid(), gid=os.getgid(), mode=meta.mode & 0o777, xattrs={}), dropped
