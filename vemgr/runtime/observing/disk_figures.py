# SPDX-License-Identifier: GPL-2.0-or-later
"""How full the VEs' disks are, asked in threads: a file system may not answer, and that is nobody's business but the
VE's.

What is asked is the root of the VE's process 1, an overlay whose figures are those of the VE's disk: no path in the
VE's tree is looked up. An init that has changed its root to something else is told that one's figures, and one that
never answers has a thread of ours until the VE ends; it is not asked again meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Mapping

_DEADLINE = 0.25  # seconds for all VEs together, from the last answer
_BOUND = 1.0  # seconds for a call in which several do not answer
_MOST_STUCK = 32  # threads


def _ask(pid: int) -> dict[str, int]:
    found = os.statvfs(f"/proc/{pid}/root")
    block = found.f_frsize
    return {"disk.used": (found.f_blocks - found.f_bfree) * block, "disk.size": found.f_blocks * block,
            "disk.inodes_used": found.f_files - found.f_ffree, "disk.inodes": found.f_files,
            "disk.available": found.f_bavail * block, "disk.inodes_available": found.f_favail}


class DiskFigures:
    def __init__(self, ask: Callable[[int], dict[str, int]] = _ask) -> None:
        self._ask = ask
        self._stuck: set[str] = set()

    async def read(self, pids: Mapping[str, int]) -> dict[str, dict[str, int]]:
        """Figures by name of VE, of those that have answered in time. `pids`: of their inits."""
        loop = asyncio.get_running_loop()
        bound = loop.time() + _BOUND
        todo = [(ve, pid) for ve, pid in pids.items() if ve not in self._stuck]
        found: dict[str, dict[str, int]] = {}
        while todo and len(self._stuck) < _MOST_STUCK and loop.time() < bound:
            walk = _Walk(self._ask, todo, loop, self._stuck.discard)
            try:
                threading.Thread(target=walk.run, name="disk figures", daemon=True).start()
            except RuntimeError:  # the host has no more threads to give
                break
            await walk.until_done_or_stuck()
            todo, stuck = walk.give_up()
            self._stuck.update(stuck)
            found |= walk.found
        return found


class _Walk:
    """One thread that asks one VE after the other."""

    def __init__(self, ask: Callable[[int], dict[str, int]], todo: list[tuple[str, int]],
                 loop: asyncio.AbstractEventLoop, freed: Callable[[str], None]) -> None:
        self.found: dict[str, dict[str, int]] = {}
        self._ask, self._todo, self._loop, self._freed = ask, list(reversed(todo)), loop, freed
        self._lock = threading.Lock()
        self._at = ""
        self._given_up = False
        self._ended = asyncio.Event()

    def run(self) -> None:
        while (ve_and_pid := self._next()) is not None:
            ve, pid = ve_and_pid
            figures = None
            with contextlib.suppress(OSError):
                figures = self._ask(pid)
            with self._lock:
                self._at = ""
                if self._given_up:
                    self._tell(self._freed, ve)
                elif figures is not None:
                    self.found[ve] = figures
        self._tell(lambda _: self._ended.set(), "")

    def _next(self) -> tuple[str, int] | None:
        with self._lock:
            if self._given_up or not self._todo:
                return None
            found = self._todo.pop()
            self._at = found[0]
            return found

    def _tell(self, what: Callable[[str], None], ve: str) -> None:
        with contextlib.suppress(RuntimeError):  # the daemon has ended
            self._loop.call_soon_threadsafe(what, ve)

    async def until_done_or_stuck(self) -> None:
        left = -1
        while left != len(self._todo):
            left = len(self._todo)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), _DEADLINE)
                return

    def give_up(self) -> tuple[list[tuple[str, int]], list[str]]:
        """What was not asked, and whom the thread is waiting for. Nothing is found any more."""
        with self._lock:
            self._given_up = True
            return self._todo[::-1], [self._at] if self._at else []
