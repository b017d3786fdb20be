# SPDX-License-Identifier: GPL-2.0-or-later
"""What the control loop reads of the host and of VEs: few system calls each, and no more files than it needs.

A VE that has gone, or a host without the controller, gives None: never a guess.
"""

from __future__ import annotations

import os
from mmap import PAGESIZE

from vemgr.kernel.pressure import stalled
from vemgr.kernel.usage import memory_available
from vemgr.scheduler.control import Cpu, Memory

_ENOUGH = 1 << 14  # bytes: more than any of these files has


def text_of(path: str) -> str | None:
    """One read and no stat, which `open` would make."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(fd, _ENOUGH).decode("ascii")
    except OSError:
        return None
    finally:
        os.close(fd)


def available() -> int | None:
    """Bytes of memory that the host has left."""
    text = text_of("/proc/meminfo")
    return None if text is None else memory_available(text)


def stall(directory: str, resource: str) -> int | None:
    text = text_of(f"{directory}/{resource}.pressure")
    return None if text is None else stalled(text)


def memory_of(directory: str) -> Memory | None:
    current, stat = text_of(f"{directory}/memory.current"), text_of(f"{directory}/memory.stat")
    waited = stall(directory, "memory")
    if current is None or stat is None or waited is None:
        return None
    found = _table(stat)
    swap = _swap_left(directory)
    # Of anonymous memory no more can be taken than there is swap for.
    idle = found.get("inactive_file", 0) + min(found.get("inactive_anon", 0), swap)
    refaults = found.get("workingset_refault_anon", 0) + found.get("workingset_refault_file", 0)
    return Memory(int(current), idle // PAGESIZE * PAGESIZE, refaults, waited)


def _swap_left(directory: str) -> int:
    limit, used = text_of(f"{directory}/memory.swap.max"), text_of(f"{directory}/memory.swap.current")
    if limit is None or used is None:
        return 0
    left = 0
    for line in (text_of("/proc/swaps") or "").splitlines()[1:]:
        *_, size, taken, _ = line.split()
        left += (int(size) - int(taken)) * 1024
    return left if limit.strip() == "max" else max(0, min(left, int(limit) - int(used)))


def cpu_of(directory: str) -> Cpu | None:
    stat, waited = text_of(f"{directory}/cpu.stat"), stall(directory, "cpu")
    if stat is None or waited is None:
        return None
    found = _table(stat)
    return Cpu(found["usage_usec"], waited, found.get("throttled_usec", 0))


def _table(text: str) -> dict[str, int]:
    words = text.split()
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))
