# SPDX-License-Identifier: GPL-2.0-or-later
"""VEs whose processes wait for CPU, memory or disks, as events.

A trigger for each VE would be descriptors and, for root, threads of the kernel for each. So there are three for all of
them, and only when one fires is it looked who waits for this, and again until nobody is under pressure.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping

from vemgr.core.events import Kind
from vemgr.kernel.pressure import average
from vemgr.runtime.journal import Journal
from vemgr.runtime.triggers import Triggers

_REST = 4.0  # seconds between two looks; the kernel has new averages every two
_LOOKS = 3  # after the last trigger: its average is one of ten seconds
#: Per cent of the time. CPUs are there to be shared: who waits for them is under pressure later than who waits for
#: memory, which always means that work is done twice.
_MOST = {"cpu": 40.0, "memory": 10.0, "io": 30.0}
_EVENTS = {"cpu": Kind.CPU_PRESSURE, "memory": Kind.MEMORY_PRESSURE, "io": Kind.IO_PRESSURE}


class Strain:
    def __init__(self, journal: Journal, running: Callable[[], dict[str, str]]) -> None:
        """`running`: the VEs that run, with their cgroups."""
        self._journal = journal
        self._running = running
        self._triggers = Triggers(self._on_pressure)
        self._under: set[tuple[str, str]] = set()
        self._looking: asyncio.Task[None] | None = None
        self._left: dict[str, int] = {}  # looks, by what there was too little of

    def open(self, base: str) -> None:
        """Watch the VEs' cgroups, which are below `base`, and no others any more. A kernel without PSI has nothing to
        watch."""
        self.close()
        self._triggers.open(base, _EVENTS)

    def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        self._triggers.close()

    def _on_pressure(self, kind: str) -> None:
        self._left[kind] = _LOOKS
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look_until_calm())

    async def _look_until_calm(self) -> None:
        while kinds := {*self._left, *(kind for _, kind in self._under)}:
            self._left = {kind: left - 1 for kind, left in self._left.items() if left > 1}
            self._take(await asyncio.to_thread(_averages, self._running(), kinds))
            await asyncio.sleep(_REST)

    def _take(self, averages: dict[tuple[str, str], float]) -> None:
        """One event when a VE comes under pressure; it is out of that at half as much."""
        for (ve, kind), share in averages.items():
            if share >= _MOST[kind] and (ve, kind) not in self._under:
                self._under.add((ve, kind))
                self._journal.add(_EVENTS[kind], ve, f"some waited {share:.0f}% of the last 10 s")
        self._under = {each for each in self._under if averages.get(each, 0.0) >= _MOST[each[1]] / 2}


def _averages(directories: Mapping[str, str], kinds: Iterable[str]) -> dict[tuple[str, str], float]:
    found = {}
    for name, directory in directories.items():
        for kind in kinds:
            # The VE may have ended, or the kernel tells no pressure of this kind.
            with contextlib.suppress(OSError, ValueError), open(f"{directory}/{kind}.pressure",
                                                                encoding="ascii") as file:
                found[name, kind] = average(file.read())
    return found
