# SPDX-License-Identifier: GPL-2.0-or-later
"""What VEs print on their consoles, and when, in two files each (`core.console`).

They lie in the run directory, a tmpfs: the keeper writes them in its loop, and a write to a disk may wait for what a VE
does to that disk. Nothing is open between two writes.
"""

from __future__ import annotations

import contextlib
import os
import time

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

_WRITE = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class ConsoleLogs:
    """Below `directory`, whose owner alone can come to it. What cannot be written is lost, and nothing else."""

    def __init__(self, directory: str) -> None:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self._directory = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def begin(self, ve: str) -> None:
        """Write the line that a new life of the VE begins with."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line_end = b"" if self.tail(ve, 1) in (b"", b"\n") else b"\r\n"
        self.append(ve, line_end + f"[vemgr: {ve} started {now}]\r\n".encode())

    def append(self, ve: str, data: bytes) -> None:
        """`data`: at most `LOG_BOUND` bytes."""
        with contextlib.suppress(OSError):
            now = int(time.time())
            fd = self._open(f"{ve}/{LOG}")
            try:
                there = os.fstat(fd)
                if there.st_size + len(data) > LOG_BOUND or not self._note(ve, there, now):
                    self._turn_over(ve)
                    os.close(fd)
                    fd = -1
                    fd = self._open(f"{ve}/{LOG}")
                    self._note(ve, os.fstat(fd), now)
                os.write(fd, data)
            finally:
                if fd >= 0:
                    os.close(fd)

    def _turn_over(self, ve: str) -> None:
        """What is full becomes the older."""
        for name, older in ((TIMES, TIMES_OLDER), (LOG, LOG_OLDER)):
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{ve}/{name}", f"{ve}/{older}", src_dir_fd=self._directory, dst_dir_fd=self._directory)

    def _note(self, ve: str, log: os.stat_result, now: int) -> bool:
        """Write down that what follows is printed `now`, unless the last was in the same second. False: no room."""
        if log.st_size and int(log.st_mtime) == now:
            return True
        with contextlib.suppress(OSError):  # then it is known by the time of what is before
            # A file that another log has left is not gone on with.
            times = self._open(f"{ve}/{TIMES}", 0 if log.st_size else os.O_TRUNC)
            try:
                size = os.fstat(times).st_size
                if size >= TIMES_BOUND:
                    return False
                head = b"" if size else TIMES_HEAD.pack(log.st_ino)
                os.write(times, head + TIME.pack(log.st_size, now))
            finally:
                os.close(times)
        return True

    def _open(self, path: str, more: int = 0) -> int:
        try:
            return os.open(path, _WRITE | more, 0o600, dir_fd=self._directory)
        except FileNotFoundError:
            os.mkdir(os.path.dirname(path), 0o700, dir_fd=self._directory)
            return os.open(path, _WRITE | more, 0o600, dir_fd=self._directory)

    def tail(self, ve: str, length: int) -> bytes:
        """The last `length` bytes, or what there is."""
        text = b""
        for name in (LOG, LOG_OLDER):
            with contextlib.suppress(OSError):
                fd = os.open(f"{ve}/{name}", _READ, dir_fd=self._directory)
                try:
                    wanted = length - len(text)
                    text = os.pread(fd, wanted, max(0, os.fstat(fd).st_size - wanted)) + text
                finally:
                    os.close(fd)
            if len(text) >= length:
                break
        return text

    def close(self) -> None:
        os.close(self._directory)
