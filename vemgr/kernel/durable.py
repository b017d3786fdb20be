# SPDX-License-Identifier: GPL-2.0-or-later
"""What outlives a power cut: a file's content once the file was fsynced, its name once its directory was (fsync(2)).

What was not may be there or not, in any order ("All File Systems Are Not Created Equal", OSDI 2014).
"""

from __future__ import annotations

import os
from contextlib import suppress


def replace_file(path: str, text: str) -> None:
    """Replace a small file as a whole, durably. Raises `OSError`; then the old file is as it was, unless only the
    last step failed, which makes the new one durable."""
    temporary = unfinished(path)
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            data = text.encode()
            while data:
                data = data[os.write(fd, data):]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    sync_directory(os.path.dirname(path))


def unfinished(path: str) -> str:
    """Where `replace_file` writes; there after it has returned only if it was killed."""
    return f"{path}.new"


def make_directories(path: str, mode: int = 0o700) -> None:
    """Like os.makedirs, and what was made is there to stay. Raises `OSError`."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    make_directories(parent, mode)
    with suppress(FileExistsError):
        os.mkdir(path, mode)
    sync_directory(parent)


def sync_directory(path: str) -> None:
    """Make durable which names a directory has. Raises `OSError`."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
