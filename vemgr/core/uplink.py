# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's way out, as its administrator describes it in the table [uplink] of vemgr.toml."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from vemgr.core.errors import BadParameter, BadValue
from vemgr.core.rates import parse_bits
from vemgr.core.scheduling import Reserve, parse_reserve

_DEVICE = re.compile(r"[^\s/:\x00-\x1f]{1,15}")
_RESERVE = "5%/64k/1G"
_DEFAULT_RESERVE = Reserve(5_000, 64_000, 1000**3)
_KEYS = ("device", "rate", "reserve", "take-over")


@dataclass(frozen=True)
class UplinkConfig:
    """`device`: "" for that of the default route. `rate`: bit/s, None for what the device says of itself. `reserve`:
    for the host's own traffic. `take_over`: a queueing discipline that somebody has put on the device is replaced."""

    device: str = ""
    rate: int | None = None
    reserve: Reserve = _DEFAULT_RESERVE
    take_over: bool = False


def parse_uplink(values: object) -> UplinkConfig:
    """From the table [uplink]. Raises `BadParameter`, `BadValue`."""
    if not isinstance(values, Mapping):
        raise BadValue("uplink", type(values).__name__, "not a table", remedy="write [uplink]")
    for key, value in values.items():
        if key not in _KEYS:
            raise BadParameter(f"unknown key in vemgr.toml: uplink.{key}", remedy=f"there are: {', '.join(_KEYS)}")
        if type(value) is not (bool if key == "take-over" else str):
            raise BadValue(f"uplink.{key}", type(value).__name__,
                           "not a flag" if key == "take-over" else "not a text")
    device, rate = values.get("device", ""), values.get("rate", "")
    if device and (not _DEVICE.fullmatch(device) or not device.isprintable() or device in (".", "..")):
        raise BadValue("uplink.device", ascii(device)[:80], "not an interface name")
    return UplinkConfig(device, parse_bits("uplink.rate", rate) if rate else None,
                        parse_reserve("uplink.reserve", values.get("reserve", _RESERVE), _amount),
                        values.get("take-over", False))


def _amount(key: str, text: str) -> int:
    return 0 if text == "0" else parse_bits(key, text)
