# SPDX-License-Identifier: GPL-2.0-or-later
"""The descriptor-based mount API as calls of a program: fsopen(2), open_tree(2), mount_setattr(2), move_mount(2)."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator, Sequence

from vemgr.keeper.program import Argument, Data, Program, Register, encoded
from vemgr.kernel import mounts

_AT_FDCWD = -100


# Names and values; without a value it is a flag.
Options = Sequence[tuple[str, bytes | Data]]


def make_filesystem(program: Program, into: Register, fstype: str, options: Options = (), attributes: int = 0,
                    source: str | None = None) -> None:
    """A detached mount of a new instance. A failure comes with the kernel's words from the context's log."""
    with program.descriptor() as context:
        program.call("fsopen", fstype.encode(), mounts.FSOPEN_CLOEXEC, into=context)
        for key, value in (("source", (source or fstype).encode()), *options):
            command = mounts.FSCONFIG_SET_STRING if value else mounts.FSCONFIG_SET_FLAG
            program.call("fsconfig", context, command, key.encode(), value or 0, 0, log=context)
        program.call("fsconfig", context, mounts.FSCONFIG_CMD_CREATE, 0, 0, 0, log=context)
        program.call("fsmount", context, mounts.FSMOUNT_CLOEXEC, attributes, into=into, log=context)


@contextlib.contextmanager
def new_filesystem(program: Program, fstype: str, options: Options = (), attributes: int = 0) -> Iterator[Register]:
    with program.descriptor() as fd:
        make_filesystem(program, fd, fstype, options, attributes)
        yield fd


def clone_tree(program: Program, directory: Argument, path: Argument, into: Register) -> int:
    """A detached clone of the mount at `path` (a bind mount that hangs nowhere yet)."""
    flags = mounts.OPEN_TREE_CLONE | mounts.OPEN_TREE_CLOEXEC | mounts.AT_EMPTY_PATH
    return program.call("open_tree", directory, path, flags, into=into)


@contextlib.contextmanager
def open_tree(program: Program, path: Argument) -> Iterator[Register]:
    with program.descriptor() as fd:
        clone_tree(program, _AT_FDCWD, path, fd)
        yield fd


def set_attributes(program: Program, fd: Register, attributes: int = 0, userns: Register | None = None) -> None:
    """Add mount attributes; with `userns` make it an id-mapped mount (ids shifted as that namespace maps them)."""
    if userns is None:
        attr = program.constant(struct.pack("=QQQQ", attributes, 0, 0, 0))
    else:
        attr = program.buffer(struct.pack("=QQQQ", attributes | mounts.MOUNT_ATTR_IDMAP, 0, 0, 0))
        program.call("store64", attr.plus(24), userns)
    program.call("mount_setattr", fd, b"", mounts.AT_EMPTY_PATH, attr, 32)


def attach(program: Program, fd: Register, target: Register) -> int:
    """Attach a detached mount on the file or directory behind `target`."""
    return program.call("move_mount", fd, b"", target, b"",
                        mounts.MOVE_MOUNT_F_EMPTY_PATH | mounts.MOVE_MOUNT_T_EMPTY_PATH)


def attach_at(program: Program, fd: Register, directory: Argument, path: str) -> None:
    """The same on a path that nobody but us could change."""
    with program.descriptor() as target:
        program.call("openat", directory, encoded(path), os.O_PATH | os.O_CLOEXEC, into=target)
        attach(program, fd, target)


def make_private(program: Program) -> None:
    """Stop mount events of this namespace from reaching the host's (mount_namespaces(7)), recursively."""
    attr = program.constant(struct.pack("=QQQQ", 0, 0, mounts.MS_PRIVATE, 0))
    program.call("mount_setattr", _AT_FDCWD, b"/", mounts.AT_RECURSIVE, attr, 32)


def pivot_into(program: Program, root: Register) -> None:
    """Make `root` the root of this mount namespace and drop the old one.

    pivot_root(".", ".") stacks the old root on the new one, so no directory for it is needed (pivot_root(2), NOTES).
    """
    program.call("fchdir", root)
    program.call("pivot_root", b".", b".")
    program.call("umount2", b".", mounts.MNT_DETACH)
    program.call("chdir", b"/")
