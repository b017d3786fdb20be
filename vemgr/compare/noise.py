# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a run can be believed: what others did on the host meanwhile.

A run that was disturbed does not count and is done again, a bounded number of times. It is never averaged away: a mean
of good and disturbed runs is a figure of nothing.
"""

from __future__ import annotations

import msgspec

MOST_ATTEMPTS = 3
DEFAULT_BOUND = 0.1
_CLOCK_BOUND = 0.1  # of the time that the host saw
_CLOCK_SLACK = 0.05  # seconds


class Counters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Readings of the host's counters. `total`, `stolen`: ticks of all CPUs (proc(5), stat). The rest: microseconds in
    which some task waited for it since boot (PSI, Documentation/accounting/psi.rst); 0 where the kernel has no PSI."""

    seconds: float
    total: int
    stolen: int
    cpu: int
    memory: int
    io: int


class Noise(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Shares of a run's time, 0 to 1: CPU time that the hypervisor gave to others, and in which some task of this host
    waited for a CPU, for memory and for a disk."""

    steal: float
    cpu: float
    memory: float
    io: float


def between(before: Counters, after: Counters) -> Noise:
    elapsed = max(1e-6, after.seconds - before.seconds) * 1e6

    def share(of: int) -> float:
        return round(min(1.0, max(0.0, of / elapsed)), 4)

    steal = (after.stolen - before.stolen) / max(1, after.total - before.total)
    return Noise(round(min(1.0, max(0.0, steal)), 4), share(after.cpu - before.cpu),
                 share(after.memory - before.memory), share(after.io - before.io))


def objection(noise: Noise, bound: float, *, crowded: bool) -> str:
    """Why a run is invalid, or nothing. `crowded`: the work itself makes tasks wait for CPUs, so that waiting says
    nothing of others."""
    if noise.steal > bound:
        return f"steal {noise.steal:.0%}"
    if noise.cpu > bound and not crowded:
        return f"tasks waited for a CPU {noise.cpu:.0%} of the time"
    return ""


def clock_objection(claimed: float, seen: float) -> str:
    """Whether an instance's own clock says that a work took longer than the host saw it take; both in seconds. That it
    took less proves nothing, since the host's time has the way into the instance in it."""
    if claimed > seen * (1 + _CLOCK_BOUND) + _CLOCK_SLACK:
        return f"its clock goes wrong: {claimed:.2f} s of its own were {seen:.2f} s of the host's"
    return ""
