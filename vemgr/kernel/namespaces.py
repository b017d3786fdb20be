# SPDX-License-Identifier: GPL-2.0-or-later
"""Namespaces and the processes in them: clone3(2), setns(2), unshare(2), user_namespaces(7), time_namespaces(7)."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import struct
import time

from vemgr.kernel.libc import SYS_clone3, SYS_close_range, check, libc, syscall

CLONE_INTO_CGROUP = 0x200000000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWNET = 0x40000000
CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
CLONE_NEWTIME = 0x00000080
CLONE_NEWUSER = 0x10000000
CLONE_NEWUTS = 0x04000000
CLONE_PARENT = 0x00008000
CLONE_PIDFD = 0x00001000

CLOSE_RANGE_CLOEXEC = 4
_NS_GET_USERNS, _NS_GET_OWNER_UID = 0xB701, 0xB704
_SIGCHLD = 17
_ALL_IDS = (1 << 32) - 1

# How the interpreter prepares for a fork and mends itself after one (C API, "Initialization": PyOS_BeforeFork).
# A raw clone3 has to make the same calls as os.fork does.
_before_fork = ctypes.pythonapi.PyOS_BeforeFork
_after_fork_child = ctypes.pythonapi.PyOS_AfterFork_Child
_after_fork_parent = ctypes.pythonapi.PyOS_AfterFork_Parent
for _hook in (_before_fork, _after_fork_child, _after_fork_parent):
    _hook.argtypes = ()
    _hook.restype = None


class _CloneArgs(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in (
        "flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls",
        "set_tid", "set_tid_size", "cgroup")]


def clone3(flags: int, *, cgroup_fd: int = -1) -> tuple[int, int]:
    """Fork with `flags`; returns (pid, pidfd) in the parent and (0, -1) in the child.

    With `cgroup_fd` the child is born in that cgroup (CLONE_INTO_CGROUP, Linux 5.7): no migration afterwards.
    Raises `OSError`. The calling process must have one thread only.
    """
    pidfd = ctypes.c_int(-1)
    args = _CloneArgs(flags=flags | CLONE_PIDFD, pidfd=ctypes.addressof(pidfd), exit_signal=_SIGCHLD)
    if flags & CLONE_PARENT:
        args.exit_signal = 0  # the kernel insists: the exit signal is the one of our own creation
    if cgroup_fd >= 0:
        args.flags |= CLONE_INTO_CGROUP
        args.cgroup = cgroup_fd
    _before_fork()
    pid = int(libc.syscall(ctypes.c_long(SYS_clone3), ctypes.byref(args), ctypes.c_long(ctypes.sizeof(args))))
    if pid == 0:
        _after_fork_child()
        return 0, -1
    failure = ctypes.get_errno()
    _after_fork_parent()
    if pid < 0:
        raise OSError(failure, f"clone3: {os.strerror(failure)}")
    return pid, pidfd.value


@functools.cache
def nested() -> bool:
    """Whether we are in a user namespace of somebody's making: then vemgr runs in a VE, and the kernel keeps from it
    what is the host's alone (docs/adr/0015)."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        return is_made(file.read())


def is_made(uid_map: str) -> bool:
    """Whether this is the /proc/PID/uid_map of a user namespace of somebody's making, not of the first."""
    return uid_map.split() != ["0", "0", str(_ALL_IDS)]


def setns(fd: int, flags: int, path: str | None = None) -> None:
    """Enter namespaces; `fd` is a namespace's descriptor, or a pidfd with several flags at once (Linux 5.8)."""
    check(libc.setns(fd, flags), "setns", path)


def unshare(flags: int) -> None:
    check(libc.unshare(flags), "unshare")


def owner(fd: int) -> int:
    """The user id, as we see it, of who made the user namespace that the namespace `fd` belongs to: 0 for those of the
    host (ioctl_ns(2)). Raises `OSError`."""
    userns = fcntl.ioctl(fd, _NS_GET_USERNS)
    try:
        found = bytearray(4)
        fcntl.ioctl(userns, _NS_GET_OWNER_UID, found)
        return int(struct.unpack("=I", found)[0])
    finally:
        os.close(userns)


def offsets_to_zero() -> bytes:
    """For /proc/self/timens_offsets: clocks of a new time namespace that start about now (time_namespaces(7))."""
    lines = []
    for name, clock in (("monotonic", time.CLOCK_MONOTONIC), ("boottime", time.CLOCK_BOOTTIME)):
        seconds, nanoseconds = divmod(time.clock_gettime_ns(clock), 10**9)
        # An offset is seconds plus nanoseconds, the latter in 0..999999999: -1.25 s is "-2 750000000".
        lines.append(f"{name} {-seconds - 1} {10**9 - nanoseconds - 1}\n")
    return "".join(lines).encode()


def close_on_exec_from(first: int) -> None:
    """Mark every descriptor from `first` on as close-on-exec, so that none leaks into a VE (CVE-2024-21626)."""
    syscall("close_range", SYS_close_range, first, 0xFFFFFFFF, CLOSE_RANGE_CLOEXEC)


def close_from(first: int) -> None:
    syscall("close_range", SYS_close_range, first, 0xFFFFFFFF, 0)
