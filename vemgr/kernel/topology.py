# SPDX-License-Identifier: GPL-2.0-or-later
"""Which CPUs share a core, and which are in one NUMA node.

Documentation/ABI/stable/sysfs-devices-system-cpu, and -node.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from vemgr.core.resources import expand_cpu_mask

_SYSTEM = Path("/sys/devices/system")


def online(system: Path = _SYSTEM) -> set[int]:
    return expand_cpu_mask(_read(system / "cpu/online") or "0")


def places(cpus: Iterable[int], system: Path = _SYSTEM) -> dict[int, tuple[int, int]]:
    """Node and core of each CPU. A core has the number of its first thread; where the kernel does not tell, each CPU
    is one, and all are in node 0."""
    nodes = {}
    for directory in sorted((system / "node").glob("node[0-9]*")):
        number = int(re.sub(r"\D", "", directory.name))
        nodes.update(dict.fromkeys(_mask(directory / "cpulist"), number))
    found = {}
    for cpu in cpus:
        threads = _mask(system / f"cpu/cpu{cpu}/topology/thread_siblings_list") or {cpu}
        found[cpu] = nodes.get(cpu, 0), min(threads)
    return found


def _mask(path: Path) -> set[int]:
    text = _read(path)
    return expand_cpu_mask(text) if text else set()  # a node of memory alone has an empty one


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
