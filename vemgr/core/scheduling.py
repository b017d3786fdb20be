# SPDX-License-Identifier: GPL-2.0-or-later
"""How a host promises its resources, as its administrator says in the table [scheduler] of vemgr.toml."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from enum import StrEnum
from typing import Any

from vemgr.core import resources as units
from vemgr.core.errors import BadParameter, BadValue

_SHARE = re.compile(r"(\d{1,3}(?:\.\d{1,3})?)%", re.ASCII)
_FACTOR = re.compile(r"\d{1,3}(?:\.\d{1,3})?", re.ASCII)


class Policy(StrEnum):
    """What counts as promised, and how much may be.

    guaranteed: a limit is a guarantee, unless another is given; nothing is promised twice. balanced: only what was
    given as guarantee is one; nothing is promised twice. dense: the same, but more is promised than there is.
    """

    GUARANTEED = "guaranteed"
    BALANCED = "balanced"
    DENSE = "dense"


AUTO = "auto"
#: Overcommit of CPU and memory where it is "auto".
_FACTORS = {Policy.GUARANTEED: ("1", "1"), Policy.BALANCED: ("1", "1"), Policy.DENSE: ("4", "1.5")}


@dataclass(frozen=True)
class Reserve:
    """What the host keeps for itself: `share` of the whole, in thousandths of a percent, but at least `least` and at
    most `most`."""

    share: int
    least: int
    most: int

    def of(self, total: int) -> int:
        """Never more than there is."""
        return min(total, max(self.least, min(self.most, total * self.share // 100_000)))


@dataclass(frozen=True)
class SchedulerConfig:
    """The keys of the table. `reserve_*`: share/least/most, which Virtuozzo has in this form; the defaults for memory
    are its own for system.slice and user.slice together."""

    policy: Policy = Policy.BALANCED
    overcommit_cpus: str = AUTO
    overcommit_memory: str = AUTO
    reserve_cpus: str = "5%/0.1/1"
    reserve_memory: str = "6%/352M/828M"

    def factor(self, resource: str) -> int:
        """How many times over a resource may be promised, in thousandths; the network once."""
        if resource == "network":
            return 1000
        text: str = getattr(self, f"overcommit_{resource}")
        return int(Decimal(_FACTORS[self.policy][resource == "memory"] if text == AUTO else text) * 1000)

    def reserve(self, resource: str) -> Reserve:
        """In thousandths of a CPU, or bytes."""
        return parse_reserve(f"scheduler.reserve-{resource}", getattr(self, f"reserve_{resource}"), _PARSERS[resource])


_PARSERS: dict[str, Callable[[str, str], int | None]] = {
    # No CPU at all may be reserved, though no VE may be limited to none.
    "cpus": lambda key, text: 0 if text == "0" else units.parse_cpus(key, text), "memory": units.parse_size,
}


def parse_reserve(key: str, text: str, parse: Callable[[str, str], int | None]) -> Reserve:
    """"4%/320M/700M". Raises `BadValue`."""
    share, *bounds = text.split("/")
    match = _SHARE.fullmatch(share)
    if match is None or len(bounds) != 2 or Decimal(match[1]) > 100:
        raise BadValue(key, text[:80], "not a share of at most 100%, a least and a most amount",
                       remedy="write SHARE%/LEAST/MOST")
    least, most = (parse(key, bound) for bound in bounds)
    if least is None or most is None or least > most:
        raise BadValue(key, text[:80], "the least amount is more than the most, or one is unlimited")
    return Reserve(int(Decimal(match[1]) * 1000), least, most)


KEYS = {field.name.replace("_", "-"): field.name for field in fields(SchedulerConfig)}


def parse_scheduler(values: object) -> SchedulerConfig:
    """From the table [scheduler]. Raises `BadParameter`, `BadValue`."""
    if not isinstance(values, Mapping):
        raise BadValue("scheduler", type(values).__name__, "not a table", remedy="write [scheduler]")
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key not in KEYS:
            raise BadParameter(f"unknown key in vemgr.toml: scheduler.{key}", remedy=f"there are: {', '.join(KEYS)}")
        found[KEYS[key]] = _text(key, value)
    if "policy" in found:
        if found["policy"] not in list(Policy):
            raise BadValue("scheduler.policy", found["policy"][:80], "not a policy",
                           remedy=f"choose from {', '.join(Policy)}")
        found["policy"] = Policy(found["policy"])
    config = SchedulerConfig(**found)
    for resource in _PARSERS:
        factor = getattr(config, f"overcommit_{resource}")
        if factor != AUTO and (not _FACTOR.fullmatch(factor) or not Decimal(factor)):
            raise BadValue(f"scheduler.overcommit-{resource}", factor[:80], "not a factor above 0",
                           remedy="for example '1' or '1.5', or 'auto' for the policy's")
        config.reserve(resource)
    return config


def _text(key: str, value: object) -> str:
    """A factor may be written as a number."""
    if type(value) is float or (type(value) is int and 0 <= value < 1000):
        return str(value)
    if not isinstance(value, str) or not value.isprintable():
        raise BadValue(f"scheduler.{key}", type(value).__name__, "not a printable text")
    return value
