# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers as people read them: three digits, and a unit of the right size."""

from __future__ import annotations

import math

from vemgr.compare.schema import FACT
from vemgr.compare.statistics import Estimate

_LARGER = {"ns": "us", "us": "ms", "ms": "s", "MB/s": "GB/s", "MiB": "GiB", "MFLOP/s": "GFLOP/s"}
_STEP = {"MiB": 1024.0}


def digits(value: float) -> str:
    """Three of them that mean something, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    whole = math.floor(math.log10(abs(value))) + 1
    return f"{value:,.{max(0, 3 - whole)}f}"


def scaled(value: float, unit: str) -> tuple[float, str]:
    while value >= _STEP.get(unit, 1000.0) and unit in _LARGER:
        value, unit = value / _STEP.get(unit, 1000.0), _LARGER[unit]
    return value, unit


def with_unit(value: float, unit: str) -> str:
    if unit == FACT:
        return {0.0: "no", 1.0: "yes"}.get(value, "sometimes")
    number, unit = scaled(value, unit)
    return f"{digits(number)} {'µs' if unit == 'us' else unit}".rstrip()


def interval(found: Estimate, unit: str) -> str:
    """The two ends in the unit of the value."""
    value, scaled_unit = scaled(found.value, unit)
    factor = value / found.value if found.value else 1.0
    ends = f"{digits(found.low * factor)} to {digits(found.high * factor)}"
    return f"{ends} {'µs' if scaled_unit == 'us' else scaled_unit}".rstrip()
