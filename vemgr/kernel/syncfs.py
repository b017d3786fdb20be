# SPDX-License-Identifier: GPL-2.0-or-later
"""syncfs(2): one flush of the file system that a descriptor is on, instead of an fsync for each of many files."""

from __future__ import annotations

import ctypes
import os

_syncfs = ctypes.CDLL(None, use_errno=True).syncfs
_syncfs.argtypes = (ctypes.c_int,)
_syncfs.restype = ctypes.c_int


def syncfs(fd: int) -> None:
    """Returns when all of the file system's data is on disk. Raises OSError, also for earlier failed writes (5.8)."""
    if _syncfs(fd) < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"syncfs: {os.strerror(error)}")
