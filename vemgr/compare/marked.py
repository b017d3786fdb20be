# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes that carry a mark in their environment: how those of a run are found when nothing else is known of them.

A process id can be written down only after the fork, which is too late for a run that is killed in between, and what a
server forks has ids that nobody told us. The environment is inherited by all, across namespaces too.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Iterator

VARIABLE = "VEMGR_COMPARE"
Finder = Callable[[], Iterable[int]]
_GRACE = 5.0  # seconds between asking and killing


def processes() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def marked(mark: str) -> set[int]:
    """The processes with this mark, or one that begins with it and a dot, and all that descend from them: some
    overwrite their environment, as servers do that show their state in the list of processes."""
    wanted = f"{VARIABLE}={mark}".encode()
    found = {pid for pid in processes()
             if any(each == wanted or each.startswith(wanted + b".") for each in _environment(pid))}
    return found | descendants(found)


def descendants(of: Iterable[int]) -> set[int]:
    children: dict[int, list[int]] = {}
    for pid in processes():
        children.setdefault(parent_of(pid), []).append(pid)
    found: set[int] = set()
    rest = list(of)
    while rest:
        new = [pid for pid in children.get(rest.pop(), []) if pid not in found]
        found.update(new)
        rest += new
    return found


def parent_of(pid: int) -> int:
    """0 for one that has gone."""
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def alive(pid: int) -> bool:
    """Zombies are not: process 1 of a container may never reap what falls to it."""
    fields = _stat(pid)
    return bool(fields) and fields[0] != "Z"


def await_end(pid: int, seconds: float) -> bool:
    """Whether a process has ended within so many seconds; returns the moment it does, reaped or not."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(max(0.0, seconds) * 1000))
    finally:
        os.close(fd)


def end(mark: str, *, grace: float = _GRACE) -> bool:
    """Ask the marked processes to end, kill those that have not after `grace` seconds; returns when all are gone, with
    whether there were any."""
    return end_all(lambda: marked(mark), grace=grace)


def end_all(find: Finder, *, grace: float = _GRACE) -> bool:
    found = {pid for pid in find() if alive(pid)}
    there_were = bool(found)
    begin = time.monotonic()
    asked: set[int] = set()
    while found:
        late = time.monotonic() - begin >= grace
        for pid in found:
            if late or pid not in asked:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
                asked.add(pid)
        time.sleep(0.01)
        # Those that were found once are ours even if they have lost the mark, or their parent.
        found = {pid for pid in found | set(find()) if alive(pid)}
    return there_were


def _environment(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:  # gone, or a kernel thread
        return []


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on."""
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []
