# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading the files of a console's log while the keeper writes them: `core.console` says what they are."""

from __future__ import annotations

import bisect
import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

from vemgr.core.console import (
    LOG,
    LOG_BOUND,
    LOG_OLDER,
    TIME,
    TIMES,
    TIMES_BOUND,
    TIMES_HEAD,
    TIMES_OLDER,
)


class Piece(NamedTuple):
    """What was printed within one second, in seconds since 1970; 0 where nobody knows."""

    second: int
    data: bytes


class Reader:
    """Reads on where it was. When the keeper has begun a new file, the one that we read is the older by then.

    `timed`: whether to look up when it was printed.
    """

    def __init__(self, directory: int, *, timed: bool) -> None:
        self._directory = directory
        self._timed = timed
        self._file = self._open(LOG)
        older = self._open(LOG_OLDER)
        self._first = [older] if older >= 0 and not self._is_ours(older) else []

    def read(self) -> Iterator[Piece]:
        """All that is there and was not read yet."""
        for fd in self._first:
            yield from self._rest(fd)
            os.close(fd)
        self._first = []
        while True:
            newer = self._open(LOG)
            moved = newer >= 0 and not self._is_ours(newer)
            if self._file >= 0:
                yield from self._rest(self._file)  # after the look: so it is complete if it was moved
            if not moved:
                if newer >= 0:
                    os.close(newer)
                return
            yield from self._missed()
            if self._file >= 0:
                os.close(self._file)
            self._file = newer

    def _missed(self) -> Iterator[Piece]:
        """The older file, if another than ours has become that since we looked."""
        older = self._open(LOG_OLDER)
        if older < 0:
            return
        if self._file >= 0 and not self._is_ours(older):
            yield Piece(0, b"\r\n[vemgr: text is missing here, it was printed faster than it was read]\r\n")
            yield from self._rest(older)
        os.close(older)

    def _is_ours(self, fd: int) -> bool:
        return self._file >= 0 and os.path.sameopenfile(fd, self._file)

    def _open(self, name: str) -> int:
        with contextlib.suppress(FileNotFoundError):
            return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._directory)
        return -1

    def _rest(self, fd: int) -> Iterator[Piece]:
        """What is left to read of a file."""
        begin = os.lseek(fd, 0, os.SEEK_CUR)
        data = b""
        while len(data) <= LOG_BOUND and (more := os.read(fd, LOG_BOUND)):
            data += more
        if not data:
            return
        # After the text: what was written down before it is there.
        times = self._times(os.fstat(fd).st_ino) if self._timed else []
        first = bisect.bisect_right(times, begin, key=lambda time: time[0])
        starts = [(begin, times[first - 1][1] if first else 0),
                  *(time for time in times[first:] if time[0] < begin + len(data))]
        for (start, second), (end, _) in zip(starts, [*starts[1:], (begin + len(data), 0)], strict=True):
            if start < end:
                yield Piece(second, data[start - begin:end - begin])

    def _times(self, inode: int) -> list[tuple[int, int]]:
        """The offsets at which a second begins in the log with this inode number, and that second."""
        for name in (TIMES, TIMES_OLDER):  # in this order: the one becomes the other
            fd = self._open(name)
            if fd >= 0:
                with os.fdopen(fd, "rb") as file:
                    head, body = file.read(TIMES_HEAD.size), file.read(TIMES_BOUND)
                if head == TIMES_HEAD.pack(inode):
                    whole = len(body) - len(body) % TIME.size
                    return [(offset, second) for offset, second in TIME.iter_unpack(body[:whole])]
        return []
