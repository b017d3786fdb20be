# SPDX-License-Identifier: GPL-2.0-or-later
"""The file system of a VE as a descriptor, and becoming the VE's root to work in it.

A running VE's is what its init has as root directory. A stopped VE's is put together from its layers as a start does
it, in a mount namespace that ends with us: only that shows what the VE would see, whiteouts and redirected directories
included, and makes the kernel write what the next start understands.

Whoever works in the tree is the VE's root by then: in its user namespace, with no right over anything of the host. So
ids are the VE's own, file capabilities are bound to it, and what would lead out finds nothing that it may touch.
"""

from __future__ import annotations

import errno
import os
import signal
from typing import Any

import prctl

from vemgr.core.ids import ID_COUNT
from vemgr.kernel import mounts, namespaces
from vemgr.kernel.libc import check, libc
from vemgr.kernel.openat2 import open_beneath

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_PR_SET_SECUREBITS, _NO_SETUID_FIXUP = 28, 1 << 2


def open_running(pid: int, pidfd: int) -> tuple[int, int]:
    """Root directory and user namespace of a running VE, by the pid of its init. Raises `OSError`."""
    root = os.open(f"/proc/{pid}/root", _DIRECTORY)
    userns = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    signal.pidfd_send_signal(pidfd, 0)  # else it has ended, and its number may be another's
    return root, userns


def open_stopped(trees: list[dict[str, Any]], data: str, disk: bool, id_base: int, stage: str) -> tuple[int, int]:
    """The same of a stopped one. `trees`: mountpoint and lowers of each, as in its template; writes of tree N go to
    `data`/N. `disk`: that is a mount which hangs nowhere, to be moved here. `stage`: an empty directory. Raises
    `OSError`."""
    private_mounts()
    userns = id_map(0, id_base)
    mount_stage(stage)
    if disk:
        fd = os.open(data, _DIRECTORY)
        os.mkdir("disk", 0o700)
        _attach(fd, "disk")
        os.close(fd)
        data = "disk"
    root = -1
    for number, tree in enumerate(trees):
        lowers = [layer(source, f"l{number}.{position}", userns) for position, source in enumerate(tree["lowers"])]
        layer(f"{data}/{number}", f"d{number}")
        fd = _overlay(lowers, f"d{number}", id_base)
        if root < 0:
            os.mkdir("root")
            _attach(fd, "root")
            root = os.open("root", _DIRECTORY)
        else:
            target = open_beneath(root, tree["mountpoint"].lstrip("/"), _DIRECTORY)
            mounts.attach(fd, target, tree["mountpoint"])
            os.close(target)
            os.close(fd)
    os.chdir("/")
    return root, userns


def mount_stage(stage: str) -> None:
    """A tmpfs that only we see, for the layers to hang in; it becomes the working directory."""
    _attach(mounts.new_filesystem("tmpfs", (("mode", "700"), ("size", "64k"))), stage)
    os.chdir(stage)


def private_mounts() -> None:
    """A mount namespace of our own, that ends with us."""
    namespaces.unshare(namespaces.CLONE_NEWNS)
    mounts.make_private()


def become_root_of(userns: int) -> None:
    """Enter a VE's user namespace, as its root. There is no way back. Raises `OSError`."""
    parent = os.getppid()
    os.setgroups(())
    namespaces.setns(userns, namespaces.CLONE_NEWUSER)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    prctl.set_dumpable(0)  # the VE's root would have the right to trace us, if he saw us
    prctl.set_pdeathsig(signal.SIGTERM)  # the kernel forgets it with a change of ids
    if os.getppid() != parent:
        raise OSError(errno.ESRCH, "the daemon has ended")
    os.umask(0)


def id_map(inside: int, outside: int) -> int:
    """A user namespace that maps `inside` and what follows to `outside` and what follows; for mounts, and to enter.
    Raises `OSError`."""
    ready, told = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            prctl.set_pdeathsig(signal.SIGKILL)
            namespaces.unshare(namespaces.CLONE_NEWUSER)
            os.write(told, b".")
            signal.pause()
        finally:
            os._exit(1)
    try:
        os.close(told)
        if not os.read(ready, 1):
            raise OSError(1, "a user namespace cannot be made", "unshare")
        for kind in ("uid", "gid"):
            with open(f"/proc/{child}/{kind}_map", "w", encoding="ascii") as file:
                file.write(f"{inside} {outside} {ID_COUNT}\n")
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def mapped_clone(path: str, userns: int) -> int:
    """`path` with the ids shifted, as a descriptor of a mount that hangs nowhere. Raises `OSError`."""
    fd = mounts.open_tree(path)
    if namespaces.nested():  # not to be shifted, and not to be done
        return fd
    try:
        mounts.set_attributes(fd, userns_fd=userns, path=path)
    except OSError:
        os.close(fd)
        raise
    return fd


def layer(source: str, name: str, userns: int = -1) -> str:
    """Mount `source` at `name` of the stage, its ids shifted. Returns the name. Raises `OSError`."""
    fd = mounts.open_tree(source) if userns < 0 else mapped_clone(source, userns)
    os.mkdir(name, 0o700)
    _attach(fd, name)
    os.close(fd)
    return name


def _attach(fd: int, path: str) -> None:
    target = os.open(path, _DIRECTORY)
    mounts.attach(fd, target, path)
    os.close(target)


def _overlay(lowers: list[str], data: str, id_base: int) -> int:
    """As `keeper.setup` makes it: same options, same owner of what the kernel writes."""
    check(libc.prctl(_PR_SET_SECUREBITS, _NO_SETUID_FIXUP, 0, 0, 0), "prctl(PR_SET_SECUREBITS)")
    libc.setfsuid(id_base)
    how = ("userxattr", "") if namespaces.nested() else ("redirect_dir", "on")
    try:
        return mounts.new_filesystem(
            "overlay",
            (("lowerdir", ":".join(lowers)), ("upperdir", f"{data}/upper"), ("workdir", f"{data}/work"), how),
            mounts.MOUNT_ATTR["nodev"], source="vemgr")
    finally:
        libc.setfsuid(0)
