# SPDX-License-Identifier: GPL-2.0-or-later
"""The files in which a VE sees its own limits instead of the host's amounts, as lxcfs makes them.

Not /proc/uptime: the VE's time namespace has it right already. Not slabinfo, which stays hidden.
"""

from __future__ import annotations

COVERED = ("proc/cpuinfo", "proc/diskstats", "proc/loadavg", "proc/meminfo", "proc/stat", "proc/swaps",
           "sys/devices/system/cpu/online")
#: Which of them is hidden where there is no lxcfs (`core.plan`).
HIDDEN_OTHERWISE = frozenset({"proc/diskstats"})
FSTYPE = "fuse.lxcfs"
