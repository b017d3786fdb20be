# SPDX-License-Identifier: GPL-2.0-or-later
"""Noticing that the kernel has changed a file of a cgroup: inotify(7), IN_MODIFY (cgroup-v2.rst, "memory.events")."""

from __future__ import annotations

import ctypes
import os
import struct

from vemgr.kernel.libc import check, libc

_IN_MODIFY, _IN_NONBLOCK, _IN_CLOEXEC = 0x2, os.O_NONBLOCK, os.O_CLOEXEC
_HEADER = struct.Struct("=iIII")
_READS = 16  # of what is left at most: more than the kernel keeps, unless somebody goes on writing
libc.inotify_init1.argtypes = (ctypes.c_int,)
libc.inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)
libc.inotify_rm_watch.argtypes = (ctypes.c_int, ctypes.c_int)


class Inotify:
    """One instance for any number of files. Raises `OSError`; `fileno` is for the event loop."""

    def __init__(self) -> None:
        self._fd = check(libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC), "inotify_init1")

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)

    def add(self, path: str) -> int:
        """The number by which `changed` tells this file, or a file in this directory."""
        return check(libc.inotify_add_watch(self._fd, os.fsencode(path), _IN_MODIFY), "inotify_add_watch", path)

    def remove(self, number: int) -> None:
        check(libc.inotify_rm_watch(self._fd, number), "inotify_rm_watch")

    def changed(self) -> set[int]:
        """The files that have changed since the last call; -1 with them if the kernel has lost count. Does not
        wait."""
        found: set[int] = set()
        for _ in range(_READS):
            try:
                data = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                break
            at = 0
            while at < len(data):
                number, _, _, length = _HEADER.unpack_from(data, at)
                found.add(number)
                at += _HEADER.size + length
        return found
