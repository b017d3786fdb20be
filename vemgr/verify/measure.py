# SPDX-License-Identifier: GPL-2.0-or-later
"""The measurement of each limit of one VE, in bounded time."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vemgr.core import resources as units
from vemgr.core.config import MIB, Settings
from vemgr.verify import load, network
from vemgr.verify.finding import Finding, Outcome, judge_amount, judge_guarantee, judge_rate

_SETTLE = 0.3  # seconds from the begin of a load to the measurement
_MOST_PROCESSES = 4096  # that are forked to see a limit
_SPARE = 256 * MIB  # of the host's memory that no load may take
_GROWING = 30.0  # seconds
_FILE = 64 * MIB
_OPERATION = 4096
_PERIOD = 0.1  # seconds: that of cpu.max
_IO = {"io_read": ("rbytes", False), "io_write": ("wbytes", True),
       "iops_read": ("rios", False), "iops_write": ("wios", True)}


@dataclass(frozen=True)
class Subject:
    """A VE that runs. `group`: its cgroup. `data`: a directory on the disk that its I/O limits are for. `pid`: of its
    init. `address`: of its eth0, "" for none."""

    name: str
    settings: Settings
    group: str
    controllers: frozenset[str]
    data: str
    seconds: float
    pid: int = 0
    address: str = ""

    def read(self, file: str) -> str:
        with open(f"{self.group}/{file}", encoding="ascii") as stream:
            return stream.read().strip()

    def number(self, file: str) -> int:
        return int(self.read(file))

    def count(self, file: str, key: str) -> int:
        """From a file of lines with a key and a value."""
        return next((int(line.split()[1]) for line in self.read(file).splitlines() if line.split()[0] == key), 0)


def verify_cpu(subject: Subject) -> Iterator[Finding]:
    settings = subject.settings
    if settings.cpus is None and not settings.cpu_guarantee:
        return
    usable = len(_usable_cpus(settings))
    with load.loaded(subject.group, *[load.burn] * max(2, usable + 1)):
        time.sleep(_SETTLE)
        # A whole number of the kernel's periods of 100 ms: they begin and end at the same point of one.
        before, began = subject.count("cpu.stat", "usage_usec"), time.monotonic()
        time.sleep(max(1.0, round(subject.seconds, 1)))
        got = (subject.count("cpu.stat", "usage_usec") - before) / 1e6 / (time.monotonic() - began)
    if settings.cpus is not None and settings.cpus > 1000 * usable:
        yield Finding("cpus", Outcome.NOT_ENFORCEABLE, why=f"the VE can use {usable} CPUs, fewer than the limit of "
                      f"{units.format_cpus(settings.cpus)}")
    elif settings.cpus is not None:
        yield judge_rate("cpus", settings.cpus / 1000, got, 1, "CPUs", edge=_PERIOD / subject.seconds)
    if settings.cpu_guarantee:
        yield judge_guarantee("cpu-guarantee", settings.cpu_guarantee / 1000, got, 1, "CPUs")


def _usable_cpus(settings: Settings) -> set[int]:
    ours = os.sched_getaffinity(0)
    return ours if settings.cpu_mask is None else ours & units.expand_cpu_mask(settings.cpu_mask)


def verify_memory(subject: Subject) -> Iterator[Finding]:
    limit, settings = subject.settings.memory, subject.settings
    if limit is None:
        return
    left = _available() - _SPARE
    wanted = limit + limit // 8 + 8 * MIB - min(limit, subject.number("memory.current"))
    if left < wanted:
        yield Finding("memory", Outcome.NOT_MEASURED, why=f"the host has too little memory left to fill "
                      f"{units.format_size(limit)}")
        return
    with contextlib.suppress(OSError):
        if subject.number("memory.oom.group"):
            yield Finding("memory", Outcome.NOT_MEASURED, why="memory.oom.group would have the whole VE killed")
            return
    killed = subject.count("memory.events", "oom_kill")
    stopped = subject.count("memory.events", "max")
    swapped = _swapped(subject)
    most, ended = 0, False
    with load.loaded(subject.group, load.grow(limit + limit // 8 + 8 * MIB)) as pids:
        def over() -> bool:
            nonlocal most, ended
            most = max(most, subject.number("memory.current"))
            ended = ended or _has_ended(pids[0])
            return ended or _is_asleep(pids[0])
        load.wait_until(over, _GROWING, 0.005)
    killed = subject.count("memory.events", "oom_kill") - killed
    hit = killed > 0 or subject.count("memory.events", "max") > stopped
    swap = max(0, _swapped(subject) - swapped)
    how = "the load was killed at the limit" if killed else "the rest was reclaimed" + (" to swap" if swap else "")
    yield judge_amount("memory", limit, most, MIB, "MiB", hit=hit,
                       how=how if hit else "the load did not come to the limit in time")
    if settings.memory_guarantee and most < min(settings.memory_guarantee, limit) * 0.97:
        yield Finding("memory-guarantee", Outcome.MISSED, units.format_size(settings.memory_guarantee),
                      f"{most // MIB}M")


def _swapped(subject: Subject) -> int:
    try:
        return subject.number("memory.swap.current")
    except OSError:
        return 0


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _is_asleep(pid: int) -> bool:
    """In pause(2), having all it wanted."""
    try:
        with open(f"/proc/{pid}/wchan", encoding="ascii") as file:
            return "pause" in file.read()
    except OSError:
        return False


def _available() -> int:
    with open("/proc/meminfo", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))


def verify_pids(subject: Subject) -> Iterator[Finding]:
    limit = subject.settings.pids
    if limit is None:
        return
    room = limit - subject.number("pids.current")
    if room > _MOST_PROCESSES:
        yield Finding("pids", Outcome.NOT_MEASURED, why=f"it would take {room} more processes to reach it")
        return
    stopped = subject.count("pids.events", "max")
    most = 0
    with load.loaded(subject.group, load.multiply(room + 8)):
        def full() -> bool:
            nonlocal most
            most = max(most, subject.number("pids.current"))
            return most > limit or subject.count("pids.events", "max") > stopped
        load.wait_until(full, _GROWING)
        hit = subject.count("pids.events", "max") > stopped
    yield judge_amount("pids", limit, most, 1, "processes", hit=hit,
                       how="fork failed at the limit" if hit else "the load did not come to the limit in time")


def verify_io(subject: Subject) -> Iterator[Finding]:
    wanted = [name for name in _IO if getattr(subject.settings, name) is not None]
    if not wanted:
        return
    path = f"{subject.data}/.verify-{secrets.token_hex(8)}"
    try:
        load.fill(path, _FILE)
        for name in wanted:
            yield _verify_disk(subject, name, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _verify_disk(subject: Subject, name: str, path: str) -> Finding:
    key, limit = name.replace("_", "-"), getattr(subject.settings, name)
    counter, write = _IO[name]
    operations = name.startswith("iops")
    block = _OPERATION if operations else 1 << 18
    device = _device(subject, limit, name)
    if not device:
        return Finding(key, Outcome.NOT_ENFORCEABLE, why="io.max of the VE's cgroup does not have it")
    with load.loaded(subject.group, load.transfer(path, write=write, size=_FILE, block=block)):
        time.sleep(_SETTLE)
        before, began = _io(subject, device, counter), time.monotonic()
        time.sleep(subject.seconds)
        got = (_io(subject, device, counter) - before) / (time.monotonic() - began)
    return judge_rate(key, limit, got, 1 if operations else MIB, "operations/s" if operations else "MiB/s")


def _device(subject: Subject, limit: int, name: str) -> str:
    """The disk that has this limit, as MAJOR:MINOR."""
    key = {"io_read": "rbps", "io_write": "wbps", "iops_read": "riops", "iops_write": "wiops"}[name]
    for line in subject.read("io.max").splitlines():
        device, *pairs = line.split()
        if f"{key}={limit}" in pairs:
            return device
    return ""


def _io(subject: Subject, device: str, counter: str) -> int:
    for line in subject.read("io.stat").splitlines():
        name, *pairs = line.split()
        if name == device:
            return int(dict(pair.split("=") for pair in pairs).get(counter, 0))
    return 0


def verify_network(subject: Subject) -> Iterator[Finding]:
    rate = subject.settings.network_rate
    for way, asked in (("in", rate.incoming), ("out", rate.outgoing)):
        name = f"network-rate:{way}"
        if asked is None:
            continue
        if not subject.address:
            yield Finding(name, Outcome.NOT_MEASURED, why="the VE has no IPv4 address")
            continue
        got = network.measure(subject.group, subject.pid, subject.address, incoming=way == "in",
                              seconds=subject.seconds)
        # What arrives is seen in chunks, one of which may belong to the time before.
        yield judge_rate(name, asked, got, 1e6, "Mbit/s", edge=2 * network.CHUNK * 8 / (asked * subject.seconds))


RESOURCES: dict[str, tuple[str, Callable[[Subject], Iterator[Finding]]]] = {
    "cpu": ("cpu", verify_cpu), "memory": ("memory", verify_memory), "pids": ("pids", verify_pids),
    "io": ("io", verify_io), "network": ("", verify_network),
}


def verify(subject: Subject, resources: tuple[str, ...]) -> Iterator[Finding]:
    """The findings on what is set of `resources`, as they come."""
    for resource in resources or RESOURCES:
        controller, measure = RESOURCES[resource]
        if controller and controller not in subject.controllers:
            if resources:
                yield Finding(resource, Outcome.NOT_ENFORCEABLE,
                              why=f"cgroup v2 has no {controller} controller here")
            continue
        try:
            yield from measure(subject)
        except OSError as error:
            yield Finding(resource, Outcome.NOT_MEASURED, why=f"{error.filename or 'the load'}: {error.strerror}")
