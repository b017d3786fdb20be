# SPDX-License-Identifier: GPL-2.0-or-later
"""What the daemon's control loop costs beside many VEs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmark.limits.result import Result, spread
from benchmark.limits.stage import Stage
from vemgr.verify import load

_BUSY = 4  # VEs that want more CPU than there is, so that pressure wakes the loop
_CALMING = 10.0  # seconds
_LONG = 20.0  # seconds: several of its ticks


def cost(stage: Stage) -> Iterator[Result]:
    names = stage.ves(stage.many)
    daemon, _ = stage.vemgr.own_pids()
    time.sleep(_CALMING)
    yield _cost(stage, daemon, "at rest")
    with ExitStack() as undo:
        for ve in names[:_BUSY]:
            undo.enter_context(load.loaded(stage.group(ve), *[load.burn] * (os.cpu_count() or 1)))
        time.sleep(_CALMING)
        busy = _cost(stage, daemon, f"of which {_BUSY} want more CPU than there is")
    yield busy


def _cost(stage: Stage, daemon: int, when: str) -> Result:
    got = []
    for _ in range(stage.repeat):
        before, began = _cpu_seconds(daemon), time.monotonic()
        time.sleep(_LONG)
        got.append((_cpu_seconds(daemon) - before) / (time.monotonic() - began))
    return Result(f"the daemon beside {stage.many} VEs, {when}", "less than 1 % of a CPU", spread(got, "{:.2%}"), got,
                  max(got) < 0.01)


def _cpu_seconds(pid: int) -> float:
    """Of all its threads, to the nanosecond (proc(5), schedstat)."""
    found = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += int((task / "schedstat").read_text().split()[0])
    return found / 1e9
