# SPDX-License-Identifier: GPL-2.0-or-later
"""The figures for a reader, and as JSON for a program."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmark.figure import Figure
from benchmark.measure import Samples

_COLUMNS = ("figure", "value", "95 % interval", "good", "moonshot", "verdict")


def text(environment: Mapping[str, str], figures: Sequence[Figure]) -> str:
    lines = [f"{key + ':':<18} {value}" for key, value in environment.items()]
    lines += ["", *_table([_COLUMNS, *map(_row, figures)])]
    for figure in figures:
        lines += ["", f"{figure.definition.key}: {figure.definition.what}"]
        lines += [f"  {_describe(samples)}" for samples in figure.samples]
        lines += [f"  {note}" for note in figure.notes]
        lines += [f"  invalid: {reason}" for reason in figure.invalid]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row(figure: Figure) -> Sequence[str]:
    definition, estimate = figure.definition, figure.estimate
    bar, unit = definition.bar, "" if definition.unit == "x" else f" {definition.unit}"
    sign = ">=" if bar.more_is_better else "<="
    interval = "" if math.isnan(estimate.low) else f"{_number(estimate.low)} - {_number(estimate.high)}"
    good, moonshot = ("" if math.isnan(limit) else f"{sign} {limit:g}{unit}" for limit in (bar.good, bar.moonshot))
    return definition.key, f"{_number(estimate.value)}{unit}", interval, good, moonshot, figure.verdict


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0f}" if 100 <= value < math.inf else f"{value:.3g}"


def _describe(samples: Samples) -> str:
    shares = ((10, samples.percentile(0.1)), (50, samples.p50), (90, samples.percentile(0.9)),
              (99, samples.percentile(0.99)))
    times = "  ".join(f"p{share} {seconds * 1000:.2f}" for share, seconds in shares)
    failed = f"; {len(samples.errors)} failed: {samples.errors[0]}" if samples.errors else ""
    return f"{samples.name:<18} {times} ms, {len(samples.values)} runs{failed}"


def as_json(environment: Mapping[str, str], figures: Sequence[Figure]) -> str:
    return json.dumps({"environment": dict(environment), "figures": [_document(figure) for figure in figures]},
                      indent=1, allow_nan=False) + "\n"


def _document(figure: Figure) -> dict[str, Any]:
    definition, estimate = figure.definition, figure.estimate
    return {
        "figure": definition.key, "what": definition.what, "unit": definition.unit, "verdict": figure.verdict,
        "value": _finite(estimate.value), "low": _finite(estimate.low), "high": _finite(estimate.high),
        "good": _finite(definition.bar.good), "moonshot": _finite(definition.bar.moonshot),
        "notes": figure.notes, "invalid": figure.invalid,
        "samples": [{"name": samples.name, "seconds": [_finite(value) for value in samples.values],
                     "median": _finite(statistics.median_low(samples.values)) if samples.values else None,
                     "errors": samples.errors} for samples in figure.samples],
    }


def _finite(value: float) -> float | str | None:
    """JSON has no infinity, and null is what was not measured."""
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else "infinite"
