# SPDX-License-Identifier: GPL-2.0-or-later
"""The output directory: each sample is on disk before the next is taken, and an interrupted run is taken up again."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from vemgr.compare.schema import Absent, Header, Line, Sample, line_of, parse_lines
from vemgr.core.errors import BadValue, Locked, NoSpace, SystemFailure

SAMPLES, REPORT, PAGE, TABLE = "samples.jsonl", "report.json", "report.html", "report.txt"
_LEAST_SPACE = 16 << 20  # samples and reports of a long run


@contextlib.contextmanager
def telling(path: Path) -> Iterator[None]:
    """Errors of the system in our words."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"no space left for {path}", path=path) from error
        raise SystemFailure(f"{path}: {error.strerror}", path=path) from error


class Kept:
    """The samples of one run, open for more. `header` is None when the run is new; then `begin` comes first."""

    def __init__(self, directory: Path, *, resume: bool) -> None:
        self.directory = directory
        self.header: Header | None = None
        self.lines: list[Sample | Absent] = []
        with telling(directory):
            if resume and not (directory / SAMPLES).exists():
                raise BadValue("--output", directory, "there is nothing in it to resume", remedy="leave out --resume")
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            if not resume and any(directory.iterdir()):
                raise BadValue("--output", directory, "it is not empty",
                               remedy="--resume goes on with what is in it; or name another directory")
            _check_space(directory)
            self._fd = os.open(directory / SAMPLES, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            self._lock()
            if resume:
                self._read()
        except BaseException:
            os.close(self._fd)
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked(str(self.directory), "compare") from None

    def _read(self) -> None:
        path = self.directory / SAMPLES
        with telling(path):
            data = path.read_bytes()
        self.header, self.lines, whole = parse_lines(data, str(path))
        with telling(path):
            os.ftruncate(self._fd, whole)  # the line that the crash has cut off

    def begin(self, header: Header) -> None:
        self.header = header
        self._append(header)

    def add(self, line: Sample | Absent) -> None:
        self._append(line)
        self.lines.append(line)

    def _append(self, line: Line) -> None:
        data = line_of(line)
        with telling(self.directory / SAMPLES):
            while data:
                data = data[os.write(self._fd, data):]
            os.fdatasync(self._fd)

    def write(self, name: str, data: bytes) -> Path:
        """A file beside the samples, whole or not at all."""
        path = self.directory / name
        partial = self.directory / f".{name}.partial"
        with telling(path):
            partial.write_bytes(data)
            partial.replace(path)
        return path

    def close(self) -> None:
        os.close(self._fd)


def _check_space(directory: Path) -> None:
    found = os.statvfs(directory)
    free = found.f_bavail * found.f_frsize
    if free < _LEAST_SPACE:
        raise NoSpace(f"{directory} has {free >> 20} MiB left, a comparison needs {_LEAST_SPACE >> 20}",
                      remedy="name another directory with --output", path=directory, free=free)
