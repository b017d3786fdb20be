# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that are read at each start or tick, with three system calls: `open` makes four more, and a decoder."""

from __future__ import annotations

import os


def content_of(path: str, bound: int) -> bytes:
    """What one read gives: all of a regular file or one of the kernel's, up to `bound` bytes. Raises `OSError`."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, bound)
    finally:
        os.close(fd)
