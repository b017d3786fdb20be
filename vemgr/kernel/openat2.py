# SPDX-License-Identifier: GPL-2.0-or-later
"""openat2(2): opening a path below a directory without ever leaving it, whatever lies there.

The kernel resolves the whole path under the rule, so no symlink can be swapped in between a check and its use;
walking with openat() and O_NOFOLLOW gives that only one component at a time. Linux 5.6 or newer.
"""

from __future__ import annotations

import ctypes
import errno
import os

SYS_OPENAT2 = 437  # the same number on every architecture: system calls since 5.1 are numbered alike

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10
RESOLVE_CACHED = 0x20

# EAGAIN means that a rename or mount somewhere on the system raced with a '..' in the path. A tenant could keep
# renaming to hold a root process here for ever, hence the bound.
_ATTEMPTS = 100


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


# A handle of its own: prototypes are attributes of the handle's function objects, and syscall() has a different
# one for every number.
_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(_OpenHow), ctypes.c_size_t)
_syscall.restype = ctypes.c_long


def openat2(dirfd: int, path: str | bytes, flags: int, mode: int = 0, *, resolve: int) -> int:
    """Opens `path` relative to `dirfd` and returns the descriptor (always close-on-exec).

    Raises OSError with the path: ELOOP for a symlink that `resolve` forbids, EXDEV for an escape that it forbids,
    EAGAIN if the path would not hold still, ENOSYS before Linux 5.6.
    """
    name = os.fsencode(path)
    if b"\0" in name:  # C would silently open the part before it
        raise OSError(errno.EINVAL, "embedded null byte in path", path)
    # Unlike open(2), openat2(2) refuses a mode that nothing uses.
    creates = flags & os.O_CREAT or flags & os.O_TMPFILE == os.O_TMPFILE
    how = _OpenHow(flags | os.O_CLOEXEC, mode & 0o7777 if creates else 0, resolve)
    error = 0
    for _ in range(_ATTEMPTS):
        fd: int = _syscall(SYS_OPENAT2, dirfd, name, ctypes.byref(how), ctypes.sizeof(how))
        if fd >= 0:
            return fd
        error = ctypes.get_errno()
        if error not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(error, os.strerror(error), path)


def open_in_root(dirfd: int, path: str | bytes, flags: int, mode: int = 0) -> int:
    """Opens `path` as if `dirfd` were "/": symlinks are followed, absolute ones and '..' end at `dirfd`.

    Raises OSError as `openat2` does.
    """
    # The kernel refuses magic links (/proc/PID/fd/N) in IN_ROOT mode today but reserves the right to change that.
    return openat2(dirfd, path, flags, mode, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)


def open_beneath(dirfd: int, path: str | bytes, flags: int, mode: int = 0) -> int:
    """Opens `path` below `dirfd`, following no symlink at all, not even in the last component.

    Raises OSError as `openat2` does.
    """
    return openat2(dirfd, path, flags, mode, resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
