# SPDX-License-Identifier: GPL-2.0-or-later
"""renameat2(2) with RENAME_NOREPLACE: what appears under a name takes the place of nothing."""

from __future__ import annotations

import errno
import os

from vemgr.kernel.libc import number, syscall

_NOREPLACE = 1


def rename_to_nothing(directory: int, source: str, target: str) -> None:
    """Rename within a directory. Raises `OSError` EEXIST where the new name is taken, whatever has it."""
    try:
        syscall("renameat2", number("renameat2"), directory, os.fsencode(source), directory, os.fsencode(target),
                _NOREPLACE)
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or errno.EIO), target) from None
