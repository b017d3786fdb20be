# SPDX-License-Identifier: GPL-2.0-or-later
"""Recorded demand of a host's VEs: how it is written, line by line, and read as demand for the simulator.

JSON lines, version 1. The first is the head: `format`, `version`, `interval` (seconds), `host` (thousandths of CPUs,
bytes) and `policy`. `{"ve": NAME, "settings": {...}}` comes before the first sample of a VE, and again when its
settings were changed. `{"at": SECONDS, "ves": {NAME: {...}}}` is a sample: the time since the beginning, and of each VE
that ran, over the time since the sample before, what `FIGURES` lists. What the host does not tell is left out.
"""

from __future__ import annotations

import json
import math
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vemgr.core.config import Settings, parse_settings
from vemgr.core.errors import BadValue
from vemgr.core.names import check_name

FORMAT, VERSION = "vemgr-recording", 1
#: What is told of a VE. cpus-used: thousandths of a CPU. cpus: the same that it wanted: what it used, and one more CPU
#: for the part of the time in which some thread waited for one, which is the least that would have been of use.
#: memory-held: bytes; memory: those of them that are not idle. io-*, net-*: bytes a second.
FIGURES = ("cpus-used", "cpus", "memory-held", "memory", "io-read", "io-write", "net-in", "net-out")
_RATES = {"ioRead": "io-read", "ioWrite": "io-write", "netIn": "net-in", "netOut": "net-out"}
_MOST_SAMPLES = 20_000_000
_MOST = 1 << 62


def head(interval: float, cpus: int, memory: int, policy: str) -> str:
    """`cpus`: thousandths; `memory`: bytes."""
    return _line({"format": FORMAT, "version": VERSION, "interval": interval,
                  "host": {"cpus": cpus, "memory": memory}, "policy": policy})


class Recorder:
    """From looks at the counters of all VEs, as `GetDemand` answers, to lines."""

    def __init__(self, now: float, ves: Iterable[Mapping[str, Any]]) -> None:
        """`now`: monotonic seconds. What has been counted until now is nobody's demand."""
        self._began = self._last = now
        self._before = {ve["name"]: ve for ve in ves}
        self._settings: dict[str, Any] = {}

    def look(self, now: float, ves: Iterable[Mapping[str, Any]]) -> list[str]:
        seconds = max(now - self._last, 1e-6)
        found, lines = {ve["name"]: ve for ve in ves}, []
        for name, ve in found.items():
            if self._settings.get(name) != ve["settings"]:
                self._settings[name] = ve["settings"]
                lines.append(_line({"ve": name, "settings": ve["settings"]}))
        sample = {name: _figures(self._before.get(name), ve, seconds) for name, ve in found.items()}
        self._settings = {name: self._settings[name] for name in found}
        self._before, self._last = found, now
        lines.append(_line({"at": round(now - self._began, 3), "ves": sample}))
        return lines


def _figures(before: Mapping[str, Any] | None, now: Mapping[str, Any], seconds: float) -> dict[str, int]:
    """One that is new, or whose counters have fallen since it was started again, has counted from nothing."""
    if before is None or before["pid"] != now["pid"]:
        before = {}
    found: dict[str, int] = {}

    def rate(key: str) -> float | None:
        return None if now.get(key) is None else max(0, now[key] - (before.get(key) or 0)) / seconds

    used, waited = rate("cpuUsed"), rate("cpuWaited")
    if used is not None:
        found["cpus-used"] = round(used / 1000)  # microseconds in a second
        found["cpus"] = round((used + min(1e6, waited or 0)) / 1000)
    if now.get("memory") is not None:
        found["memory-held"] = now["memory"]
        found["memory"] = now["memory"] if now.get("workingSet") is None else now["workingSet"]
    for key, name in _RATES.items():
        amount = rate(key)
        if amount is not None:
            found[name] = round(amount)
    return found


@dataclass(frozen=True, slots=True)
class Recorded:
    """What one VE wanted of one resource. `ends`: of each sample, in seconds since the beginning."""

    ends: array[float]
    amounts: array[int]

    def at(self, time: float, _number: int) -> int:
        """The last amount lasts for ever."""
        if not self.amounts:
            return 0
        return self.amounts[min(bisect_right(self.ends, time), len(self.amounts) - 1)]


@dataclass(slots=True)
class RecordedVE:
    """`start`, `stop`: seconds since the beginning between which it ran; in gaps it wanted nothing."""

    settings: Settings
    start: float = 0
    stop: float = math.inf
    demand: dict[str, Recorded] = field(default_factory=dict)


@dataclass(slots=True)
class Recording:
    interval: float
    amounts: dict[str, int]
    policy: str
    seconds: float = 0
    ves: dict[str, RecordedVE] = field(default_factory=dict)
    _samples: int = 0

    def take(self, at: float, sample: Mapping[str, Any]) -> None:
        before, self.seconds = self.seconds, at
        for name, figures in sample.items():
            ve = self.ves.get(name)
            if ve is None or not isinstance(figures, Mapping):
                raise _bad(f"sample of VE {ascii(name)[:80]} without its settings")
            amounts = _wanted(figures)
            if not ve.demand:
                ve.start = before
                ve.demand = {resource: Recorded(array("d"), array("q")) for resource in amounts}
            for resource, recorded in ve.demand.items():
                if recorded.ends and recorded.ends[-1] < before:  # it did not run in between
                    recorded.ends.append(before)
                    recorded.amounts.append(0)
                recorded.ends.append(at)
                recorded.amounts.append(amounts.get(resource, 0))
            ve.stop = at
            self._samples += 1
        if self._samples > _MOST_SAMPLES:
            raise _bad(f"more than {_MOST_SAMPLES} samples")


def read_recording(lines: Iterable[str]) -> Recording:
    """A last line that was not finished is left out. Raises `BadValue`."""
    found: Recording | None = None
    for line in lines:
        if not line.endswith("\n"):
            break  # the recorder, or its host, has died
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _bad("a line is not JSON") from error
        if not isinstance(row, Mapping):
            raise _bad("a line is not an object")
        if found is None:
            found = _head(row)
        elif "ve" in row:
            name, settings = row["ve"], row.get("settings")
            if not isinstance(name, str) or not isinstance(settings, Mapping):
                raise _bad("a VE without name or settings")
            check_name(name)
            parsed = parse_settings({str(key): str(value) for key, value in settings.items()})
            found.ves.setdefault(name, RecordedVE(parsed)).settings = parsed
        elif isinstance(row.get("ves"), Mapping):
            found.take(_time(row.get("at"), found.seconds), row["ves"])
    if found is None or not found.seconds:
        raise _bad("no samples")
    for ve in found.ves.values():
        if ve.stop == found.seconds:
            ve.stop = math.inf
    found.ves = {name: ve for name, ve in found.ves.items() if ve.demand}
    return found


def _head(row: Mapping[str, Any]) -> Recording:
    if row.get("format") != FORMAT:
        raise _bad("not a recording of `vemgr scheduler record`")
    if row.get("version") != VERSION:
        raise _bad(f"version {ascii(row.get('version'))[:20]}; version {VERSION} can be read")
    host = row.get("host")
    if not isinstance(host, Mapping):
        raise _bad("the head has no host")
    return Recording(_time(row.get("interval"), 0), {name: _amount(host.get(name)) for name in ("cpus", "memory")},
                     str(row.get("policy", ""))[:40])


def _wanted(figures: Mapping[str, Any]) -> dict[str, int]:
    """What the simulator knows of: a disk's both directions are one."""
    found = {name: _amount(figures[name]) for name in ("cpus", "memory") if name in figures}
    directions = [_amount(figures[name]) for name in ("io-read", "io-write") if name in figures]
    return {**found, "io": sum(directions)} if directions else found


def _amount(value: object) -> int:
    if type(value) is not int or not 0 <= value < _MOST:
        raise _bad(f"{ascii(value)[:40]} is not an amount")
    return value


def _time(value: object, before: float) -> float:
    if not isinstance(value, int | float) or not before < value < _MOST:
        raise _bad(f"{ascii(value)[:40]} is not a later time")
    return float(value)


def _bad(why: str) -> BadValue:
    return BadValue("recording", "", why, remedy="make one with: vemgr scheduler record FILE")


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, separators=(",", ":")) + "\n"
