# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast a VE may receive and send: as a value, and as the text that says so."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from decimal import Decimal

from vemgr.core.errors import BadValue
from vemgr.core.resources import UNLIMITED

_RATE = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([kMG])?(?:bit(?:/s)?)?(?::(in|out))?", re.ASCII)
_UNITS = {None: 1, "k": 1000, "M": 1000**2, "G": 1000**3}
_LEAST, _MOST = 8_000, 400 * 1000**3  # bit/s


@dataclass(frozen=True)
class Rate:
    """Bits a second to a VE and from it, over each of its links; None is no limit. Whole Ethernet frames count."""

    incoming: int | None = None
    outgoing: int | None = None

    def __bool__(self) -> bool:
        return self.incoming is not None or self.outgoing is not None


NO_RATE = Rate()


def parse_network_rate(field: str, text: str) -> Rate:
    """"10M" both ways; "10M:in 2M:out" each. Raises `BadValue`."""
    rate = NO_RATE
    for word in text.split():
        way = word.partition(":")[2]
        amount = None if word.partition(":")[0] == UNLIMITED and way in ("", "in", "out") else _bits(field, word)
        if way != "out":
            rate = replace(rate, incoming=amount)
        if way != "in":
            rate = replace(rate, outgoing=amount)
    return rate


def parse_bits(field: str, text: str) -> int:
    """An amount without a direction: "10M", in bit/s. Raises `BadValue`."""
    if ":" in text:
        raise BadValue(field, text[:80], "not a rate in bit/s", remedy="for example 10M")
    return _bits(field, text)


def parse_network_guarantee(field: str, text: str) -> int:
    """As `parse_bits`, and 0 for none."""
    return 0 if text == "0" else parse_bits(field, text)


def show_bits(bits: int) -> str:
    """`parse_network_guarantee` reads it back."""
    return _text(bits) if bits else "0"


def _bits(field: str, word: str) -> int:
    match = _RATE.fullmatch(word)
    amount = int(Decimal(match[1]) * _UNITS[match[2]]) if match else 0
    if not _LEAST <= amount <= _MOST:
        raise BadValue(field, word[:80], "not a rate in bit/s from 8k to 400G",
                       remedy="for example 10M, or 100M:in and 10M:out")
    return amount


def show_network_rate(rate: Rate) -> str:
    """`parse_network_rate` reads it back."""
    if rate.incoming == rate.outgoing:
        return UNLIMITED if rate.incoming is None else _text(rate.incoming)
    ways = ((rate.incoming, "in"), (rate.outgoing, "out"))
    return " ".join(f"{_text(amount)}:{way}" for amount, way in ways if amount is not None)


def _text(amount: int) -> str:
    for unit in ("G", "M", "k"):
        if amount % _UNITS[unit] == 0:
            return f"{amount // _UNITS[unit]}{unit}"
    return str(amount)
