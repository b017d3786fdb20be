# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run has made and not removed yet, written before it is made: so the next run finds what a killed one left.

One file for each driver of each run, a line of JSON for each thing. The run holds a lock on it, which the kernel takes
away from the dead: what nobody has locked was left. No process ids are compared for that, they are used again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Entry = dict[str, Any]
#: Removes what an entry tells of, and says what it was; nothing where it is gone already.
Undo = Callable[[Entry], str | None]


class Journal:
    """Of one driver in this run. The file is made with the first entry and goes with the last."""

    def __init__(self, directory: Path, driver: str) -> None:
        self._directory, self._driver = directory / "journal", driver
        self._fd = -1
        self._path = Path()
        self._open: dict[int, Entry] = {}
        self._number = 0

    def add(self, kind: str, **facts: str) -> int:
        """Write down what is about to be made; returns the entry's number."""
        if self._fd < 0:
            self._create()
        self._number += 1
        entry = {"number": self._number, "kind": kind, **facts}
        self._write(entry)
        self._open[self._number] = entry
        return self._number

    def done(self, number: int) -> None:
        """It has been removed."""
        if self._open.pop(number, None) is not None:
            self._write({"done": number})

    def left(self) -> list[Entry]:
        """What is there, the youngest first: in this order it can be removed."""
        return [*reversed(self._open.values())]

    def close(self) -> None:
        """At the end of a run. With something left in it the file stays, for the next run to find."""
        if self._fd >= 0:
            if not self._open:
                self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1

    def _create(self) -> None:
        for each in (self._directory.parent, self._directory):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Under another name until it is locked, or a run that cleans up would take it for one of the dead.
        self._path = self._directory / f"{self._driver}.{secrets.token_hex(4)}"
        new = self._path.with_name(f".new-{self._path.name}")
        self._fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        new.rename(self._path)

    def _write(self, line: Entry) -> None:
        os.write(self._fd, json.dumps(line).encode() + b"\n")


def clean(directory: Path, driver: str, undo: Undo) -> list[str]:
    """Undo what dead runs of this driver have left; what was removed. What cannot be removed stays in the journal, and
    its error is raised when all else is gone."""
    removed: list[str] = []
    failures: list[Exception] = []
    for path, fd in _abandoned(directory / "journal", driver):
        kept: list[Entry] = []
        for entry in reversed(entries(path.read_bytes())):
            try:
                said = undo(entry)
            except Exception as error:
                failures.append(error)
                kept.insert(0, entry)
            else:
                removed += [said] if said else []
        if kept:
            os.truncate(fd, 0)
            os.write(fd, b"".join(json.dumps(entry).encode() + b"\n" for entry in kept))
        else:
            path.unlink(missing_ok=True)
    if failures:
        raise failures[0]
    return removed


def entries(data: bytes) -> list[Entry]:
    """What a journal says is there, the oldest first. A last line that was cut off is of a thing that was not made."""
    found: dict[int, Entry] = {}
    for line in data.split(b"\n")[:-1]:
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if "done" in entry:
                found.pop(entry["done"], None)
            else:
                found[entry["number"]] = entry
    return [*found.values()]


def _abandoned(directory: Path, driver: str) -> Iterator[tuple[Path, int]]:
    for path in sorted(directory.glob(f"{driver}.*")) if directory.is_dir() else []:
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            yield path, fd
        finally:
            os.close(fd)
