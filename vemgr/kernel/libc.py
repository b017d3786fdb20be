# SPDX-License-Identifier: GPL-2.0-or-later
"""The one handle on the C library: prototypes declared once, errno always captured.

Only the standard library is imported, since the keeper (parent of every VE) lives on this module.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform

# PyDLL keeps the interpreter lock during a call. All calls through `libc` are made by single-threaded processes or
# return at once; clone3 must not release the lock, because the child would wait for a thread that it does not have.
libc = ctypes.PyDLL(None, use_errno=True)

c_long, c_int, c_uint, c_ulong = ctypes.c_long, ctypes.c_int, ctypes.c_uint, ctypes.c_ulong
c_char_p, c_void_p, c_size_t = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t

# syscall(2) is variadic: no argtypes, so every argument is passed as an explicit c_long or pointer by `syscall` below.
libc.syscall.restype = c_long
libc.setns.argtypes = (c_int, c_int)
libc.unshare.argtypes = (c_int,)
libc.umount2.argtypes = (c_char_p, c_int)
libc.mount.argtypes = (c_char_p, c_char_p, c_char_p, c_ulong, c_void_p)
libc.prctl.argtypes = (c_int, c_ulong, c_ulong, c_ulong, c_ulong)
libc.sethostname.argtypes = (c_char_p, c_size_t)

# Numbers above 423 are the same on all architectures (asm-generic/unistd.h); the older ones are not.
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
SYS_open_tree = 428
SYS_move_mount = 429
SYS_fsopen = 430
SYS_fsconfig = 431
SYS_fsmount = 432
SYS_clone3 = 435
SYS_close_range = 436
SYS_mount_setattr = 442
_NUMBERS = {
    "open_tree": SYS_open_tree, "move_mount": SYS_move_mount, "fsopen": SYS_fsopen, "fsconfig": SYS_fsconfig,
    "fsmount": SYS_fsmount, "clone3": SYS_clone3, "close_range": SYS_close_range, "openat2": 437,
    "mount_setattr": SYS_mount_setattr,
}
# x86_64 and what asm-generic/unistd.h has, which is the table of all newer architectures.
_OLDER = {
    "bpf": (321, 280), "capset": (126, 91), "chdir": (80, 49), "close": (3, 57), "dup3": (292, 24),
    "execve": (59, 221), "fchdir": (81, 50), "fchmod": (91, 52), "fchmodat": (268, 53), "fchown": (93, 55),
    "fchownat": (260, 54), "ioctl": (16, 29), "mkdirat": (258, 34), "mknodat": (259, 33), "openat": (257, 56),
    "pipe2": (293, 59), "pivot_root": (155, 41), "prctl": (157, 167), "prlimit64": (302, 261), "read": (0, 63),
    "recvfrom": (45, 207), "renameat2": (316, 276), "seccomp": (317, 277), "sendmsg": (46, 211),
    "setgroups": (116, 159), "sethostname": (170, 161), "setns": (308, 268), "setresgid": (119, 149),
    "setresuid": (117, 147), "setsid": (112, 157), "setsockopt": (54, 208), "socket": (41, 198),
    "symlinkat": (266, 36), "umask": (95, 166), "umount2": (166, 39), "unlinkat": (263, 35), "unshare": (272, 97),
    "write": (1, 64), "bind": (49, 200), "setfsuid": (122, 151),
}
_COLUMN = {"x86_64": 0, "aarch64": 1}


@functools.cache
def number(name: str) -> int:
    """The number of a system call on this machine; `OSError` ENOSYS where we do not know it."""
    if name in _NUMBERS:
        return _NUMBERS[name]
    column = _COLUMN.get(platform.machine())
    if column is None:
        raise OSError(38, f"vemgr does not know the number of {name} on {platform.machine()}")
    return _OLDER[name][column]


def check(result: int, call: str, path: str | None = None) -> int:
    """Return `result`, or raise `OSError` from errno with the call's name and the path it was about."""
    if result >= 0:
        return result
    code = ctypes.get_errno()
    raise OSError(code, f"{call}: {os.strerror(code)}", path)


def syscall(call: str, nr: int, *args: int | bytes | ctypes._Pointer[ctypes.Structure] | object,
            path: str | None = None) -> int:
    """syscall(2) with integers widened to long (a C int would leave garbage in the upper half of a register)."""
    widened = [c_long(a) if isinstance(a, int) else a for a in args]
    return check(int(libc.syscall(c_long(nr), *widened)), call, path)
