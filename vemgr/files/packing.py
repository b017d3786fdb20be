# SPDX-License-Identifier: GPL-2.0-or-later
"""A tree that somebody else may be changing, as a tar stream.

Directories are entered by descriptor, without following links and without entering what is mounted in the tree. Regular
files are opened when they were seen to be that; fifos, sockets and devices never. A file that changes while it is read
is cut or filled up with zeros to the size that its header has announced, as tar(1) does it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, cast

from vemgr.files.single import reopen
from vemgr.kernel.openat2 import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, openat2
from vemgr.templates.archive_entry import shown

_BELOW = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV
_RACED = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR)  # it is gone, or something else by now
_DEPTH = 100  # directories; what unpacking takes too, and each one is a descriptor
_LINKS = 200_000  # files with several names that are remembered; further ones are packed once for each name
_NAMED = 20  # of what was left out


@dataclass
class Skipped:
    """What was left out: how much, and some of the names."""

    count: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        self.count += 1
        if len(self.names) < _NAMED:
            self.names.append(shown(name))


class Packer:
    """`owner`: of all entries, instead of their own. `mounts`: what is to be taken in the place of directories
    of the tree, as descriptors by path. `keep_fifos`: as they are no danger to who unpacks them. Attributes are kept as
    `attributes` says: their names, or the beginnings of names."""

    directories_last = False  # after what is in them

    def __init__(self, target: BinaryIO, *, owner: tuple[int, int] | None = None, keep_fifos: bool = False,
                 mounts: Mapping[str, int] | None = None,
                 attributes: tuple[str, ...] = ("user.", "security.capability")) -> None:
        self.skipped = Skipped()
        self._tar = tarfile.open(  # noqa: SIM115  (`close` ends it)
            fileobj=target, mode="w|", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape")
        self._owner, self._keep_fifos, self._attributes = owner, keep_fifos, attributes
        self._mounts = mounts or {}
        self._links: dict[tuple[int, int], str] = {}

    def close(self) -> None:
        """Write the end of the archive, which who reads it insists on."""
        self._tar.close()

    def tree(self, top: int, name: str = ".") -> None:
        """The directory `top`, which stays open, and all below it. Raises `OSError`."""
        self._directory(os.dup(top), name, "", 0)

    def text(self, name: str, content: bytes) -> None:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = len(content), 0o600
        self._add(entry, cast(BinaryIO, _Bytes(content)))

    def _directory(self, fd: int, name: str, path: str, depth: int) -> None:
        if depth > _DEPTH:
            os.close(fd)
            raise OSError(errno.ELOOP, f"more than {_DEPTH} directories deep", shown(path))
        try:
            entry = self._entry(os.fstat(fd), name, tarfile.DIRTYPE, fd)
            if not self.directories_last:
                self._add(entry)
            with os.scandir(fd) as names:
                for each in names:
                    self._child(fd, each.name, f"{name}/{each.name}", f"{path}/{each.name}", depth)
            if self.directories_last:
                self._add(entry)
        finally:
            os.close(fd)

    def _child(self, parent: int, base: str, name: str, path: str, depth: int) -> None:
        try:
            info = os.stat(base, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISDIR(info.st_mode):
                self._subdirectory(parent, base, name, path, depth, info)
            elif stat.S_ISREG(info.st_mode):
                self._file(parent, base, name)
            elif stat.S_ISLNK(info.st_mode):
                entry = self._entry(info, name, tarfile.SYMTYPE)
                entry.linkname = os.readlink(base, dir_fd=parent)
                self._add(entry)
            elif stat.S_ISFIFO(info.st_mode) and self._keep_fifos:
                self._add(self._entry(info, name, tarfile.FIFOTYPE))
            else:
                self._other(info, name)
        except _WriteError as error:
            raise error.reason from None
        except OSError as error:
            if error.errno not in _RACED or error.filename not in (base, name):
                raise

    def _other(self, info: os.stat_result, name: str) -> None:
        del info
        self.skipped.add(name.removeprefix("."))

    def _subdirectory(self, parent: int, base: str, name: str, path: str, depth: int, info: os.stat_result) -> None:
        try:
            if path in self._mounts:
                fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._mounts[path])
            else:
                fd = openat2(parent, base, os.O_RDONLY | os.O_DIRECTORY, resolve=_BELOW)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self._add(self._entry(info, name, tarfile.DIRTYPE))  # /proc and the like: without what is mounted there
            return
        self._directory(fd, name, path, depth + 1)

    def _file(self, parent: int, base: str, name: str) -> None:
        try:
            seen = openat2(parent, base, os.O_PATH, resolve=_BELOW)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self.skipped.add(name)  # a file with something mounted over it
            return
        try:
            info = os.fstat(seen)
            if not stat.S_ISREG(info.st_mode):
                return  # it was a moment ago
            inode = info.st_dev, info.st_ino
            if info.st_nlink > 1 and inode in self._links:
                entry = self._entry(info, name, tarfile.LNKTYPE)
                entry.linkname = self._links[inode]
                self._add(entry)
                return
            fd = reopen(seen, base)
        finally:
            os.close(seen)
        if info.st_nlink > 1 and len(self._links) < _LINKS:
            self._links[inode] = name
        with open(fd, "rb", buffering=0) as file:
            entry = self._entry(info, name, tarfile.REGTYPE, fd)
            self._content(cast(BinaryIO, file), entry, info)

    def _content(self, file: BinaryIO, entry: tarfile.TarInfo, info: os.stat_result) -> None:
        entry.size = info.st_size
        self._add(entry, cast(BinaryIO, _Exactly(file)))

    def _entry(self, info: os.stat_result, name: str, kind: bytes, fd: int = -1) -> tarfile.TarInfo:
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode, entry.mtime = kind, stat.S_IMODE(info.st_mode), info.st_mtime_ns // 10**9
        entry.uid, entry.gid = self._owner or (info.st_uid, info.st_gid)
        seconds, nanoseconds = divmod(info.st_mtime_ns, 10**9)
        attributes = self._attributes_of(fd) if fd >= 0 else ()
        entry.pax_headers = {"mtime": f"{seconds}.{nanoseconds:09}", **dict(attributes)}
        return entry

    def _attributes_of(self, fd: int) -> Iterator[tuple[str, str]]:
        with contextlib.suppress(OSError):  # a file system without attributes
            for name in os.listxattr(fd):
                if name.startswith(self._attributes):
                    yield f"SCHILY.xattr.{name}", os.getxattr(fd, name).decode("utf-8", "surrogateescape")

    def _add(self, entry: tarfile.TarInfo, content: BinaryIO | None = None) -> None:
        try:
            self._tar.addfile(entry, content)
        except OSError as error:
            raise _WriteError(error) from error
        self._tar.members = []  # type: ignore[attr-defined]  # or tarfile would remember every one


class _WriteError(Exception):
    """The archive cannot be written: not the same as a file that is gone."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class _Exactly:
    """A file of which as much can be read as is asked for."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size and (chunk := self._file.read(size - len(data))):
            data += chunk
        return bytes(data) + bytes(size - len(data))


class _Bytes:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def read(self, size: int) -> bytes:
        taken, self._content = self._content[:size], self._content[size:]
        return taken
