# SPDX-License-Identifier: GPL-2.0-or-later
"""What proc(5) tells about a process from outside."""

from __future__ import annotations


def start_time(pid: int) -> int:
    """Start time of `pid` in clock ticks since boot: together with the pid it names one process for good.

    Raises `ProcessLookupError` when there is none.
    """
    # Field 22; fields are counted from the third on here, the state.
    return int(_stat(pid)[19])


def is_zombie(pid: int) -> bool:
    """Whether `pid` has ended and waits to be reaped. Raises `ProcessLookupError` when there is none."""
    return _stat(pid)[0] in "ZX"


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat that follow the command's name."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            stat = file.read()
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(3, "no such process", str(pid)) from None
    # The name may hold spaces and parentheses; the last ')' ends it.
    return stat.rpartition(")")[2].split()


def handles_signal(pid: int, signum: int) -> bool:
    """Whether a signal sent now to `pid` would be seen: a handler is installed or it waits with the signal blocked.

    The kernel drops a signal with default action for the init of a pid namespace (pid_namespaces(7)), so a signal
    sent before init has installed its handler is lost: the oldest cause of "stop hangs" in this field.
    """
    caught = 0
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith(("SigBlk:", "SigCgt:")):
                    caught |= int(line.split()[1], 16)
        if caught >> (signum - 1) & 1:
            return True
        # While a process sleeps in sigwait(3), the signals it waits for do not count as blocked, and which they are
        # is told nowhere: an init that waits for signals waits for those that end it.
        with open(f"/proc/{pid}/wchan", encoding="ascii", errors="replace") as file:
            return "sigtimedwait" in file.read()
    except (FileNotFoundError, ProcessLookupError):
        return False
