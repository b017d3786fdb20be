# SPDX-License-Identifier: GPL-2.0-or-later
"""The descriptor-based mount API: open_tree(2), fsopen(2), fsmount(2), mount_setattr(2), move_mount(2), pivot_root(2).

Mounts are made detached and attached by descriptor, so that no path inside a VE's tree is ever looked up by name
except through openat2 with RESOLVE_IN_ROOT.
"""

from __future__ import annotations

import ctypes
import os

from vemgr.kernel.libc import (
    SYS_fsconfig,
    SYS_fsmount,
    SYS_fsopen,
    SYS_mount_setattr,
    SYS_move_mount,
    SYS_open_tree,
    check,
    libc,
    number,
    syscall,
)

AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
AT_SYMLINK_NOFOLLOW = 0x100
FSCONFIG_CMD_CREATE = 6
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSMOUNT_CLOEXEC = 1
FSOPEN_CLOEXEC = 1
MNT_DETACH = 2
MOUNT_ATTR_IDMAP = 0x00100000
MOUNT_ATTR = {"ro": 0x1, "nosuid": 0x2, "nodev": 0x4, "noexec": 0x8, "nosymfollow": 0x00200000}
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
MS_PRIVATE = 1 << 18
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
OPEN_TREE_CLONE = 1


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def open_tree(path: str, *, dir_fd: int = -100, recursive: bool = False) -> int:
    """A detached clone of the mount at `path` (a bind mount that hangs nowhere yet); returns its descriptor."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    return syscall("open_tree", SYS_open_tree, dir_fd, path.encode(), flags, path=path)


def set_attributes(fd: int, *, attributes: int = 0, userns_fd: int = -1, path: str | None = None) -> None:
    """Add mount attributes; with `userns_fd` make it an id-mapped mount (ids shifted as that namespace maps them)."""
    attr = _MountAttr(attr_set=attributes)
    if userns_fd >= 0:
        attr.attr_set |= MOUNT_ATTR_IDMAP
        attr.userns_fd = userns_fd
    syscall("mount_setattr", SYS_mount_setattr, fd, b"", AT_EMPTY_PATH,
            ctypes.byref(attr), ctypes.sizeof(attr), path=path)


def new_filesystem(fstype: str, options: tuple[tuple[str, str], ...] = (), attributes: int = 0,
                   source: str | None = None) -> int:
    """fsopen + fsconfig + fsmount: a detached mount of a new file system instance; returns its descriptor.

    Raises `OSError` whose text carries the kernel's own explanation from the context's message log.
    """
    context = syscall("fsopen", SYS_fsopen, fstype.encode(), FSOPEN_CLOEXEC, path=fstype)
    try:
        for key, value in (("source", source or fstype), *options):
            _fsconfig(context, FSCONFIG_SET_STRING if value else FSCONFIG_SET_FLAG, key, value or None, fstype)
        _fsconfig(context, FSCONFIG_CMD_CREATE, None, None, fstype)
        return syscall("fsmount", SYS_fsmount, context, FSMOUNT_CLOEXEC, attributes, path=fstype)
    finally:
        os.close(context)


def _fsconfig(context: int, command: int, key: str | None, value: str | None, fstype: str) -> None:
    encoded = [None if part is None else part.encode() for part in (key, value)]
    try:
        syscall("fsconfig", SYS_fsconfig, context, command, encoded[0], encoded[1], 0)
    except OSError as error:
        what = f"mount {fstype}" if key is None else f"mount {fstype} with {key}={value}"
        raise OSError(error.errno, f"{what}: {_explanation(context) or os.strerror(error.errno or 0)}") from None


def _explanation(context: int) -> str:
    messages: list[str] = []
    try:
        while len(messages) < 8:
            messages.append(os.read(context, 1024).decode(errors="replace").strip().removeprefix("e "))
    except OSError:
        pass  # ENODATA: the log is empty
    return ", ".join(messages)


def attach(mount_fd: int, target_fd: int, path: str | None = None) -> None:
    """Attach a detached mount on the file or directory behind `target_fd`."""
    syscall("move_mount", SYS_move_mount, mount_fd, b"", target_fd, b"",
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH, path=path)


def make_private(path: str = "/") -> None:
    """Stop mount events of this namespace from reaching the host's (mount_namespaces(7)), recursively."""
    attr = _MountAttr(propagation=MS_PRIVATE)
    syscall("mount_setattr", SYS_mount_setattr, -100, path.encode(), AT_RECURSIVE,
            ctypes.byref(attr), ctypes.sizeof(attr), path=path)


def pivot_into(root_fd: int) -> None:
    """Make the mount behind `root_fd` the root of this mount namespace and drop the old one.

    pivot_root(".", ".") stacks the old root on the new one, so no directory for it is needed (pivot_root(2), NOTES).
    """
    os.fchdir(root_fd)
    syscall("pivot_root", number("pivot_root"), b".", b".")
    check(libc.umount2(b".", MNT_DETACH), "umount2", "/")
    os.chdir("/")
