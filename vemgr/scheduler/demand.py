# SPDX-License-Identifier: GPL-2.0-or-later
"""What simulated VEs want at which time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from vemgr.core import resources as units
from vemgr.core.errors import BadParameter, BadValue

SHAPES = ("constant", "diurnal", "burst", "leak")
_TIMES = ("period", "begin", "end", "spread")
_LONGEST = 10**9  # seconds
_GOLDEN = (math.sqrt(5) - 1) / 2


def phase(number: int) -> float:
    """Where in a spread the VE of this number is, from 0 to 1: evenly for any number of them, and without chance."""
    return number * _GOLDEN % 1


class Wanted(Protocol):
    """Demand that was made up (`Demand`) or recorded (`recording.Recorded`)."""

    def at(self, time: float, number: int, /) -> int:
        """At so many seconds from the beginning, in the resource's unit, for the VE of this number of its kind."""
        ...


@dataclass(frozen=True, slots=True)
class Demand:
    """constant: `high`. diurnal: from `low` to `high` and back in `period` seconds. burst: `high` from `begin` to
    `end`, otherwise `low`. leak: from `low` at `begin` to `high` at `end`. Each VE is later than the first by a part
    of `spread` seconds."""

    shape: str
    low: int
    high: int
    period: float = 86400
    begin: float = 0
    end: float = math.inf
    spread: float = 0

    def at(self, time: float, number: int) -> int:
        """In the resource's unit, for the VE of this number."""
        if self.shape == "constant":
            return self.high
        time -= self.spread * phase(number)
        if self.shape == "burst":
            return self.high if self.begin <= time < self.end else self.low
        if self.shape == "diurnal":
            part = (1 - math.cos(2 * math.pi * time / self.period)) / 2
        else:
            part = min(1.0, max(0.0, (time - self.begin) / (self.end - self.begin)))
        return round(self.low + (self.high - self.low) * part)


def _cpus(key: str, text: str) -> int | None:
    return 0 if text == "0" else units.parse_cpus(key, text)


#: How amounts of each resource are read: thousandths of a CPU, bytes, bytes/s.
AMOUNTS: Mapping[str, Callable[[str, str], int | None]] = {
    "cpus": _cpus, "memory": units.parse_size, "io": lambda key, text: units.parse_size(key, text.removesuffix("/s")),
}


def parse_demand(key: str, resource: str, value: object) -> Demand:
    """An amount, or a table with shape, low, high and times in seconds. Raises `BadParameter`, `BadValue`."""
    if not isinstance(value, Mapping):
        amount = parse_amount(key, resource, value)
        return Demand("constant", amount, amount)
    for word in value:
        if word not in ("shape", "low", "high", *_TIMES):
            raise BadParameter(f"unknown key in the scenario: {key}.{word}",
                               remedy=f"there are: shape, low, high, {', '.join(_TIMES)}")
    shape = value.get("shape", "constant")
    if shape not in SHAPES:
        raise BadValue(f"{key}.shape", ascii(shape)[:80] if isinstance(shape, str) else type(shape).__name__,
                       "not a shape", remedy=f"choose from {', '.join(SHAPES)}")
    times = {word: parse_time(f"{key}.{word}", value[word]) for word in _TIMES if word in value}
    found = Demand(shape, parse_amount(f"{key}.low", resource, value.get("low", "0")),
                   parse_amount(f"{key}.high", resource, value.get("high", "0")), **times)
    if not found.period or (shape == "leak" and not found.begin < found.end < math.inf):
        raise BadValue(key, shape, "needs a time that is not 0", remedy="give period, or begin and end")
    return found


def parse_amount(key: str, resource: str, value: object) -> int:
    text = str(value) if type(value) is float or (type(value) is int and 0 <= value < 2**63) else value
    if not isinstance(text, str):
        raise BadValue(key, type(value).__name__, "not an amount")
    amount = AMOUNTS[resource](key, text)
    if amount is None:
        raise BadValue(key, text, "not an amount")
    return amount


def parse_time(key: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= _LONGEST:
        raise BadValue(key, value if isinstance(value, float) else type(value).__name__,
                       f"not a number of seconds from 0 to {_LONGEST}")
    return float(value)
