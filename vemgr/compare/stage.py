# SPDX-License-Identifier: GPL-2.0-or-later
"""A mount namespace in which /sys/fs/cgroup is a cgroup v2 tree, for hosts on which v1 has the controllers.

crun and what stands on it give up where they see both versions; a tree of v2 alone, if without controllers, they take.
The whole run goes there, since a program that leads there in front of each command would be timed with it.
"""

from __future__ import annotations

import ctypes
import os

from vemgr.compare.tree import command

_CLONE_NEWNS = 0x20000
_MS_SLAVE_REC = 0x80000 | 0x4000  # what the host mounts from now on is seen, what is mounted here is not
_CGROUP = "/sys/fs/cgroup"
_UNIFIED = f"{_CGROUP}/unified"


def is_hybrid(path: str = _UNIFIED) -> bool:
    """Whether v1 has the controllers, and v2 a tree beside it (systemd's and others' layout for that)."""
    return os.path.exists(f"{path}/cgroup.procs")


def enter() -> None:
    """For the whole process, which has one thread; nothing where the host has a v2 tree already. Raises `DriverFailed`,
    or `OSError` where the host does not let us."""
    if not is_hybrid() or os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    for call, arguments in (("unshare", (_CLONE_NEWNS,)), ("mount", (b"none", b"/", None, _MS_SLAVE_REC, None))):
        if getattr(libc, call)(*arguments) != 0:
            raise OSError(ctypes.get_errno(), f"{call}: {os.strerror(ctypes.get_errno())}")
    command("mount", "-t", "cgroup2", "cgroup2", _CGROUP)
