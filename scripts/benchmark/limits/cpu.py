# SPDX-License-Identifier: GPL-2.0-or-later
"""CPU: limits, how soon a change holds, weights, guarantees, and the arithmetic behind them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from benchmark.limits.result import Result, jain, spread
from benchmark.limits.stage import Stage
from vemgr.scheduler.filling import Claim, fill
from vemgr.verify import load

_LIMITS = ((0.1, 1), (0.1, 8), (0.5, 1), (0.5, 8), (1.0, 2), (1.0, 8), (1.5, 2), (1.5, 8))  # CPUs, threads
_CPUS = os.cpu_count() or 1


def limit(stage: Stage) -> Iterator[Result]:
    for asked, threads in _LIMITS:
        if asked > _CPUS:
            continue
        ve = stage.ve(cpus=str(asked))
        got = []
        with load.loaded(stage.group(ve), *[load.burn] * threads):
            for _ in range(stage.repeat):
                time.sleep(0.5)
                got += stage.used([ve], stage.seconds)
        worst = max(abs(value - asked) for value in got)
        yield Result(f"cpu limit {asked}, {threads} threads", "within 1 % or 0.005",
                     f"{spread(got)} CPUs, off by {worst / asked:.2%}", got, worst <= max(0.01 * asked, 0.005))
        stage.clear()


def settle(stage: Stage) -> Iterator[Result]:
    """From half a second after a change on, it holds."""
    ve = stage.ve(cpus="0.2")
    got = []
    with load.loaded(stage.group(ve), *[load.burn] * 4):
        for number in range(2 * stage.repeat):
            asked = (0.8, 0.2)[number % 2]
            stage.set(ve, cpus=str(asked))
            time.sleep(0.5)
            got.append(stage.used([ve], 1.0)[0] / asked)
    yield Result("cpu limit 0.5 s after a change", "within 1 %", f"{spread(got)} of what was asked", got,
                 all(abs(value - 1) <= 0.01 for value in got))


def weights(stage: Stage) -> Iterator[Result]:
    yield from _weights(stage, (100, 200, 400), 3 * stage.seconds)
    stage.clear()
    # The kernel deals out time in slices of some ms, of which the light one has few: in a look of 6 s they are not yet
    # its share.
    yield from _weights(stage, (100, 10000), 15 * stage.seconds)
    stage.clear()
    # On several CPUs the kernel estimates which part of a cgroup's weight counts on which (calc_group_shares), on one
    # it has nothing to estimate.
    yield from _weights(stage, (100, 10000), 15 * stage.seconds, cpu="0")


def _weights(stage: Stage, given: Sequence[int], seconds: float, cpu: str = "") -> Iterator[Result]:
    """`cpu`: to which the VEs are confined."""
    place = {"cpu_mask": cpu} if cpu else {}
    ves = [stage.ve(cpu_weight=str(weight), **place) for weight in given]
    name = "weights " + ":".join(str(weight // given[0]) for weight in given) + (" on one CPU" if cpu else "")
    with ExitStack() as undo:
        for ve in ves:
            undo.enter_context(load.loaded(stage.group(ve), *[load.burn] * (1 if cpu else _CPUS)))
        indexes, worst, total = [], [], []
        for _ in range(stage.repeat):
            time.sleep(0.5)
            got = stage.used(ves, seconds)
            parts = [part / sum(got) * sum(given) / weight for part, weight in zip(got, given, strict=True)]
            indexes.append(jain(parts))
            worst.append(max(abs(part - 1) for part in parts))
            total.append(sum(got))
    yield Result(name, "within 2 %, Jain at least 0.999",
                 f"share off by {spread(worst, '{:.2%}')} of what was due; Jain {spread(indexes, '{:.5f}')}; "
                 f"{spread(total)} CPUs used in all", worst, max(worst) <= 0.02 and min(indexes) >= 0.999)


def guarantee(stage: Stage) -> Iterator[Result]:
    neighbours = [stage.ve(cpu_weight="10000") for _ in range(10)]
    good = stage.ve(cpu_guarantee="0.5")
    time.sleep(0.5)  # weights follow in the background
    with ExitStack() as undo:
        for ve in (good, *neighbours):
            undo.enter_context(load.loaded(stage.group(ve), *[load.burn] * _CPUS))
        got = []
        for _ in range(stage.repeat):
            time.sleep(0.5)
            got += stage.used([good], 3 * stage.seconds)
    yield Result("cpu guarantee 0.5 beside 10 busy VEs of weight 10000", "at least 99 % of it", f"{spread(got)} CPUs",
                 got, min(got) >= 0.99 * 0.5)


def arithmetic(stage: Stage) -> Iterator[Result]:
    claims = [Claim(number % 7, None if number % 3 else 50 + number % 100, 1 + number % 1000)
              for number in range(100_000)]
    took = []
    for _ in range(stage.repeat):
        began = time.perf_counter()
        fill(4_000_000, claims)
        took.append(time.perf_counter() - began)
    yield Result("entitlement of 100,000 VEs", "less than 1 s", f"{spread(took)} s", took, max(took) < 1)
