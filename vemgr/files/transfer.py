# SPDX-License-Identifier: GPL-2.0-or-later
"""push and pull. The VE's side is done as its root; the host's side, where it is a tree, by a process that is still
the host's root, with a tar stream between the two."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import stat
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, BinaryIO, Literal

import prctl

from vemgr.files import opening, single
from vemgr.files.packing import Packer
from vemgr.kernel.openat2 import open_in_root
from vemgr.templates.archive import unpack
from vemgr.templates.archive_entry import metadata
from vemgr.templates.tree_writer import Metadata


def push(job: dict[str, Any]) -> dict[str, Any]:
    """A file, a directory or an archive into a VE."""
    root, userns = _open(job)
    source, kind, owner = job["stream"], job["kind"], (job["uid"], job["gid"])
    if kind == "directory":
        with _other_side(lambda target: _pack_host(source, target, owner), reads=False) as stream:
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
    with _other_side(lambda stream: _unpack_on_host(stream, target), reads=True) as stream:
        opening.become_root_of(userns)
        return _pack_inside(root, path, stream)


def _open(job: dict[str, Any]) -> tuple[int, int]:
    if "pid" in job:
        return opening.open_running(job["pid"], job["pidfd"])
    return opening.open_stopped(job["trees"], job["data"], job["id-base"], job["stage"])


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


Mode = Literal["rb", "wb"]


@contextlib.contextmanager
def _other_side(work: Callable[[BinaryIO], None], *, reads: bool) -> Iterator[BinaryIO]:
    """Fork a process that does `work` with the other end of a pipe. A failure is raised when both have ended."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    told, tell = os.pipe2(os.O_CLOEXEC)
    theirs, ours = (reader, writer) if reads else (writer, reader)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        _be_other_side(work, parent, theirs, ours, "rb" if reads else "wb", tell)
    os.close(theirs)
    os.close(tell)
    failure: BaseException | None = None
    stream: BinaryIO = open(ours, "wb" if reads else "rb")  # noqa: SIM115  (closed in each case below)
    try:
        yield stream
    except BaseException as error:
        failure = error
    finally:
        if failure is not None and not isinstance(failure, Exception):  # we are told to give up
            os.kill(child, signal.SIGKILL)
        with contextlib.suppress(OSError):
            stream.close()
        said = os.read(told, 4000).decode(errors="replace")
        os.waitpid(child, 0)
        os.close(told)
    # Whoever wrote is to blame first, for an archive that is cut off; unless nobody read any more.
    if failure is not None and (not said or (reads and not isinstance(failure, BrokenPipeError))):
        raise failure
    if said:
        raise OSError(errno.EIO, said)


def _be_other_side(work: Callable[[BinaryIO], None], parent: int, theirs: int, ours: int, mode: Mode,
                   tell: int) -> None:
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        prctl.set_pdeathsig(signal.SIGKILL)
        os.close(ours)
        if os.getppid() == parent:
            with open(theirs, mode) as stream:
                work(stream)
            code = 0
    except BrokenPipeError:
        pass  # the other side has failed, and says why
    except Exception as error:
        os.write(tell, str(error).encode()[:2000])
    finally:
        os._exit(code)
