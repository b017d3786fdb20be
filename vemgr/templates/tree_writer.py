# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes files below a directory descriptor, whatever has been put there before.

The attack to prevent: an archive first plants a symlink `x -> /etc` and then delivers a file `x/passwd`, and root's
daemon follows. So no path is ever resolved by name alone: parents are opened by openat2 without following symlinks,
the last component is made with O_EXCL or its like, and metadata goes through the descriptor that was just made.
Nothing that exists is ever opened, except directories: opening a fifo would hang, a device would act.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Self, TypeVar

from vemgr.kernel.openat2 import open_beneath

EntryPath = tuple[bytes, ...]  # components; bytes, so that no locale can change a name on its way to the kernel

_Made = TypeVar("_Made")

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_NO_TARGET = "it is a hard link to a file that is not in the archive before it"
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class EntryError(Exception):
    """This entry would break a rule; the message says which."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """`mode`: permission bits with setuid, setgid and sticky. `mtime`: nanoseconds since 1970."""

    mode: int
    uid: int
    gid: int
    mtime: int
    xattrs: dict[str, bytes] = field(default_factory=dict)


class TreeWriter:
    """`made` counts the directory entries that were made, the directories that a path implied included.

    All methods raise EntryError and OSError.
    """

    def __init__(self, root_fd: int) -> None:
        self.made = 0
        self._root_fd = root_fd
        # Entries of one directory usually come together. A directory once made is never removed or replaced here,
        # so the descriptor stays right for its path.
        self._parent_path: EntryPath | None = None
        self._parent_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._forget_parent()

    def directory(self, path: EntryPath, meta: Metadata) -> None:
        """Makes a directory, or gives the one that is there its metadata. The empty path is the root."""
        if not path:
            self._describe(self._root_fd, meta)
            return
        fd = self._enter(self._parent(path), path[-1], replace=True)
        try:
            self._describe(fd, meta)
        finally:
            os.close(fd)

    def file(self, path: EntryPath, meta: Metadata, chunks: Iterable[bytes], *, sparse: bool = False) -> None:
        """Makes a regular file. `sparse`: chunks of zeros become holes."""
        parent, name = self._place(path)
        fd = self._replace(parent, name, lambda: os.open(name, _NEW_FILE, 0o600, dir_fd=parent))
        try:
            size = 0
            for chunk in chunks:
                if sparse and chunk.count(0) == len(chunk):
                    os.lseek(fd, len(chunk), os.SEEK_CUR)
                else:
                    _write_all(fd, chunk)
                size += len(chunk)
            if sparse:
                os.ftruncate(fd, size)
            self._describe(fd, meta)
        finally:
            os.close(fd)

    def symlink(self, path: EntryPath, target: bytes, meta: Metadata) -> None:
        """The target is content: it may point anywhere, nothing here follows it."""
        parent, name = self._place(path)
        self._replace(parent, name, lambda: os.symlink(target, name, dir_fd=parent))
        self._describe_unopened(parent, name, meta)

    def fifo(self, path: EntryPath, meta: Metadata) -> None:
        parent, name = self._place(path)
        self._replace(parent, name, lambda: os.mkfifo(name, 0o600, dir_fd=parent))
        # There is no chmod that refuses to follow a symlink before Linux 6.6; O_PATH does not open the fifo.
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            self._describe_unopened(parent, name, meta)
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                os.chmod(f"/proc/self/fd/{fd}", meta.mode)
        finally:
            os.close(fd)

    def whiteout(self, path: EntryPath) -> None:
        """What hides a name of the layers below (overlayfs, "whiteouts and opaque directories")."""
        parent, name = self._place(path)
        self._replace(parent, name, lambda: os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=parent))

    def hard_link(self, path: EntryPath, target: EntryPath) -> None:
        """Links to a regular file that is in the tree already. A link to itself is already there."""
        if not target:
            raise EntryError("it is a hard link to a directory")
        try:
            source = self._open_existing(target[:-1])
        except FileNotFoundError:
            raise EntryError(_NO_TARGET) from None
        try:
            self._check_target(source, target[-1])
            if path == target:
                return
            parent, name = self._place(path)
            self._replace(
                parent, name,
                lambda: os.link(target[-1], name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False),
            )
        finally:
            os.close(source)

    @staticmethod
    def _check_target(parent: int, name: bytes) -> None:
        try:
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            raise EntryError(_NO_TARGET) from None
        if not stat.S_ISREG(found.st_mode):
            raise EntryError("it is a hard link to something that is not a regular file")

    def exists(self, path: EntryPath) -> bool:
        """Whether anything has this name, itself not followed. False also if a parent is missing or a symlink."""
        try:
            os.close(open_beneath(self._root_fd, b"/".join(path) or b".", os.O_PATH))
        except OSError as error:
            return error.errno == errno.ELOOP
        return True

    def _place(self, path: EntryPath) -> tuple[int, bytes]:
        if not path:
            raise EntryError("only a directory can be the root")
        return self._parent(path), path[-1]

    def _parent(self, path: EntryPath) -> int:
        parents = path[:-1]
        if parents != self._parent_path:
            fd = self._make_directories(parents)
            self._forget_parent()
            self._parent_path, self._parent_fd = parents, fd
        return self._parent_fd

    def _forget_parent(self) -> None:
        if self._parent_path is not None:
            os.close(self._parent_fd)
            self._parent_path = None

    def _make_directories(self, path: EntryPath) -> int:
        with contextlib.suppress(FileNotFoundError):
            return self._open_existing(path)
        fd = self._open_existing(())
        for name in path:
            try:
                below = self._enter(fd, name, replace=False)
            finally:
                os.close(fd)
            fd = below
        return fd

    def _open_existing(self, path: EntryPath) -> int:
        try:
            return open_beneath(self._root_fd, b"/".join(path) or b".", _DIRECTORY)
        except OSError as error:
            raise _obstacle(error) from None

    def _enter(self, parent: int, name: bytes, *, replace: bool) -> int:
        """Opens the directory `name`, which is made if it is missing, and if `replace` is in place of anything else."""
        try:
            return open_beneath(parent, name, _DIRECTORY)
        except FileNotFoundError:
            pass
        except OSError as error:
            if not replace or error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise _obstacle(error) from None
            os.unlink(name, dir_fd=parent)
        os.mkdir(name, 0o700, dir_fd=parent)
        self.made += 1
        fd = open_beneath(parent, name, _DIRECTORY)
        try:
            os.fchmod(fd, 0o755)  # not by mkdir's mode: the umask belongs to the whole process
        except OSError:
            os.close(fd)
            raise
        return fd

    def _replace(self, parent: int, name: bytes, make: Callable[[], _Made]) -> _Made:
        """Makes something that must not be there yet, in place of what is there unless that is a directory."""
        try:
            made = make()
        except FileExistsError:
            try:
                os.unlink(name, dir_fd=parent)
            except IsADirectoryError:
                raise EntryError("a directory stands in its place") from None
            made = make()
        self.made += 1
        return made

    def _describe(self, fd: int, meta: Metadata) -> None:
        # The order matters: a change of owner clears setuid bits and capabilities, and each step may touch the times.
        os.fchown(fd, meta.uid, meta.gid)
        os.fchmod(fd, meta.mode)
        for name, value in meta.xattrs.items():
            _set_xattr(fd, name, value)
        os.utime(fd, ns=(meta.mtime, meta.mtime))

    def _describe_unopened(self, parent: int, name: bytes, meta: Metadata) -> None:
        os.chown(name, meta.uid, meta.gid, dir_fd=parent, follow_symlinks=False)
        os.utime(name, ns=(meta.mtime, meta.mtime), dir_fd=parent, follow_symlinks=False)


def _set_xattr(fd: int, name: str, value: bytes) -> None:
    try:
        os.setxattr(fd, name, value)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        # A file capability that is no capability, a name that is too long, a file system without attributes.
        raise EntryError(f"its attribute {name!a} cannot be set: {error.strerror}") from None


def _obstacle(error: OSError) -> OSError | EntryError:
    """What it means that a directory could not be entered."""
    if error.errno == errno.ELOOP:
        return EntryError("a symlink stands where its directory should be")
    if error.errno == errno.ENOTDIR:
        return EntryError("a file stands where its directory should be")
    return error


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]
