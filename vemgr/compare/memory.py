# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host pays for the processes of an instance, and what it has to give.

The proportional set size counts a page that n processes share as an n-th for each (proc_pid_smaps(5), Pss). It lacks
what the kernel itself keeps for them: page tables, namespaces, and the file cache that nobody has mapped.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from vemgr.compare import marked


def pss(pids: Iterable[int]) -> int:
    """Bytes; processes that have gone count nothing."""
    return sum(map(_pss_of, pids))


def in_pid_namespace_of(leader: int) -> list[int]:
    """The processes beside `leader` and itself; those of namespaces within that one are not found."""
    wanted = _pid_namespace(leader)
    return [pid for pid in marked.processes() if wanted and _pid_namespace(pid) == wanted]


def _pid_namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


def _pss_of(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:")), 0)
    except OSError:
        return 0


def available() -> int:
    """Bytes that the host could give to new processes (proc_meminfo(5))."""
    with open("/proc/meminfo", encoding="ascii") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable:"))
