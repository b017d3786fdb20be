# SPDX-License-Identifier: GPL-2.0-or-later
"""The decisions of the control loop: from readings of one moment to adjustments with their reasons.

Memory: when the host has less left than it keeps for itself, or a VE waits for memory that is not held back by its own
limit, idle memory of others is reclaimed in bounded steps; and what VEs have above their entitlement, when that is not
enough for one that has less than its own. Nothing is taken from below a guarantee. A VE that reads back what was taken
from it needed it, and is left alone for a while, longer each time: that is the estimate of its working set.

CPU: a guarantee that is not kept, though the VE waits for CPU, is told.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vemgr.core.config import MIB

_SUFFERS = 0.05  # of the time: less is what any busy host shows
_AGED = 30.0  # seconds after which an earlier reading says nothing about now
_RELIEF = 1.5  # shortage is over when the host has so many times what it keeps for itself
_LEAST, _MOST = 4 * MIB, 256 * MIB  # of one step
_AT_ONCE = 16  # VEs in one round
_PART = 4  # of a VE's idle memory in one step
_OVER_PART = 8  # of what it has above its entitlement
_BACK = 8  # one part in so many read back: it was needed
_REST, _LONGEST_REST = 10.0, 600.0  # seconds
_PAGE = 4096
_WAITS = 0.2  # of the time: with less, it may have wanted no more than it got
_SHORT = 0.95  # of a guarantee


@dataclass(frozen=True, slots=True)
class Memory:
    """A VE's, in bytes: in use, and of that what the kernel has not seen used lately and could take. Since it began:
    `refaults`, pages that were read back, and `stalled`, microseconds in which some task waited for memory."""

    current: int
    idle: int
    refaults: int
    stalled: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was read in one go. `time`: monotonic, in seconds. `available`: bytes that the host has left."""

    time: float
    available: int
    ves: Mapping[str, Memory]


@dataclass(frozen=True, slots=True)
class Standing:
    """What a VE is promised, entitled to, and may have at most, in bytes."""

    promised: int
    entitled: int
    limit: int | None


@dataclass(frozen=True, slots=True)
class GroupMemory:
    """Of a group: the VEs in it, also by way of other groups, and bytes that they were promised, and may have,
    together."""

    ves: tuple[str, ...]
    promised: int
    limit: int | None


def in_groups(standings: Mapping[str, Standing], current: Mapping[str, int],
              groups: Sequence[GroupMemory]) -> dict[str, Standing]:
    """What VEs' groups add to it: together they keep what the group was promised, however it is distributed among
    them, and a VE whose group is at its limit is at its limit. `current`: bytes in use."""
    found = dict(standings)
    for group in groups:
        ves = [ve for ve in group.ves if ve in current]
        used = sum(current[ve] for ve in ves)
        for ve in ves:
            standing = found[ve]
            # Each may give its part of what is above the promise: so they cannot give more together.
            kept = current[ve] - max(0, used - group.promised) // len(ves) if group.promised else 0
            limits = [limit for limit in (standing.limit, group.limit and max(0, group.limit - used) + current[ve])
                      if limit is not None]
            found[ve] = Standing(max(standing.promised, kept), standing.entitled,
                                 min(limits, default=None))
    return found


@dataclass(frozen=True, slots=True)
class Take:
    """Reclaim so many bytes from a VE."""

    ve: str
    amount: int
    reason: str


@dataclass(slots=True)
class _Taken:
    """From one VE: what was in the last step, how often pages had been read back by then, and the rest it gets."""

    amount: int = 0
    refaults: int = 0
    rest: float = 0.0
    until: float = 0.0


@dataclass
class Reclaimer:
    """`short`: at the last look the host had less left than it keeps for itself."""

    short: bool = False
    _before: Snapshot | None = None
    _taken: dict[str, _Taken] = field(default_factory=dict)

    def is_due(self, available: int, reserve: int, stalled: float) -> bool:
        """Whether it is worth to read the memory of all VEs. `reserve`: bytes that the host keeps for itself;
        `stalled`: the part of the time in which any VE waited."""
        self.short = available < reserve * (_RELIEF if self.short else 1)
        return self.short or stalled >= _SUFFERS

    def decide(self, snapshot: Snapshot, standings: Mapping[str, Standing]) -> list[Take]:
        """`standings`: of all VEs in the snapshot."""
        before, self._before = self._before, snapshot
        self._taken = {ve: taken for ve, taken in self._taken.items() if ve in snapshot.ves}
        resting = {ve for ve in snapshot.ves if self._is_needed(ve, snapshot)}
        suffering = _suffering(before, snapshot, standings)
        if not self.short and not suffering:
            return []
        why = _why(snapshot, suffering, short=self.short)
        givers = {ve: reading for ve, reading in snapshot.ves.items() if ve not in suffering and ve not in resting}
        takes = _idle(givers, standings, why)
        if not takes and any(snapshot.ves[ve].current < standings[ve].entitled for ve in suffering):
            takes = _over(givers, standings, why)
        takes = heapq.nlargest(_AT_ONCE, takes, key=lambda take: take.amount)
        for take in takes:
            taken = self._taken.setdefault(take.ve, _Taken())
            taken.amount, taken.refaults = take.amount, snapshot.ves[take.ve].refaults
        return takes

    def _is_needed(self, ve: str, snapshot: Snapshot) -> bool:
        """Whether a VE is left alone, since it has read back what was taken."""
        taken = self._taken.get(ve)
        if taken is None:
            return False
        if taken.amount:
            back = (snapshot.ves[ve].refaults - taken.refaults) * _PAGE
            if back * _BACK > taken.amount:
                taken.rest = min(_LONGEST_REST, max(_REST, 2 * taken.rest))
                taken.until = snapshot.time + taken.rest
            elif snapshot.time >= taken.until:
                taken.rest /= 2
            taken.amount = 0
        return snapshot.time < taken.until


def _suffering(before: Snapshot | None, now: Snapshot, standings: Mapping[str, Standing]) -> dict[str, float]:
    """The VEs that wait for memory, and for which part of the time. Not those that wait at their own limit: memory of
    others would not help them."""
    if before is None or not 0 < now.time - before.time <= _AGED:
        return {}
    found = {}
    for ve, reading in now.ves.items():
        earlier, limit = before.ves.get(ve), standings[ve].limit
        if earlier is None or (limit is not None and reading.current >= limit - max(limit // 64, _LEAST)):
            continue
        share = (reading.stalled - earlier.stalled) / 1e6 / (now.time - before.time)
        if share >= _SUFFERS:
            found[ve] = share
    return found


def _why(snapshot: Snapshot, suffering: Mapping[str, float], *, short: bool) -> str:
    if suffering:
        ve, share = max(suffering.items(), key=lambda each: each[1])
        more = f" and {len(suffering) - 1} more" if len(suffering) > 1 else ""
        return f"VE {ve}{more} waits for memory {share:.0%} of the time"
    return f"the host has {snapshot.available // MIB}M left" if short else ""


def _idle(givers: Mapping[str, Memory], standings: Mapping[str, Standing], why: str) -> list[Take]:
    """From each a part of what it does not use, above its guarantee."""
    takes = []
    for ve, reading in givers.items():
        spare = min(reading.idle, reading.current - standings[ve].promised)
        amount = _step(spare, _PART)
        if amount:
            takes.append(Take(ve, amount, f"{spare // MIB}M idle above its guarantee; {why}"))
    return takes


def _over(givers: Mapping[str, Memory], standings: Mapping[str, Standing], why: str) -> list[Take]:
    takes = []
    for ve, reading in givers.items():
        over = reading.current - max(standings[ve].entitled, standings[ve].promised)
        amount = _step(over, _OVER_PART)
        if amount:
            takes.append(Take(ve, amount, f"{over // MIB}M above what it is entitled to; {why}"))
    return takes


def _step(spare: int, part: int) -> int:
    """0 for what is not worth the work."""
    return 0 if spare < _LEAST else min(_MOST, max(_LEAST, spare // part))


@dataclass(frozen=True, slots=True)
class Cpu:
    """Microseconds of a VE so far: that it ran, in which some task of it waited, and that its own limit held it."""

    used: int
    waited: int
    throttled: int


@dataclass
class Shortfalls:
    """CPU guarantees that are not kept: told once, when it lasts for two looks, and again after it was kept."""

    _before: tuple[float, Mapping[str, Cpu]] | None = None
    _short: dict[str, int] = field(default_factory=dict)  # looks in a row

    def look(self, time: float, ves: Mapping[str, Cpu], promised: Mapping[str, int]) -> dict[str, str]:
        """`promised`: thousandths of a CPU. Returns the news by VE."""
        before, self._before = self._before, (time, ves)
        if before is None or not 0 < time - before[0] <= _AGED:
            return {}
        seconds, short, news = time - before[0], {}, {}
        for ve, now in ves.items():
            earlier = before[1].get(ve)
            if earlier is None or now.throttled != earlier.throttled:
                continue
            got, waited = (now.used - earlier.used) / 1e6 / seconds, (now.waited - earlier.waited) / 1e6 / seconds
            if waited >= _WAITS and got * 1000 < promised[ve] * _SHORT:
                short[ve] = self._short.get(ve, 0) + 1
                if short[ve] == 2:
                    news[ve] = (f"guaranteed {promised[ve] / 1000:g} CPUs, got {got:.3f}, waited {waited:.0%} of the "
                                "time")
        self._short = short
        return news
