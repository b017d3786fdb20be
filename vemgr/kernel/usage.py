# SPDX-License-Identifier: GPL-2.0-or-later
"""How much of its CPUs and memory the host uses: /proc/stat, /proc/meminfo (proc(5))."""

from __future__ import annotations


def cpu_ticks() -> tuple[int, int]:
    """(busy, all) of all CPUs together since boot, in ticks. Guests' time is in user time already; time that a
    hypervisor took is neither ours nor idle, and counts as busy: it was not to be had."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, idle, iowait, irq, softirq, steal, *_ = map(int, file.readline().split()[1:])
    busy = user + nice + system + irq + softirq + steal
    return busy, busy + idle + iowait


def memory_used() -> int:
    """Bytes that are not available without swapping."""
    found = {}
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            name, amount, *_ = line.split()
            found[name] = int(amount) * 1024
            if name == "MemAvailable:":
                break
    return found["MemTotal:"] - found["MemAvailable:"]


def memory_available(text: str) -> int:
    """Bytes that could be had without swapping, from the text of /proc/meminfo."""
    return int(text[text.index("MemAvailable:") + 13:].split(None, 1)[0]) * 1024
