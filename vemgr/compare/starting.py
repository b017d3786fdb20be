# SPDX-License-Identifier: GPL-2.0-or-later
"""The times of a start, the same way for all instances that share the host's kernel and clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from vemgr.compare.driver import DriverFailed, Finished
from vemgr.compare.tree import FIRST

_PATIENCE = 60.0  # seconds, on a host that is busy with other things


def parse_stamp(path: Path) -> int | None:
    """Nanoseconds since 1970 of an instance's first instruction; None while it has not written the whole line."""
    try:
        text = path.read_text(encoding="ascii")
    except FileNotFoundError:
        return None
    word, _, rest = text.partition(" ")
    digits, newline, _ = rest.partition("\n")
    return int(digits) if word == "first" and newline and digits.isdecimal() else None


def await_command(run: Callable[[float], Finished], begin: float) -> float:
    """Seconds from `begin` (`time.monotonic`) until a command has run. `run` is given the seconds that it may take."""
    deadline = begin + _PATIENCE
    while True:
        found = run(max(1.0, deadline - time.monotonic()))
        if found.code == 0:
            return time.monotonic() - begin
        if time.monotonic() > deadline:
            why = found.stderr.decode(errors="replace").strip() or f"exit code {found.code}"
            raise DriverFailed(f"{FIRST} cannot be run: {why}")
        time.sleep(0.005)
