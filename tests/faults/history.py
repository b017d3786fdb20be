# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether what several clients have been answered is what one after another could have been: linearizability.

Each VE by itself, since linearizability is local (Herlihy and Wing 1990). The check follows the calls in time and keeps
every configuration, a state and the calls under way that have taken effect already, that is possible (Lowe, "Testing
for linearizability", 2016).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ABSENT, STOPPED, RUNNING, SUSPENDED = "absent", "stopped", "running", "suspended"
STATES = (ABSENT, STOPPED, RUNNING, SUSPENDED)
_UP = (RUNNING, SUSPENDED)
READS = ("show", "list")


@dataclass(frozen=True)
class Call:
    """`answer`: "ok", the identifier of an error, or for `READS` the state that was told. Times are monotonic."""

    verb: str
    name: str
    answer: str
    begun: float
    ended: float
    client: int = 0

    def __str__(self) -> str:
        return f"{self.begun % 1000:.4f}-{self.ended % 1000:.4f} {self.name} {self.verb}: {self.answer}"

    def overlaps(self, other: Call) -> bool:
        return self is not other and self.begun <= other.ended and other.begun <= self.ended


#: Verb to the state that it leads to, by the state that it is allowed in.
_EFFECTS: dict[str, dict[str, str]] = {
    "create": {ABSENT: STOPPED}, "start": {STOPPED: RUNNING}, "stop": dict.fromkeys(_UP, STOPPED),
    "restart": dict.fromkeys(_UP, RUNNING), "suspend": {RUNNING: SUSPENDED}, "resume": {SUSPENDED: RUNNING},
    "destroy": {STOPPED: ABSENT}, "destroy --force": dict.fromkeys((STOPPED, *_UP), ABSENT),
    "set": {state: state for state in (STOPPED, *_UP)}, "exec": {RUNNING: RUNNING},
    "plan": {state: state for state in (STOPPED, *_UP)},
}
_REFUSALS: dict[str, tuple[str, ...]] = {
    "NoSuchVE": (ABSENT,), "VEExists": (STOPPED, *_UP), "AlreadyRunning": _UP, "StillRunning": _UP,
    "NotRunning": (STOPPED, SUSPENDED),
}


def after(state: str, call: Call) -> str | None:
    """The state after a call that was answered so, None when it could not have been answered so in this one."""
    if call.verb in READS:
        return state if call.answer == state else None
    if call.answer == "ok":
        return _EFFECTS[call.verb].get(state)
    if call.answer == "Locked":
        return state
    if call.verb == "resume" and call.answer in ("AlreadyRunning", "NotRunning"):
        return state if (state, call.answer) in ((RUNNING, "AlreadyRunning"), (STOPPED, "NotRunning")) else None
    if state in _EFFECTS[call.verb]:
        return None  # it is not refused where it is allowed
    return state if state in _REFUSALS.get(call.answer, ()) else None


def impossible(calls: Iterable[Call], states: Iterable[str] = STATES) -> str:
    """Why no order of the calls on one VE explains their answers, or "". `states`: what it may begin with."""
    return outcome(calls, states)[0]


def outcome(calls: Iterable[Call], states: Iterable[str] = STATES) -> tuple[str, set[str]]:
    """As `impossible`, and the states that the VE may be in afterwards."""
    history = sorted(calls, key=lambda call: call.begun)
    events = sorted([(call.begun, 0, number) for number, call in enumerate(history)]
                    + [(call.ended, 1, number) for number, call in enumerate(history)])
    configurations: set[tuple[str, frozenset[int]]] = {(state, frozenset()) for state in states}
    under_way: set[int] = set()
    for _, is_end, number in events:
        if not is_end:
            under_way.add(number)
            continue
        reached = _closure(configurations, under_way, history)
        configurations = {(state, done - {number}) for state, done in reached if number in done}
        under_way.discard(number)
        if not configurations:
            recent = [str(call) for call in history[:number + 4] if call.ended > history[number].begun - 0.5]
            return "\n    ".join((f"{history[number]} is not possible; about that time:", *recent)), set()
    return "", {state for state, _ in configurations}


def _closure(configurations: set[tuple[str, frozenset[int]]], under_way: set[int],
             history: list[Call]) -> set[tuple[str, frozenset[int]]]:
    """Let any of the calls under way take effect, in any order."""
    reached, waiting = set(configurations), list(configurations)
    while waiting:
        state, done = waiting.pop()
        for number in under_way - done:
            following = after(state, history[number])
            found = (following, done | {number}) if following is not None else None
            if found is not None and found not in reached:
                reached.add(found)
                waiting.append(found)
    return reached


def unfounded(calls: Iterable[Call]) -> list[Call]:
    """Those that were told of another verb at work while there was none."""
    history = list(calls)
    return [call for call in history if call.answer == "Locked"
            and call.verb != "create"  # it may be the template that is busy
            and not any(other.overlaps(call) and other.verb not in (*READS, "exec", "plan") for other in history)]
