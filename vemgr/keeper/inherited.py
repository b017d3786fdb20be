# SPDX-License-Identifier: GPL-2.0-or-later
"""What the keeper has from whoever started it, and would pass on to every VE for its life.

Without systemd that is the first command of an administrator, who may have been working under nice, taskset, chrt or
ulimit. What cannot be undone for want of privilege stays as it is.
"""

from __future__ import annotations

import contextlib
import os
import platform
import resource

from vemgr.kernel.libc import syscall

_KEYCTL_JOIN_SESSION_KEYRING = 1
_IOPRIO_WHO_PROCESS = 1
_NUMBERS = {"x86_64": {"keyctl": 250, "ioprio_set": 251}, "aarch64": {"keyctl": 219, "ioprio_set": 30}}
_MOST_CPUS = 4096
_FREE = resource.RLIM_INFINITY
_MEBIBYTE = 1 << 20
# The kernel's own for the first process (include/asm-generic/resource.h), unlimited where only the size of this host
# would set them (a VE has pids.max), and many descriptors: some for each VE. Those of a VE are set in `confine`.
_LIMITS = {
    "CPU": (_FREE, _FREE), "FSIZE": (_FREE, _FREE), "DATA": (_FREE, _FREE), "STACK": (8 * _MEBIBYTE, _FREE),
    "CORE": (0, _FREE), "RSS": (_FREE, _FREE), "NPROC": (_FREE, _FREE), "NOFILE": (1 << 20, 1 << 20),
    "MEMLOCK": (8 * _MEBIBYTE, 8 * _MEBIBYTE), "AS": (_FREE, _FREE), "MSGQUEUE": (819200, 819200), "NICE": (0, 0),
    "RTPRIO": (0, 0), "RTTIME": (_FREE, _FREE),
}


def reset_inherited() -> None:
    """Begin as if started by the host's init. Where a service manager has started us, its unit says all this."""
    _open_stdio()
    if os.environ.get("NOTIFY_SOCKET"):
        return
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, range(_MOST_CPUS))  # the kernel leaves out those that there are not
    with contextlib.suppress(OSError):
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("0")
    for name, (soft, hard) in _LIMITS.items():
        _set_limit(getattr(resource, f"RLIMIT_{name}"), soft, hard)
    numbers = _NUMBERS.get(platform.machine(), {})
    for call, arguments in (("keyctl", (_KEYCTL_JOIN_SESSION_KEYRING, 0)), ("ioprio_set", (_IOPRIO_WHO_PROCESS, 0, 0))):
        if call in numbers:
            with contextlib.suppress(OSError):
                syscall(call, numbers[call], *arguments)


def _set_limit(which: int, soft: int, hard: int) -> None:
    try:
        resource.setrlimit(which, (soft, hard))
    except (OSError, ValueError):
        highest = resource.getrlimit(which)[1]  # above it only the privileged may go
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(which, (_least(soft, highest), _least(hard, highest)))


def _least(one: int, other: int) -> int:
    return min((limit for limit in (one, other) if limit != _FREE), default=_FREE)


def _open_stdio() -> None:
    """0 is /dev/null, 1 and 2 are something: a descriptor that we are sent must never get one of these numbers."""
    null = os.open(os.devnull, os.O_RDWR)
    while null <= 2:
        null = os.dup(null)
    os.dup2(null, 0)
    os.closerange(null, null + 1)
