# SPDX-License-Identifier: GPL-2.0-or-later
"""`vemgr logs`: what a VE has printed on its console, from the files that the keeper writes."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator

from vemgr.cli.plain import Plain
from vemgr.core.console import LOG, LOG_BOUND, LOG_OLDER

_LOOK = 0.1  # seconds between two looks for more


def show(directory: int, *, tail: int | None, follow: bool, raw: bool) -> None:
    """Print the log in `directory`, or its last `tail` lines. With `follow` go on until the VE is destroyed."""
    plain = Plain()
    reader = _Reader(directory)

    def put(data: bytes) -> None:
        # Bytes that are no text of this terminal's encoding are shown in another way, as everywhere.
        sys.stdout.buffer.write(data if raw else _encoded(plain.feed(data)))
        sys.stdout.flush()

    put(_last_lines(b"".join(reader.read()), tail))
    while follow:
        there = os.fstat(directory).st_nlink > 0
        for data in reader.read():
            put(data)
        if not there:
            break
        time.sleep(_LOOK)
    if not raw:
        sys.stdout.buffer.write(_encoded(plain.feed(b"", final=True)))


def _encoded(text: str) -> bytes:
    return text.encode(sys.stdout.encoding, "backslashreplace")


def _last_lines(text: bytes, count: int | None) -> bytes:
    if count is None:
        return text
    lines = text.splitlines(keepends=True)
    return b"".join(lines[max(0, len(lines) - count):])


class _Reader:
    """Reads on where it was. When the keeper has begun a new file, the one that we read is the older by then."""

    def __init__(self, directory: int) -> None:
        self._directory = directory
        self._file = self._open(LOG)
        older = self._open(LOG_OLDER)
        self._first = [older] if older >= 0 and not self._is_ours(older) else []

    def read(self) -> Iterator[bytes]:
        """All that is there and was not read yet."""
        for fd in self._first:
            yield _rest(fd)
            os.close(fd)
        self._first = []
        while True:
            newer = self._open(LOG)
            moved = newer >= 0 and not self._is_ours(newer)
            if self._file >= 0:
                yield _rest(self._file)  # after the look: so it is complete if it was moved
            if not moved:
                if newer >= 0:
                    os.close(newer)
                return
            yield from self._missed()
            if self._file >= 0:
                os.close(self._file)
            self._file = newer

    def _missed(self) -> Iterator[bytes]:
        """The older file, if another than ours has become that since we looked."""
        older = self._open(LOG_OLDER)
        if older < 0:
            return
        if self._file >= 0 and not self._is_ours(older):
            yield b"\r\n[vemgr: text is missing here, it was printed faster than it was read]\r\n"
            yield _rest(older)
        os.close(older)

    def _is_ours(self, fd: int) -> bool:
        return self._file >= 0 and os.path.sameopenfile(fd, self._file)

    def _open(self, name: str) -> int:
        with contextlib.suppress(FileNotFoundError):
            return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._directory)
        return -1


def _rest(fd: int) -> bytes:
    data = b""
    while len(data) <= LOG_BOUND and (more := os.read(fd, LOG_BOUND)):
        data += more
    return data
