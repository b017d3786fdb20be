# SPDX-License-Identifier: GPL-2.0-or-later
"""One file into a tree that somebody else shapes meanwhile, or out of it.

Paths are resolved by openat2 with the tree as root, so that symlinks end in it. What is opened was seen to be a regular
file before, without opening it: a fifo would hold us, a device would act. What is written has no name until it is
whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vemgr.kernel.openat2 import open_beneath, open_in_root
from vemgr.kernel.removal import remove_tree
from vemgr.kernel.renaming import rename_to_nothing

_CHUNK = 256 << 10
_DIRECTORY = os.O_PATH | os.O_DIRECTORY
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)


@dataclass(frozen=True)
class Place:
    """Where something is to stand: an open directory, and a name in it."""

    parent: int
    name: str

    def temporary(self) -> str:
        return f".vemgr-{secrets.token_hex(8)}"


def open_place(root: int, path: str, name: str) -> Place:
    """`path` below `root`; where that is a directory already, `name` in it. Raises `OSError`."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        directory = open_in_root(root, path, _DIRECTORY)
        if not name:
            os.close(directory)
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        return Place(directory, name)
    parent, _, last = path.rpartition("/")
    if last in ("", ".", ".."):
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return Place(open_in_root(root, parent or "/", _DIRECTORY), last)


def write_file(place: Place, source: int, mode: int, owner: tuple[int, int], mtime: int | None,
               confirm: Callable[[], None]) -> None:
    """Replace or make the file at `place`, whole or not at all. `mtime`: nanoseconds. `confirm` raises if it is not
    wanted any more. Raises `OSError`."""
    temporary = place.temporary()
    fd, named = _open_new(place, temporary)
    try:
        copy(source, fd)
        os.fchown(fd, *owner)
        os.fchmod(fd, mode)  # after the change of owner, which clears bits
        if mtime is not None:
            os.utime(fd, ns=(mtime, mtime))
        os.fsync(fd)
        confirm()
        if not named:
            os.link(f"/proc/self/fd/{fd}", temporary, dst_dir_fd=place.parent, follow_symlinks=True)
            named = True
        os.rename(temporary, place.name, src_dir_fd=place.parent, dst_dir_fd=place.parent)
        named = False
    finally:
        os.close(fd)
        if named:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=place.parent)


def _open_new(place: Place, temporary: str) -> tuple[int, bool]:
    """A new file, without a name where the file system can do that; and whether it has one."""
    try:
        return os.open(".", os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=place.parent), False
    except OSError as error:
        if error.errno not in _NO_TMPFILE:  # overlayfs before Linux 6.1
            raise
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(temporary, flags, 0o600, dir_fd=place.parent), True


def open_file(root: int, path: str) -> int:
    """A regular file below `root`, open for reading. Raises `OSError`."""
    seen = open_in_root(root, path, os.O_PATH)
    try:
        return reopen(seen, path)
    finally:
        os.close(seen)


def reopen(seen: int, path: str) -> int:
    """What was opened as a path only, for reading, if it is a regular file. Raises `OSError`."""
    found = os.fstat(seen)
    if stat.S_ISDIR(found.st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", path)
    return os.open(f"/proc/self/fd/{seen}", os.O_RDONLY | os.O_CLOEXEC)


def copy(source: int, target: int) -> None:
    """To the end of `source`, in memory of a fixed size."""
    while chunk := os.read(source, _CHUNK):
        write_all(target, chunk)


def write_all(target: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(target, rest):]


@contextlib.contextmanager
def new_directory(place: Place, confirm: Callable[[], None]) -> Iterator[int]:
    """A directory under a name of ours; if the body succeeds, and `confirm` too, it gets its own, which nothing may
    have. Raises `OSError`."""
    temporary = place.temporary()
    os.mkdir(temporary, 0o700, dir_fd=place.parent)
    try:
        fd = open_beneath(place.parent, temporary, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield fd
        finally:
            os.close(fd)
        confirm()
        rename_to_nothing(place.parent, temporary, place.name)
    except BaseException:
        with contextlib.suppress(OSError):
            remove_tree(temporary, dir_fd=place.parent)
        raise
