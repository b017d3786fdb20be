# SPDX-License-Identifier: GPL-2.0-or-later
"""renameat2(2): a rename that takes the place of nothing, and one that takes nothing away."""

from __future__ import annotations

import errno
import os

from vemgr.kernel.libc import number, syscall

_NOREPLACE, _EXCHANGE = 1, 2


def rename_to_nothing(directory: int, source: str, target: str) -> None:
    """Rename within a directory. Raises `OSError` EEXIST where the new name is taken, whatever has it."""
    _rename(directory, source, target, _NOREPLACE)


def exchange(directory: int, one: str, other: str) -> None:
    """What has one name gets the other, at once. Raises `OSError`: ENOENT where one of them is missing."""
    _rename(directory, one, other, _EXCHANGE)


def _rename(directory: int, source: str, target: str, flags: int) -> None:
    try:
        syscall("renameat2", number("renameat2"), directory, os.fsencode(source), directory, os.fsencode(target), flags)
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or errno.EIO), target) from None
