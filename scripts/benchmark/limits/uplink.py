# SPDX-License-Identifier: GPL-2.0-or-later
"""The uplink: a guarantee beside VEs that flood it, and weights."""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack

from benchmark.limits.result import Result, spread
from benchmark.limits.stage import Stage
from benchmark.limits.world import FAR, RATE, World
from benchmark.measure import Failed
from vemgr.kernel.namespaces import CLONE_NEWNET, setns
from vemgr.verify import load

_GUARANTEE = 5  # Mbit/s
_FLOODING = 8
_PORT = 9000
_CONTENT, _FRAME = 1400, 1442  # bytes of each packet, and as the device counts it
_FULL = 0.95
_OFFERED = 0.9  # of its rate has each VE to send, or the uplink is not what is measured
_SETTLING = 3.0  # seconds until the queues are full


def shares(stage: Stage) -> Iterator[Result]:
    # Its sender must not have to wait for a CPU.
    cpu = {"cpu_guarantee": "0.5"} if "cpu" in stage.controllers else {}
    good = stage.ve(network="bridge", network_guarantee=f"{_GUARANTEE}M", **cpu)
    flooding = [stage.ve(network="bridge") for _ in range(_FLOODING)]
    # Twice what there is is a flood already; more would take a slow machine's CPUs.
    rates = {good: 1.5 * _GUARANTEE, **dict.fromkeys(flooding, 2 * RATE / _FLOODING)}
    got = [found[good] / _GUARANTEE for found in _arriving(stage, rates)]
    yield Result(f"uplink guarantee {_GUARANTEE}M of {RATE}M beside {_FLOODING} VEs that flood it",
                 "at least 95 % of it", f"{spread(got)} of it", got, min(got) >= 0.95)
    stage.clear()
    light, heavy = (stage.ve(network="bridge", network_weight=weight) for weight in ("100", "400"))
    ratios = [found[heavy] / found[light] for found in _arriving(stage, dict.fromkeys((light, heavy), float(RATE)))]
    yield Result("uplink weights 1:4", "within 5 %", f"1:{spread(ratios)}", ratios,
                 all(abs(ratio / 4 - 1) <= 0.05 for ratio in ratios))


def _arriving(stage: Stage, rates: Mapping[str, float]) -> list[Mapping[str, float]]:
    """Mbit/s from each VE, in frames, while it sends at its rate, of each repetition. Raises `Failed` where the uplink
    is not full."""
    pids, ves = stage.vemgr.running(), list(rates)
    counts, sent = (memoryview(mmap.mmap(-1, 8 * len(ves))).cast("Q") for _ in range(2))
    with ExitStack() as undo:
        undo.enter_context(stage.beside(lambda: _take(stage.world, counts)))
        for number, ve in enumerate(ves):
            undo.enter_context(load.loaded(stage.group(ve), _sender(pids[ve], number, rates[ve], sent)))
        load.wait_until(lambda: all(counts), 60)
        time.sleep(_SETTLING)
        found: list[Mapping[str, float]] = []
        offered: list[Mapping[str, float]] = []
        for _ in range(stage.repeat):
            before, tried, began = list(counts), list(sent), time.monotonic()
            time.sleep(3 * stage.seconds)
            found.append(_rates(ves, before, counts, began))
            offered.append(_rates(ves, tried, sent, began))
    least = min(sum(each.values()) for each in found)
    if least < _FULL * RATE:
        raise Failed(f"only {least:.1f} of {RATE} Mbit/s came through: this machine cannot fill the uplink")
    for ve, rate in rates.items():
        if (slowest := min(each[ve] for each in offered)) < _OFFERED * rate:
            raise Failed(f"a VE sent only {slowest:.2f} of {rate:g} Mbit/s: this machine has not the CPUs for it")
    return found


def _rates(ves: Sequence[str], before: Sequence[int], now: Iterable[int], began: float) -> dict[str, float]:
    seconds = time.monotonic() - began
    return {ve: (after - first) * 8 / _CONTENT * _FRAME / 1e6 / seconds
            for ve, first, after in zip(ves, before, now, strict=True)}


def _take(world: World, counts: memoryview) -> None:
    """Counts the bytes that come for each port."""
    world.enter()
    sockets = []
    for number in range(len(counts)):
        sockets.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
        sockets[-1].bind((FAR, _PORT + number))
    while True:
        for ready in select.select(sockets, [], [])[0]:
            with contextlib.suppress(BlockingIOError):
                while True:
                    counts[sockets.index(ready)] += len(ready.recv(_CONTENT))


def _sender(pid: int, number: int, rate: float, sent: memoryview) -> Callable[[], None]:
    """`sent`: bytes that it has tried to send, by number."""
    def work() -> None:
        setns(os.open(f"/proc/{pid}/ns/net", os.O_RDONLY), CLONE_NEWNET)
        pause = _FRAME * 8 / (rate * 1e6)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
            due = time.monotonic()
            while True:
                with contextlib.suppress(OSError):  # the queue is full
                    ours.sendto(bytes(_CONTENT), (FAR, _PORT + number))
                sent[number] += _CONTENT
                due = max(due + pause, time.monotonic() - 10 * pause)
                time.sleep(max(0.0, due - time.monotonic()))
    return work
