# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures over time as SVG: a line for each series on one scale that begins at 0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from vemgr.compare.report.numbers import digits
from vemgr.compare.report.plots import COLOURS, Axis, linear

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 960, 240, 66, 16, 10, 46
_UNITS = ((86400 * 2, 86400.0, "days"), (3600 * 3, 3600.0, "hours"), (180, 60.0, "minutes"))


def timeline(times: Sequence[float], series: Sequence[tuple[int, str, Sequence[float | None]]], caption: str, unit: str,
             *, most: float | None = None) -> str:
    """`times`: seconds, rising. `series`: number of its colour, label, and a value for each time; at None the line has
    a gap. `most`: the end of the scale, where it is known."""
    last = times[-1] if len(times) > 1 else times[0] + 1
    _, size, name = next((each for each in _UNITS if last >= each[0]), (0, 1.0, "seconds"))
    across = Axis(times[0] / size, last / size, logarithmic=False, left=_LEFT, right=_WIDTH - _RIGHT)
    upward = Axis(0, most, logarithmic=False) if most else linear(value or 0.0 for _, _, values in series
                                                                  for value in values)

    def y(value: float) -> float:
        return round(_HEIGHT - _BOTTOM - value / upward.high * (_HEIGHT - _BOTTOM - _TOP), 1)

    parts = [f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick)}" y2="{y(tick)}"/>'
             f'<text class="tick" x="{_LEFT - 8}" y="{y(tick) + 4}" text-anchor="end">{tick:,.4g}</text>'
             for tick in upward.ticks()]
    parts += [f'<text class="tick" x="{across.at(tick)}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{tick:,.6g}'
              "</text>" for tick in across.ticks()]
    parts.append(f'<text class="axis" x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">{name}</text>')
    parts.append(f'<text class="axis" x="14" y="{(_HEIGHT - _BOTTOM) / 2}" text-anchor="middle" '
                 f'transform="rotate(-90 14 {(_HEIGHT - _BOTTOM) / 2})">{escape(unit)}</text>')
    for colour, label, values in series:
        known = [value for value in values if value is not None]
        if known:
            tells = f"{label}: {digits(min(known))} to {digits(max(known))} {unit}"
            parts.append(f'<g class="c{colour % COLOURS}"><title>{escape(tells)}</title>'
                         f'<path class="curve" d="{_path(times, values, size, across, y)}"/></g>')
    return (f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(caption)}" '
            f'style="max-width:{_WIDTH}px">{"".join(parts)}</svg>')


def _path(times: Sequence[float], values: Sequence[float | None], size: float, across: Axis,
          y: Callable[[float], float]) -> str:
    steps, pen = [], "M"
    for time, value in zip(times, values, strict=True):
        if value is None:
            pen = "M"
            continue
        steps.append(f"{pen}{across.at(time / size)} {y(value)}")
        pen = "L"
    return "".join(steps)
