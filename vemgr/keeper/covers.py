# SPDX-License-Identifier: GPL-2.0-or-later
"""What is laid over files of /proc and /sys: an empty file or directory, or the same again, read-only.

Targets are found below the descriptor of the mount itself, never by a path the VE could have swapped (CVE-2025-31133).
"""

from __future__ import annotations

import errno
import os

from vemgr.core.plan import Mask, ReadOnly, View
from vemgr.keeper import mounting
from vemgr.keeper.program import ANY_ERROR, Program, Register, encoded
from vemgr.keeper.tree import DIRECTORY, PATH_ONLY
from vemgr.kernel.mounts import MOUNT_ATTR

_AT_FDCWD = -100


def make_masks(program: Program) -> None:
    """An empty file and an empty directory in the file system that is mounted at ./mask."""
    program.call("mkdirat", _AT_FDCWD, b"mask/directory", 0o555)
    with program.descriptor() as fd:
        # Readable: programs take an empty /proc/cmdline better than one that they may not open.
        program.call("openat", _AT_FDCWD, b"mask/file", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o444, into=fd)
    # Every mask is a clone of a mount of this one, and inherits that it is read-only.
    with program.descriptor() as fd:
        program.call("openat", _AT_FDCWD, b"mask", DIRECTORY, into=fd)
        mounting.set_attributes(program, fd, MOUNT_ATTR["ro"] | MOUNT_ATTR["noexec"])


def cover(program: Program, under: Register, operation: Mask | ReadOnly) -> None:
    """`under`: descriptor of the mount that the operation is about."""
    if isinstance(operation, ReadOnly):
        _read_only(program, under, operation.names, operation.writable)
        return
    for name in operation.names:
        _mask(program, under, encoded(name))


def _mask(program: Program, under: Register, name: bytes) -> None:
    """Cover `name` with the empty one of its kind; pass over what the kernel does not have."""
    target, cover = program.register(), program.register()
    flags = PATH_ONLY | os.O_NOFOLLOW
    opened = program.call("openat", under, name, flags | os.O_DIRECTORY, into=target)
    mounting.clone_tree(program, _AT_FDCWD, b"mask/directory", cover)
    attached = mounting.attach(program, cover, target)
    program.expect(opened, errno.ENOTDIR)
    opened_file = program.call("openat", under, name, flags, into=target)
    mounting.clone_tree(program, _AT_FDCWD, b"mask/file", cover)
    mounting.attach(program, cover, target)
    program.else_(attached)
    program.call("close", cover)
    program.call("close", target)
    program.expect(opened, errno.ENOENT)
    program.expect(opened_file, errno.ENOENT)
    program.release(target, cover)


def _read_only(program: Program, under: Register, names: tuple[str, ...], writable: tuple[str, ...]) -> None:
    """Cover `names` with themselves, read-only, and `writable` inside them with what they were."""
    kept = [(name, program.register()) for name in writable]
    for name, fd in kept:
        mounting.clone_tree(program, under, encoded(name), fd)
    for name in names:
        with program.optional_descriptor() as fd:
            mounting.clone_tree(program, under, encoded(name), fd)
            mounting.set_attributes(program, fd, MOUNT_ATTR["ro"])
            mounting.attach_at(program, fd, under, name)
    for name, fd in kept:
        mounting.attach_at(program, fd, under, name)
        program.call("close", fd)
        program.release(fd)


def view(program: Program, mounted: dict[str, Register], operation: View) -> None:
    """Cover files with those of lxcfs. Unless it is required, a view that cannot be had keeps no VE from starting:
    lxcfs may have ended this moment, and the daemon brings the view later."""
    with program.descriptor() as fd:
        found = mounting.clone_tree(program, _AT_FDCWD, encoded(operation.source), fd)
        # The clones of this mount inherit what it may do.
        mounting.set_attributes(program, fd, sum(MOUNT_ATTR[flag] for flag in ("ro", "nosuid", "nodev", "noexec")))
        program.call("mkdirat", _AT_FDCWD, b"view", 0o700)
        mounting.attach_at(program, fd, _AT_FDCWD, "view")
    for name in operation.names:
        top, _, below = name.partition("/")
        cover = program.register()
        cloned = mounting.clone_tree(program, _AT_FDCWD, encoded(f"view/{name}"), cover)
        mounting.attach_at(program, cover, mounted[top], below)
        program.call("close", cover)
        if not operation.required:
            program.expect(cloned, ANY_ERROR)
        program.release(cover)
    if not operation.required:
        program.expect(found, ANY_ERROR)
