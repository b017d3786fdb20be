# SPDX-License-Identifier: GPL-2.0-or-later
"""What the control loop reads of the host and of VEs: few system calls each, and no more files than it needs.

A VE that has gone, or a host without the controller, gives None: never a guess.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from mmap import PAGESIZE

from vemgr.kernel.pressure import stalled
from vemgr.kernel.small_files import content_of
from vemgr.kernel.usage import memory_available
from vemgr.scheduler.control import Cpu, Memory

_ENOUGH = 1 << 14  # bytes: more than any of these files has
_LARGEST = 64  # VEs


def text_of(path: str) -> str | None:
    try:
        return content_of(path, _ENOUGH).decode("ascii")
    except OSError:
        return None


def available() -> int | None:
    """Bytes of memory that the host has left."""
    text = text_of("/proc/meminfo")
    return None if text is None else memory_available(text)


def stall(directory: str, resource: str) -> int | None:
    text = text_of(f"{directory}/{resource}.pressure")
    return None if text is None else stalled(text)


def memories(directories: Mapping[str, str], promised: Mapping[str, int]) -> dict[str, Memory]:
    """By VE, of those that are there. What is idle is looked for where there is most above what was promised: to find
    it makes the kernel add up its counters."""
    current = {ve: int(text) for ve, path in directories.items() if (text := text_of(f"{path}/memory.current"))}
    largest = heapq.nlargest(_LARGEST, current, key=lambda ve: current[ve] - promised[ve])
    swap, found = swap_left(), {}
    inside = {ve: idle_of(directories[ve], swap) for ve in largest}
    for ve, amount in current.items():
        waited = stall(directories[ve], "memory")
        if waited is not None:
            idle, refaults = inside.get(ve, (0, 0))
            found[ve] = Memory(amount, idle, refaults, waited)
    return found


def idle_of(directory: str, swap: int) -> tuple[int, int]:
    """Bytes that are idle, and pages read back. Of anonymous memory no more can be taken than there is swap for."""
    found = _table(text_of(f"{directory}/memory.stat") or "")
    if swap:
        limit, used = text_of(f"{directory}/memory.swap.max"), text_of(f"{directory}/memory.swap.current")
        if limit is None or used is None:
            swap = 0
        elif limit.strip() != "max":
            swap = max(0, min(swap, int(limit) - int(used)))
    idle = found.get("inactive_file", 0) + min(found.get("inactive_anon", 0), swap)
    refaults = found.get("workingset_refault_anon", 0) + found.get("workingset_refault_file", 0)
    return idle // PAGESIZE * PAGESIZE, refaults


def swap_left() -> int:
    left = 0
    for line in (text_of("/proc/swaps") or "").splitlines()[1:]:
        *_, size, taken, _ = line.split()
        left += (int(size) - int(taken)) * 1024
    return left


def cpu_used(directory: str) -> int | None:
    """Microseconds."""
    text = text_of(f"{directory}/cpu.stat")
    return None if text is None else _table(text)["usage_usec"]


def cpu_of(directory: str) -> Cpu | None:
    stat, waited = text_of(f"{directory}/cpu.stat"), stall(directory, "cpu")
    if stat is None or waited is None:
        return None
    found = _table(stat)
    return Cpu(found["usage_usec"], waited, found.get("throttled_usec", 0))


def _table(text: str) -> dict[str, int]:
    words = text.split()
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))
