# SPDX-License-Identifier: GPL-2.0-or-later
"""A scenario for the simulator: hosts, their [scheduler], and kinds of VEs with settings and demand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from vemgr.core.config import Settings, parse_settings
from vemgr.core.errors import BadParameter, BadValue
from vemgr.core.scheduling import SchedulerConfig, parse_scheduler
from vemgr.scheduler.demand import AMOUNTS, Wanted, parse_amount, parse_demand, parse_time
from vemgr.scheduler.recording import Recording

_MOST_VES, _MOST_HOSTS, _MOST_TICKS = 1_000_000, 100_000, 100_000


@dataclass(frozen=True, slots=True)
class Kind:
    """`count` VEs that are alike. They start at `start`, spread over `spread` seconds, and stop at `stop`."""

    name: str
    count: int
    settings: Settings
    demand: Mapping[str, Wanted]
    start: float = 0
    stop: float = math.inf
    spread: float = 0


@dataclass(frozen=True, slots=True)
class Scenario:
    """`ticks` steps of `tick` seconds, on `hosts` hosts with so much of each resource."""

    description: str
    ticks: int
    tick: float
    hosts: int
    amounts: Mapping[str, int]
    scheduler: SchedulerConfig
    kinds: tuple[Kind, ...] = field(default=())


def parse_scenario(document: Mapping[str, Any], recording: Recording | None = None) -> Scenario:
    """From the file's key-value pairs. `recording`: what its key of this name stands for; its VEs come beside those of
    the document, and its host's amounts hold where no others are given. Raises `BadParameter`, `BadValue`."""
    _known(document, ("description", "ticks", "tick", "host", "scheduler", "ve", "recording", "copies"), "")
    host = _table("host", document.get("host", {}))
    _known(host, ("count", *AMOUNTS), "host.")
    tick = parse_time("tick", document.get("tick", recording.interval if recording else 10))
    if not tick:
        raise BadValue("tick", 0, "no time passes")
    kinds = document.get("ve", [])
    if not isinstance(kinds, list) or not (kinds or recording):
        raise BadValue("ve", type(kinds).__name__, "no kinds of VEs", remedy="write [[ve]]")
    copies = _count("copies", {"count": document.get("copies", 1)}, _MOST_VES)
    found = (*_recorded(recording, copies), *(_kind(number, _table("ve", kind)) for number, kind in enumerate(kinds)))
    if sum(kind.count for kind in found) > _MOST_VES or len({kind.name for kind in found}) != len(found):
        raise BadValue("ve", len(found), f"more than {_MOST_VES} VEs, or two kinds of one name")
    return Scenario(
        description=str(document.get("description", ""))[:500], tick=tick,
        hosts=_count("host.count", host, _MOST_HOSTS),
        ticks=_count("ticks", {"count": document.get("ticks", _ticks(recording, tick))}, _MOST_TICKS),
        amounts={**(recording.amounts if recording else {}),
                 **{name: parse_amount(f"host.{name}", name, host[name]) for name in AMOUNTS if name in host}},
        scheduler=parse_scheduler(document.get("scheduler", {"policy": recording.policy} if recording else {})),
        kinds=found)


def _ticks(recording: Recording | None, tick: float) -> int:
    return 60 if recording is None else min(_MOST_TICKS, max(1, math.ceil(recording.seconds / tick - 0.01)))


def _recorded(recording: Recording | None, copies: int) -> Iterator[Kind]:
    for name, ve in (recording.ves if recording else {}).items():
        yield Kind(name, copies, ve.settings, ve.demand, ve.start, ve.stop)


def _kind(number: int, table: Mapping[str, Any]) -> Kind:
    where = f"ve.{number}."
    _known(table, ("name", "count", "settings", "demand", "start", "stop", "spread"), where)
    demand, settings = _table(f"{where}demand", table.get("demand", {})), _table("settings", table.get("settings", {}))
    _known(demand, tuple(AMOUNTS), f"{where}demand.")
    for key, value in settings.items():
        if not isinstance(value, str):
            raise BadValue(f"{where}settings.{key}", type(value).__name__, "not a text")
    name = table.get("name", f"kind{number}")
    if not isinstance(name, str) or not name.isprintable():
        raise BadValue(f"{where}name", type(name).__name__, "not a printable text")
    times = {word: parse_time(where + word, table[word]) for word in ("start", "stop", "spread") if word in table}
    return Kind(name[:40], _count(f"{where}count", table, _MOST_VES), parse_settings(settings),
                {key: parse_demand(f"{where}demand.{key}", key, value) for key, value in demand.items()}, **times)


def _known(table: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in keys:
            raise BadParameter(f"unknown key in the scenario: {where}{key}", remedy=f"there are: {', '.join(keys)}")


def _table(key: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise BadValue(key, type(value).__name__, "not a table")
    return value


def _count(key: str, table: Mapping[str, Any], most: int) -> int:
    value = table.get("count", 1)
    if type(value) is not int or not 1 <= value <= most:
        raise BadValue(key, type(value).__name__, f"not a whole number from 1 to {most}")
    return value
