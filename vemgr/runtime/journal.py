# SPDX-License-Identifier: GPL-2.0-or-later
"""The events of all VEs: kept in a ring and, for the next daemon, in two files of bounded size in the run directory.

A verb only puts a value into the ring; the file is written a moment later, several events at once. What a killed daemon
has not written by then is lost, as is a file that cannot be written: events must never hold up or fail a verb.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Collection
from dataclasses import asdict

from vemgr.core.events import Event, Kind, Ring

log = logging.getLogger(__name__)

_FLUSH = 0.5  # seconds
_FILE_BOUND = 1 << 19  # bytes of each of the two files
_BATCH = 256  # events in one reply
_LEAP = 1 << 20  # numbers between two daemons' events: more than a killed one can have used and not written down
_FIELDS = {"number": int, "time": float, "kind": str, "ve": str, "detail": str, "count": int}


class Journal:
    """`directory`: where the files are; None keeps events in memory only."""

    def __init__(self, directory: str | None = None) -> None:
        self._path = f"{directory}/events.log" if directory else ""
        self._older = f"{directory}/events.old.log"
        self._ring = Ring()
        self._unwritten: list[Event] = []
        self._news = asyncio.Event()
        if self._path:
            for path in (self._older, self._path):
                self._load(path)
        if self._ring.last:
            self._ring.last += _LEAP
        self._first = self._ring.last  # the number before our own first event
        self._ended = False

    def _load(self, path: str) -> None:
        with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                event = _parsed(line)
                if event is not None and event.number > self._ring.last:
                    self._ring.put(event)

    def add(self, kind: Kind, ve: str, detail: str = "", count: int = 1) -> None:
        event = Event(self._ring.last + 1, round(time.time(), 3), str(kind), ve, detail, count)
        self._ring.put(event)
        self._news.set()
        self._news = asyncio.Event()
        if self._path:
            if not self._unwritten:
                asyncio.get_running_loop().call_later(_FLUSH, self.flush)
            self._unwritten.append(event)

    def end(self) -> None:
        """There will be no next daemon to tell more: readers that follow get to the end."""
        self._ended = True
        self._news.set()

    def flush(self) -> None:
        if not self._unwritten:
            return
        text = "".join(json.dumps(asdict(event), separators=(",", ":")) + "\n" for event in self._unwritten)
        self._unwritten = []
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, text.encode())
                full = os.fstat(fd).st_size > _FILE_BOUND
            finally:
                os.close(fd)
            if full:
                os.rename(self._path, self._older)
        except OSError as error:
            log.warning("events are not kept for the next daemon: %s: %s", self._path, error.strerror)

    def latest(self, ve: str, kinds: Collection[str], count: int) -> list[Event]:
        """The last events of a VE of some kinds, oldest first."""
        found = [event for event in self._ring.after(0) if event.ve == ve and event.kind in kinds]
        return found[-count:]

    async def read(self, ve: str, since: float, *, follow: bool, after: int = 0) -> AsyncIterator[list[Event]]:
        """The events of `ve`, or of all VEs if that is "", since a Unix time, and after that of number `after`, which
        an earlier daemon may have told; with `follow` also those to come, until `end`. A reader that is too slow for
        the ring finds an event `gap` with the number of those that it has missed. Nothing is kept for a reader but its
        place."""
        position = after if after <= self._ring.last else 0  # or the numbers have begun anew since
        missed = 0
        while True:
            found = self._ring.after(position)
            if position and position >= self._first:  # between an earlier daemon's numbers and ours there is a hole
                missed = self._ring.last - position - len(found)
            if missed:
                yield [Event(position + missed, round(time.time(), 3), str(Kind.GAP), "", "read too slowly", missed)]
            position, news = self._ring.last, self._news
            wanted = [event for event in found if event.time >= since and ve in ("", event.ve)]
            for first in range(0, len(wanted), _BATCH):
                yield wanted[first : first + _BATCH]
            if not follow or self._ended:
                return
            if position == self._ring.last:  # nothing has come while the reader took what there was
                await news.wait()


def _parsed(line: str) -> Event | None:
    """None for what is no event, such as a line that a full disk has cut."""
    try:
        document = json.loads(line)
        if isinstance(document, dict) and {key: type(value) for key, value in document.items()} == _FIELDS:
            return Event(**document)
    except ValueError:
        pass
    return None
