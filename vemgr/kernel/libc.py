# SPDX-License-Identifier: GPL-2.0-or-later
"""The one handle on the C library: prototypes declared once, errno always captured.

Only the standard library is imported, since the keeper (parent of every VE) lives on this module.
"""

from __future__ import annotations

import ctypes
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
SYS_open_tree = 428
SYS_move_mount = 429
SYS_fsopen = 430
SYS_fsconfig = 431
SYS_fsmount = 432
SYS_clone3 = 435
SYS_close_range = 436
SYS_mount_setattr = 442
_OLDER = {
    "x86_64": {"pivot_root": 155, "capset": 126, "seccomp": 317, "bpf": 321},
    "aarch64": {"pivot_root": 41, "capset": 91, "seccomp": 277, "bpf": 280},
}


def number(name: str) -> int:
    """The number of one of the older system calls on this machine; `OSError` ENOSYS where we do not know it."""
    numbers = _OLDER.get(platform.machine())
    if numbers is None:
        raise OSError(38, f"vemgr does not know the number of {name} on {platform.machine()}")
    return numbers[name]


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
