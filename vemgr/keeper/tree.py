# SPDX-License-Identifier: GPL-2.0-or-later
"""What a set-up does with paths in a VE's tree, as calls of its program.

The VE's root has shaped that tree, so a path is looked up through openat2 only: in the tree as its root, or, for what
is mounted on, without following any symlink.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import struct
from typing import NamedTuple

from vemgr.keeper.program import ANY_ERROR, Data, Program, Register, encoded
from vemgr.kernel.openat2 import RESOLVE_BENEATH, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS

PATH_ONLY = os.O_PATH | os.O_CLOEXEC
DIRECTORY = PATH_ONLY | os.O_DIRECTORY
IN_ROOT = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
# For what is mounted on. A symlink there is refused (ELOOP), though it could not lead out: with "proc -> /" the next
# steps would find the VE's own files, and links, where they expect those of proc (CVE-2019-19921, CVE-2023-27561).
NO_LINKS = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
_AT_SYMLINK_NOFOLLOW = 0x100


class Managed(NamedTuple):
    """A file that begins with these bytes is ours, until an administrator takes them out. `rest`: how many bytes follow
    them in what it is to be. `room`: more than it can have."""

    beginning: bytes
    rest: Register
    room: int


class Tree:
    """`root`: descriptor of the tree's top. `owner`: the id of the VE's root, which owns what is made here."""

    def __init__(self, program: Program, root: Register, owner: Register) -> None:
        self.program = program
        self._root = root
        self._owner = owner

    def open(self, directory: Register, path: str, flags: int, resolve: int, into: Register) -> int:
        how = self.program.constant(struct.pack("=QQQ", flags, 0, resolve))
        return self.program.call("openat2", directory, encoded(path), how, 24, into=into)

    def open_directory(self, path: str, into: Register, resolve: int, mode: int = 0o755) -> None:
        """Open a directory of the VE's tree, made (owned by the VE's root) where it is missing."""
        there = self.open(self._root, path, DIRECTORY, resolve, into)
        self.program.expect(there, errno.ENOENT)
        with self.program.descriptor() as parent:
            name = self._open_parent(path, parent)
            self.program.call("mkdirat", parent, name, mode)
            self.give_to_ve(parent, name)
        self.open(self._root, path, DIRECTORY, resolve, into)
        self.program.else_(there)

    def open_for_mount(self, path: str, into: Register, *, directory: bool) -> None:
        """Open a directory or file to mount on, without following any symlink; what is missing is made."""
        parents = path.split("/")[:-1]
        for count in range(1, len(parents) + 1):
            with self.program.descriptor() as fd:
                self.open_directory("/".join(parents[:count]), fd, NO_LINKS)
        if directory:
            self.open_directory(path, into, NO_LINKS)
        else:
            self._open_file(path, into)

    def _open_file(self, path: str, into: Register) -> None:
        """By path only: it may be a fifo or anything else, which something is about to be mounted on."""
        there = self.open(self._root, path, PATH_ONLY, NO_LINKS, into)
        self.program.expect(there, errno.ENOENT)
        with self.program.descriptor() as parent:
            name = self._open_parent(path, parent)
            self.program.call("mknodat", parent, name, stat.S_IFREG | 0o644, 0)
            self.give_to_ve(parent, name)
        self.open(self._root, path, PATH_ONLY, NO_LINKS, into)
        self.program.else_(there)

    def _open_parent(self, path: str, into: Register) -> bytes:
        directory, _, name = path.strip("/").rpartition("/")
        self.open(self._root, directory or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, IN_ROOT, into)
        return encoded(name)

    def give_to_ve(self, parent: Register, name: bytes) -> None:
        self.program.call("fchownat", parent, name, self._owner, self._owner, _AT_SYMLINK_NOFOLLOW)

    def symlink(self, path: str, points_to: bytes) -> None:
        with self.program.descriptor() as parent:
            name = self._open_parent(path, parent)
            self.program.call("symlinkat", points_to, parent, name)
            self.give_to_ve(parent, name)

    def write_file(self, path: str, content: Data, length: Register, managed: Managed | None) -> None:
        """Write to a new file and rename it into place: what stands there is never opened for writing, so it may be
        a symlink, a fifo or a device without any effect on us. What is there is left alone where it is not
        `managed` by us, and where it is the same already, as at most starts."""
        program = self.program
        # A VE that knew the name could put something there.
        temporary = program.parameter(32, lambda _: f".vemgr-{secrets.token_hex(6)}".encode())
        with program.descriptor() as parent:
            name = self._open_parent(path, parent)
            skipped, same = self._unless_ours(parent, name, content, managed) if managed else ([], [])
            with program.descriptor() as fd:
                program.call("openat", parent, temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644,
                             into=fd)
                self._fill(fd, content, length, parent, temporary)
            renamed = program.call("renameat2", parent, temporary, parent, name, 0)
            program.expect(renamed, ANY_ERROR)
            program.call("unlinkat", parent, temporary, 0)
            program.call("unlinkat", parent, name, 0)  # fails for the same reason: a directory, most likely
            program.else_(renamed)
            for call in skipped:
                program.expect(call, ANY_ERROR)
            for call in same:
                program.else_(call)

    def _fill(self, fd: Register, content: Data, length: Register, parent: Register, temporary: Data) -> None:
        """All of the content, or the new file goes again and the start fails. A disk that gets full takes a part."""
        program, count = self.program, self.program.register()
        written = program.call("write", fd, content, length, into=count)
        whole = program.call("same", count, length)
        owned = program.call("fchown", fd, self._owner, self._owner)
        for call in (written, whole, owned):
            program.expect(call, ANY_ERROR)
        program.call("unlinkat", parent, temporary, 0)
        program.call("fchown", fd, self._owner, self._owner)  # one of these two fails again, and is what is told
        program.call("write", fd, content, length)
        program.call("same", 0, 1)
        program.else_(owned)
        program.release(count)

    def _unless_ours(self, parent: Register, name: bytes, content: Data,
                     managed: Managed) -> tuple[list[int], list[int]]:
        """Go on if the file is absent, or ours and another than `content`. Returns the calls whose failure says that it
        is not ours, and whose success says that it is the same."""
        program, beginning = self.program, managed.beginning
        found, rest = program.room(len(beginning)), program.room(managed.room)
        fd = program.register()
        # O_NONBLOCK: opening a fifo would wait for a writer for ever, and reading one too.
        opened = program.call("openat", parent, name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
                              into=fd)
        count, more = program.register(), program.register()
        read = program.call("read", fd, found, len(beginning), into=count)
        read_on = program.call("read", fd, rest, managed.room, into=more)
        program.call("close", fd)
        whole = program.call("same", count, len(beginning))
        equal = program.call("equal", found, program.constant(beginning), len(beginning))
        as_long = program.call("same", more, managed.rest)
        same = program.call("equal", rest, content.plus(len(beginning)), managed.rest)
        for call in (as_long, same):
            program.expect(call, errno.EINVAL)
        program.expect(opened, errno.ENOENT)
        program.release(fd, count, more)
        return [opened, read, read_on, whole, equal], [same]
