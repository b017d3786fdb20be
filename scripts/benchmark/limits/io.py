# SPDX-License-Identifier: GPL-2.0-or-later
"""Disk: rates, past the page cache and through it, and weights where the disk has them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from benchmark.limits.result import Result, spread
from benchmark.limits.stage import Stage
from vemgr.core.config import MIB
from vemgr.verify import load

_RATE = 4 * MIB  # bytes/s
_OPERATIONS = 100
_FILE = 64 * MIB


def rates(stage: Stage) -> Iterator[Result]:
    path = f"{stage.vemgr.base}/disk"
    load.fill(path, _FILE)
    try:
        for name, setting, counter, asked, work in (
            ("direct write", "io_write", "wbytes", _RATE, load.transfer(path, write=True, size=_FILE)),
            ("direct read", "io_read", "rbytes", _RATE, load.transfer(path, write=False, size=_FILE)),
            ("write operations", "iops_write", "wios", _OPERATIONS,
             load.transfer(path, write=True, size=_FILE, block=4096)),
            ("buffered write", "io_write", "wbytes", _RATE, _buffered_write(path)),
            ("buffered read", "io_read", "rbytes", _RATE, _buffered_read(path)),
        ):
            ve = stage.ve(**{setting: str(asked)})
            # Through the page cache bytes reach the disk in bursts: longer.
            seconds = stage.seconds * (3 if name.startswith("buffered") else 1)
            with load.loaded(stage.group(ve), work):
                time.sleep(1.5)
                got = [_rate(stage, ve, counter, seconds) for _ in range(stage.repeat)]
            off = max(abs(value / asked - 1) for value in got)
            scale, unit = (MIB, "MiB/s") if asked == _RATE else (1, "operations/s")
            yield Result(f"io limit, {name}", "within 5 %", f"asked {asked / scale:g}, got "
                         f"{spread([value / scale for value in got])} {unit}", got, off <= 0.05)
            stage.clear()
    finally:
        os.unlink(path)


def _total(stage: Stage, ve: str, counter: str) -> int:
    found = 0
    for line in (stage.base / ve / "io.stat").read_text().splitlines():
        pairs = dict(pair.split("=") for pair in line.split()[1:] if "=" in pair)
        found = max(found, int(pairs.get(counter, 0)))  # a disk and its partitions and images tell the same
    return found


def _rate(stage: Stage, ve: str, counter: str, seconds: float) -> float:
    before, began = _total(stage, ve, counter), time.monotonic()
    time.sleep(seconds)
    return (_total(stage, ve, counter) - before) / (time.monotonic() - began)


def _buffered_write(path: str) -> Callable[[], None]:
    def work() -> None:
        data = b"\2" * MIB
        fd = os.open(path, os.O_WRONLY)
        while True:
            for at in range(0, _FILE, MIB):
                os.pwrite(fd, data, at)
                os.fdatasync(fd)
    return work


def _buffered_read(path: str) -> Callable[[], None]:
    def work() -> None:
        fd = os.open(path, os.O_RDONLY)
        while True:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            for at in range(0, _FILE, MIB):
                os.pread(fd, MIB, at)
    return work


def weights(stage: Stage) -> Iterator[Result]:
    ves = [stage.ve(io_weight="100"), stage.ve(io_weight="400")]
    paths = [f"{stage.vemgr.base}/disk{number}" for number in range(2)]
    for path in paths:
        load.fill(path, _FILE)
    try:
        with ExitStack() as undo:
            for ve, path in zip(ves, paths, strict=True):
                read = load.transfer(path, write=False, size=_FILE)
                undo.enter_context(load.loaded(stage.group(ve), *[read] * 4))
            ratios = []
            for _ in range(stage.repeat):
                time.sleep(1)
                before = [_total(stage, ve, "rbytes") for ve in ves]
                time.sleep(3 * stage.seconds)
                light, heavy = (_total(stage, ve, "rbytes") - b for ve, b in zip(ves, before, strict=True))
                ratios.append(heavy / max(1, light))
    finally:
        for path in paths:
            os.unlink(path)
    yield Result("io weights 1:4", "within 10 %", f"1:{spread(ratios, '{:.2f}')}", ratios,
                 all(abs(ratio / 4 - 1) <= 0.1 for ratio in ratios))
