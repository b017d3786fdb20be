# SPDX-License-Identifier: GPL-2.0-or-later
"""Limits that VEs have hit, as events: from the kernel's counters, which say when they change.

The start of a VE pays for one entry in a dictionary; its files are watched a moment later. After each look the counters
are left alone for a while, however often they change, so a VE that runs into its limit without end makes one event of a
kind in that time, with the count.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from vemgr.core.events import COUNTERS
from vemgr.kernel.inotify import Inotify
from vemgr.runtime.journal import Journal

log = logging.getLogger(__name__)

_DELAY = 0.25  # seconds from a start to the watch
_REST = 1.0  # seconds between two looks


class Counters:
    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._inotify: Inotify | None = None
        self._new: list[str] = []
        self._directories: dict[str, str] = {}  # of the VEs that run
        self._seen: dict[str, dict[str, int]] = {}
        self._watches: dict[int, str] = {}
        self._numbers: dict[str, list[int]] = {}  # of a VE's watches

    def open(self) -> None:
        """Once, when the daemon comes up, so that no start pays for it. Without, limits are told when a VE ends."""
        try:
            self._inotify = Inotify()
        except OSError as error:
            log.warning("limits that VEs hit are told when they end: %s", error.strerror)
        else:
            asyncio.get_running_loop().add_reader(self._inotify.fileno(), self._on_change)

    def begin(self, ve: str, directory: str, *, adopted: bool = False) -> None:
        """A VE runs, in the cgroup `directory`. `adopted`: an earlier daemon has told what was counted so far."""
        self._directories[ve] = directory
        self._seen[ve] = _read(directory) if adopted else {}
        if not self._new:
            asyncio.get_running_loop().call_later(_DELAY, self._watch_new)
        self._new.append(ve)

    def end(self, ve: str) -> None:
        """Its cgroup is about to go: a last look, for what has ended it."""
        if ve not in self._directories:
            return
        self._look(ve)
        del self._directories[ve], self._seen[ve]
        for number in self._numbers.pop(ve, ()):
            self._watches.pop(number, None)
            if self._inotify is not None:
                with contextlib.suppress(OSError):  # the kernel removes it together with the file
                    self._inotify.remove(number)

    def close(self) -> None:
        if self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify.fileno())
            self._inotify.close()
            self._inotify = None

    def _watch_new(self) -> None:
        new, self._new = self._new, []
        for ve in new:
            directory = self._directories.get(ve)
            if directory is not None:
                for file in COUNTERS:
                    self._watch(ve, f"{directory}/{file}")
                self._look(ve)

    def _watch(self, ve: str, path: str) -> None:
        if self._inotify is None:
            return
        try:
            number = self._inotify.add(path)
            self._watches[number] = ve
            self._numbers.setdefault(ve, []).append(number)
        except FileNotFoundError:
            pass  # a host without this controller, or the VE has just ended
        except OSError as error:
            log.warning("VE %s: %s: limits that it hits are told when it ends: %s", ve, path, error.strerror)

    def _on_change(self) -> None:
        if self._inotify is None:
            return
        changed = self._inotify.changed()
        lost = -1 in changed
        for ve in set(self._watches.values()) if lost else {self._watches.get(number, "") for number in changed}:
            self._look(ve)
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._inotify.fileno())
        loop.call_later(_REST, self._listen)

    def _listen(self) -> None:
        if self._inotify is not None:
            asyncio.get_running_loop().add_reader(self._inotify.fileno(), self._on_change)

    def _look(self, ve: str) -> None:
        directory = self._directories.get(ve)
        if directory is None:
            return
        seen, now = self._seen[ve], _read(directory)
        for kind in (kind for kinds in COUNTERS.values() for kind in kinds.values()):
            count = now.get(kind, 0) - seen.get(kind, 0)
            if count > 0:
                self._journal.add(kind, ve, count=count)
        self._seen[ve] = {**seen, **now}


def _read(directory: str) -> dict[str, int]:
    """The counters by kind of event; those that cannot be read are left out."""
    found: dict[str, int] = {}
    for file, kinds in COUNTERS.items():
        with contextlib.suppress(OSError, ValueError), open(f"{directory}/{file}", encoding="ascii") as lines:
            for line in lines:
                key, _, value = line.partition(" ")
                if key in kinds:
                    found[kinds[key]] = int(value)
    return found
