# SPDX-License-Identifier: GPL-2.0-or-later
"""`vemgr logs`: what a VE has printed on its console, from the files that the keeper writes."""

from __future__ import annotations

import itertools
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator

from vemgr.cli.log_reader import Piece, Reader
from vemgr.cli.plain import Plain
from vemgr.core.errors import BadValue

_LOOK = 0.1  # seconds between two looks for more
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}  # seconds


def show(directory: int, *, tail: int | None, follow: bool, raw: bool, since: int, timestamps: bool) -> None:
    """Print the log in `directory`, or its last `tail` lines. With `follow` go on until the VE is destroyed.

    `since`: leave out what was printed before this second since 1970. `timestamps`: begin each line with its time; not
    together with `raw`.
    """
    reader = Reader(directory, timed=bool(since) or timestamps)
    text = _Text(timestamps=timestamps)

    def put(pieces: Iterable[Piece]) -> None:
        for piece in pieces:
            sys.stdout.buffer.write(piece.data if raw else text.feed(piece))
        sys.stdout.flush()

    put(_last_lines([piece for piece in reader.read() if piece.second >= since], tail))
    while follow:
        there = os.fstat(directory).st_nlink > 0
        put(reader.read())
        if not there:
            break
        time.sleep(_LOOK)
    if not raw:
        sys.stdout.buffer.write(text.end())


def parse_since(value: str) -> int:
    """Seconds since 1970 of a moment, "2026-11-22T21:30" (in the local zone, if it names none), or one ago, "1h30m".

    Raises `BadValue`.
    """
    found = re.findall(r"([0-9]{1,9})([smhdw])", value)
    if found and "".join(itertools.chain(*found)) == value:
        return max(0, int(time.time()) - sum(int(count) * _UNITS[unit] for count, unit in found))
    from datetime import datetime  # noqa: PLC0415 - a millisecond that other verbs need not wait for

    try:
        return max(0, int(datetime.fromisoformat(value).timestamp()))
    except (ValueError, OverflowError, OSError):
        raise BadValue("--since", value, "neither a duration, as 10m or 1h30m, nor a time, as 2026-11-22T21:30:00Z"
                       ) from None


class _Text:
    """Turns what was printed into text for a terminal that knows nothing of escape sequences."""

    def __init__(self, *, timestamps: bool) -> None:
        self._plain = Plain()
        self._timestamps = timestamps
        self._begins = True  # a line

    def feed(self, piece: Piece) -> bytes:
        return self._put(self._plain.feed(piece.data), piece.second)

    def end(self) -> bytes:
        return self._put(self._plain.feed(b"", final=True), 0)

    def _put(self, text: str, second: int) -> bytes:
        if self._timestamps:
            text = "".join(self._stamped(text, second))
        # Bytes that are no text of this terminal's encoding are shown in another way, as everywhere.
        return text.encode(sys.stdout.encoding, "backslashreplace")

    def _stamped(self, text: str, second: int) -> Iterator[str]:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ ", time.gmtime(second)) if second else "-" * 20 + " "
        for line in text.splitlines(keepends=True):
            yield stamp + line if self._begins else line
            self._begins = line.endswith("\n")


def _last_lines(pieces: list[Piece], count: int | None) -> list[Piece]:
    if count is None:
        return pieces
    lines = b"".join(piece.data for piece in pieces).splitlines(keepends=True)
    skip = sum(map(len, lines[:max(0, len(lines) - count)]))
    kept = []
    for piece in pieces:
        kept.append(Piece(piece.second, piece.data[skip:]))
        skip = max(0, skip - len(piece.data))
    return kept
