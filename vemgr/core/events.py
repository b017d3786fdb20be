# SPDX-License-Identifier: GPL-2.0-or-later
"""What happens to VEs, as numbered events in a bounded ring."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum

RING_SIZE = 4096
VE_SHARE = 256  # of one VE: one that reboots or runs into its limits all day does not push out the others' events


class Kind(StrEnum):
    """Stable names. `count` of those from `OOM` to `PIDS_MAX`: how often since the VE's last event of
    this kind."""

    CREATED = "created"
    STARTED = "started"
    READY = "ready"
    STOPPED = "stopped"
    CRASHED = "crashed"
    REBOOTED = "rebooted"
    SUSPENDED = "suspended"
    RESUMED = "resumed"
    SET = "set"
    RENAMED = "renamed"
    DESTROYED = "destroyed"
    RESTARTING = "restarting"
    GAVE_UP = "gave-up"
    GAP = "gap"
    OOM = "oom"
    OOM_KILL = "oom-kill"
    MEMORY_HIGH = "memory-high"
    MEMORY_MAX = "memory-max"
    PIDS_MAX = "pids-max"
    CPU_PRESSURE = "cpu-pressure"
    MEMORY_PRESSURE = "memory-pressure"
    IO_PRESSURE = "io-pressure"
    DISK_FULL = "disk-full"
    RECLAIMED = "reclaimed"
    RESTORED = "restored"
    MOVED = "moved"
    UNMET = "unmet"
    POLICY = "policy"


#: What the scheduler has done or found, unasked but for the policy.
SCHEDULER = frozenset({Kind.RECLAIMED, Kind.RESTORED, Kind.MOVED, Kind.UNMET, Kind.POLICY})


#: The kernel's own counters (cgroup-v2.rst) and what they are called here.
COUNTERS = {
    "memory.events": {"high": Kind.MEMORY_HIGH, "max": Kind.MEMORY_MAX, "oom": Kind.OOM, "oom_kill": Kind.OOM_KILL},
    "pids.events": {"max": Kind.PIDS_MAX},
}


@dataclass(frozen=True)
class Event:
    """`number`: one more than that of the event before. `time`: Unix time in seconds."""

    number: int
    time: float
    kind: str
    ve: str
    detail: str = ""
    count: int = 1


class Ring:
    """The latest events. `last`: the number of the latest one there was."""

    def __init__(self, size: int = RING_SIZE, share: int = VE_SHARE) -> None:
        self._size, self._share = size, share
        self._events: dict[int, Event] = {}  # by number, which is also their order
        self._of: dict[str, deque[int]] = {}
        self.last = 0

    def put(self, event: Event) -> None:
        """Numbers must rise."""
        self._events[event.number] = event
        numbers = self._of.setdefault(event.ve, deque())
        numbers.append(event.number)
        self.last = event.number
        if len(numbers) > self._share:
            del self._events[numbers.popleft()]
        elif len(self._events) > self._size:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        oldest = self._events.pop(next(iter(self._events)))
        numbers = self._of[oldest.ve]
        numbers.popleft()
        if not numbers:
            del self._of[oldest.ve]

    def after(self, number: int) -> list[Event]:
        """What is left of the events after `number`, oldest first. Takes as long as there are such events."""
        found: list[Event] = []
        for event in reversed(self._events.values()):
            if event.number <= number:
                break
            found.append(event)
        return found[::-1]
