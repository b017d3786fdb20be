# SPDX-License-Identifier: GPL-2.0-or-later
"""What VEs that serve requests feel of the others: of those that do all the harm they can, and of batch work."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from benchmark.limits.result import Result, spread
from benchmark.limits.stage import Stage
from vemgr.kernel.namespaces import CLONE_NEWNET, setns
from vemgr.verify import load

_THINK = 0.02  # seconds between an answer and the next request
_WORK = 3000  # turns of a loop for each request: about a millisecond where nothing is emulated
_MOST = 1 << 16  # latencies that are kept
_SAMPLE = struct.Struct("=d")
_CPUS = os.cpu_count() or 1


class Service:
    """A server and its client, one request at a time, in the cgroup of a VE."""

    def __init__(self) -> None:
        self._samples = mmap.mmap(-1, 8 + _MOST * _SAMPLE.size)

    def work(self) -> None:
        ours, theirs = socket.socketpair()
        if os.fork() == 0:
            while theirs.recv(1):
                _turns(_WORK)
                theirs.send(b"a")
        count = 0
        while True:
            began = time.monotonic()
            ours.send(b"q")
            ours.recv(1)
            _SAMPLE.pack_into(self._samples, 8 + count % _MOST * _SAMPLE.size, time.monotonic() - began)
            count += 1
            self._samples[:8] = count.to_bytes(8, "little")
            time.sleep(_THINK)

    def count(self) -> int:
        return int.from_bytes(self._samples[:8], "little")

    def latencies(self, first: int) -> list[float]:
        return [_SAMPLE.unpack_from(self._samples, 8 + number % _MOST * _SAMPLE.size)[0]
                for number in range(first, self.count())]


def _turns(count: int) -> int:
    total = 0
    for number in range(count):
        total += number * number
    return total


def _served(services: list[Service], seconds: float) -> tuple[float, float]:
    """Answers a second of all together, and the 99th percentile of what they took, in seconds."""
    firsts, began = [service.count() for service in services], time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - began
    found = sorted(sample for service, first in zip(services, firsts, strict=True)
                   for sample in service.latencies(first))
    return len(found) / took, found[int(0.99 * (len(found) - 1))] if found else float("inf")


def isolation(stage: Stage) -> Iterator[Result]:
    """By turns: alone, and beside one VE for each kind of harm."""
    good = [stage.ve(cpu_guarantee=f"{0.2 * _CPUS / 2:.2f}", memory_guarantee="64M") for _ in range(3)]
    bad = {kind: stage.ve(memory="256M", pids="200", **({"network": "bridge"} if kind == "network" else {}))
           for kind in ("cpu", "memory", "disk", "fork", "network", "log")}
    services = [Service() for _ in good]
    path = f"{stage.vemgr.base}/flood"
    load.fill(path, 64 << 20)
    rates, tails = [], []
    with ExitStack() as undo:
        undo.callback(os.unlink, path)
        for ve, service in zip(good, services, strict=True):
            undo.enter_context(load.loaded(stage.group(ve), service.work))
        time.sleep(1)
        for _ in range(stage.repeat):
            alone = _served(services, 2 * stage.seconds)
            with ExitStack() as harm:
                for kind, works in _harm(stage, bad, path).items():
                    harm.enter_context(load.loaded(stage.group(bad[kind]), *works))
                time.sleep(1)
                beside = _served(services, 2 * stage.seconds)
            rates.append(beside[0] / alone[0])
            tails.append(beside[1] / alone[1])
            time.sleep(1)
    yield Result("isolation: three VEs that serve beside six that flood: throughput", "at least 98 % of alone",
                 f"{spread(rates)} of alone", rates, min(rates) >= 0.98)
    yield Result("isolation: their p99", "at most 1.2 x alone", f"{spread(tails)} x alone", tails, max(tails) <= 1.2)


def _harm(stage: Stage, bad: dict[str, str], path: str) -> dict[str, list[Callable[[], None]]]:
    pids = {ve["name"]: ve["pid"] for ve in stage.vemgr.call("List")["ves"]}
    network, log = pids[bad["network"]], pids[bad["log"]]
    gateway = stage.vemgr.call("GetHost")["networks"][0]["gateway"]
    return {"cpu": [load.burn] * 2 * _CPUS, "memory": [_again(load.grow(1 << 40))], "fork": [_fork_bomb],
            "disk": [load.transfer(path, write=True, size=64 << 20)],
            "network": [lambda: _flood(network, gateway)], "log": [lambda: _print_without_end(log), _watch_without_end]}


def _again(work: Callable[[], None]) -> Callable[[], None]:
    def repeat() -> None:
        while True:
            child = os.fork()
            if child == 0:
                work()
            os.waitpid(child, 0)
    return repeat


def _fork_bomb() -> None:
    while True:
        with contextlib.suppress(OSError):
            os.fork()


def _flood(pid: int, address: str) -> None:
    fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    setns(fd, CLONE_NEWNET)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
        while True:
            with contextlib.suppress(OSError):
                ours.sendto(bytes(1400), (address, 9))


def _print_without_end(pid: int) -> None:
    fd = os.open(f"/proc/{pid}/root/dev/console", os.O_WRONLY | os.O_NOCTTY)
    while True:
        select.select([], [fd], [])
        os.write(fd, b"x" * 79 + b"\n")


def _watch_without_end() -> None:
    libc = ctypes.CDLL(None)
    while True:
        fds = []
        while (fd := libc.inotify_init()) >= 0:
            fds.append(fd)
        for fd in fds:
            os.close(fd)


def utilization(stage: Stage) -> Iterator[Result]:
    """One protected VE and two with batch work; by turns with guarantees and weights, and with limits that are set so
    that they cannot disturb it."""
    part = 0.5 * _CPUS
    service = Service()
    used, tails, static, static_tails = [], [], [], []
    good = stage.ve(cpu_guarantee=f"{part:.2f}")
    batch = [stage.ve(cpu_weight="1") for _ in range(2)]
    with ExitStack() as undo:
        undo.enter_context(load.loaded(stage.group(good), service.work))
        for _ in range(stage.repeat):
            alone = _served([service], 2 * stage.seconds)
            with ExitStack() as busy:
                for ve in batch:
                    busy.enter_context(load.loaded(stage.group(ve), *[load.burn] * _CPUS))
                time.sleep(0.5)
                beside, total = _served_and_used(stage, service, [good, *batch])
                tails.append(beside[1] / alone[1])
                used.append(total / _CPUS)
                for ve in batch:
                    stage.set(ve, cpus=f"{(_CPUS - part) / len(batch):.2f}")
                time.sleep(0.5)
                beside, total = _served_and_used(stage, service, [good, *batch])
                static_tails.append(beside[1] / alone[1])
                static.append(total / _CPUS)
                for ve in batch:
                    stage.set(ve, cpus="unlimited")
    yield Result("utilization: a VE that serves beside batch work: CPU used", "at least 90 %",
                 f"{spread(used)}; with static limits {spread(static)}", used, min(used) >= 0.9)
    yield Result("utilization: its p99", "at most 1.1 x alone",
                 f"{spread(tails)} x alone; with static limits {spread(static_tails)}", tails, max(tails) <= 1.1)


def _served_and_used(stage: Stage, service: Service, ves: list[str]) -> tuple[tuple[float, float], float]:
    before = sum(stage.table(ve, "cpu.stat")["usage_usec"] for ve in ves)
    began = time.monotonic()
    served = _served([service], 2 * stage.seconds)
    took = time.monotonic() - began
    return served, (sum(stage.table(ve, "cpu.stat")["usage_usec"] for ve in ves) - before) / 1e6 / took
