# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory: a guarantee beside VEs that take all there is, and a limit that is lowered below what is in use."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from benchmark.limits.result import Result, spread
from benchmark.limits.stage import Stage
from vemgr.core.config import MIB
from vemgr.verify import load

_GUARANTEED, _WORKING_SET = 256, 240  # MiB: what is guaranteed, and what the load touches over and over
_ENDLESS = 1 << 40  # bytes, more than any host has
_HELD, _CACHE, _SHRUNK = 60, 240, 150


def guarantee(stage: Stage) -> Iterator[Result]:
    good = stage.ve(memory_guarantee=f"{_GUARANTEED}M", cpu_guarantee="0.9")
    bad = [stage.ve() for _ in range(2)]
    time.sleep(0.5)
    counter = mmap.mmap(-1, mmap.PAGESIZE)
    with ExitStack() as undo:
        undo.enter_context(load.loaded(stage.group(good), _touch(_WORKING_SET, counter)))
        load.wait_until(lambda: _touched(counter) > _WORKING_SET * MIB, 60)
        before = _shortages()
        for ve in bad:
            undo.enter_context(load.loaded(stage.group(ve), _take_without_end))
        load.wait_until(lambda: _shortages() > before, 120)
        speeds, resident = [], []
        for _ in range(stage.repeat):
            with stage.frozen(bad):  # they keep what they have, and take no more
                alone = _rate(counter, 2 * stage.seconds)
            speeds.append(_rate(counter, 2 * stage.seconds) / alone)
            resident.append(stage.table(good, "memory.stat")["anon"] / (_WORKING_SET * MIB))
        kills = stage.table(good, "memory.events")["oom_kill"]
        others = sum(stage.table(ve, "memory.events")["oom_kill"] for ve in bad)
    yield Result("memory guarantee 256M beside VEs that take all: resident", "at least 99 %, no kill",
                 f"{spread(resident)} of the working set; {kills} kills in it, {others} in the others", resident,
                 min(resident) >= 0.99 and kills == 0)
    yield Result("its speed", "at least 95 % of alone", f"{spread(speeds)} of alone", speeds, min(speeds) >= 0.95)


def _shortages() -> int:
    """How often somebody had to wait for memory of the host's, or was killed for it."""
    with open("/proc/vmstat", encoding="ascii") as file:
        counted = dict(line.split() for line in file)
    return sum(int(count) for key, count in counted.items() if key == "oom_kill" or key.startswith("allocstall"))


def _touch(mib: int, counter: mmap.mmap) -> Callable[[], None]:
    def work() -> None:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("0")
        # A shared map, which Python makes unless told otherwise, would be counted as shared memory, not as "anon".
        data = mmap.mmap(-1, mib * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        touched, page = 0, b"\1" * (64 << 10)
        while True:
            for at in range(0, mib * MIB, len(page)):
                data[at:at + len(page)] = page
                touched += len(page)
                counter[:8] = touched.to_bytes(8, "little")
    return work


def _touched(counter: mmap.mmap) -> int:
    """Bytes."""
    return int.from_bytes(counter[:8], "little")


def _rate(counter: mmap.mmap, seconds: float) -> float:
    before, began = _touched(counter), time.monotonic()
    time.sleep(seconds)
    return (_touched(counter) - before) / (time.monotonic() - began)


def _take_without_end() -> None:
    """Take and touch memory until killed, again and again."""
    while True:
        child = os.fork()
        if child == 0:
            load.grow(_ENDLESS)()
        os.waitpid(child, 0)


def shrink(stage: Stage) -> Iterator[Result]:
    took, above, kills = [], [], 0
    for _ in range(stage.repeat):
        seconds, over, killed = _shrink_one(stage)
        took.append(seconds)
        above.append(over / MIB)
        kills += killed
        stage.clear()
    yield Result("live shrink 300M to 150M under load", "no kill, never above the new limit",
                 f"{kills} kills; {spread(took)} s; {spread(above)}M above", took, max(above) <= 0 and not kills)


def _shrink_one(stage: Stage) -> tuple[float, int, int]:
    """How long it took, the bytes in use above the new limit afterwards, and kills."""
    ve = stage.ve(memory="300M")
    path = f"{stage.vemgr.base}/cache"
    load.fill(path, _CACHE * MIB)
    counter = mmap.mmap(-1, mmap.PAGESIZE)
    try:
        with load.loaded(stage.group(ve), _touch(_HELD, counter), _read_over(path)):
            load.wait_until(lambda: stage.number(ve, "memory.current") > 220 * MIB, 60)
            began = time.monotonic()
            stage.set(ve, memory=f"{_SHRUNK}M")
            took = time.monotonic() - began
            over = stage.number(ve, "memory.current") - _SHRUNK * MIB
            touched = _touched(counter)
            load.wait_until(lambda: _touched(counter) > touched + 2 * _HELD * MIB, 30)
            return took, max(0, over), stage.table(ve, "memory.events")["oom_kill"]
    finally:
        os.unlink(path)


def _read_over(path: str) -> Callable[[], None]:
    def work() -> None:
        while True:
            with open(path, "rb", buffering=0) as file:
                while file.read(MIB):
                    pass
    return work
