# SPDX-License-Identifier: GPL-2.0-or-later
"""Plots as SVG inside a page: no library, no script. Colours are variables of the page's style, `--c0` and on.

Each column of the report keeps its colour and its mark in all plots, and has a lane of its own, so that marks do not
cover each other. What a mark stands for is told when one points at it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

from vemgr.compare.report.numbers import digits
from vemgr.compare.statistics import Estimate

COLOURS = 10
_WIDTH, _LABELS, _RIGHT = 960, 300, 110
_LANE, _TEXT_LANE, _GAP, _HEADING, _TOP, _BOTTOM = 11, 15, 10, 26, 8, 46
_LEFT_TEXT = 12


@dataclass(frozen=True)
class Mark:
    """One estimate in a plot. `series`: the number of its column, which colours it; None for what is published.
    `tells`: shown when one points at it; `note`: printed at its right."""

    series: int | None
    found: Estimate
    tells: str
    note: str = ""

    @property
    def lane(self) -> int:
        return _TEXT_LANE if self.note else _LANE


@dataclass(frozen=True)
class Line:
    """One label and its marks, a lane each; a heading where there are no marks."""

    label: str
    marks: Sequence[Mark] = ()

    @property
    def height(self) -> int:
        return sum(mark.lane for mark in self.marks) + _GAP if self.marks else _HEADING


@dataclass(frozen=True)
class Axis:
    """From values to pixels. `low`, `high`: the ends of the scale."""

    low: float
    high: float
    logarithmic: bool
    left: float = _LABELS
    right: float = _WIDTH - _RIGHT

    def at(self, value: float) -> float:
        bounded = min(self.high, max(self.low, value))
        if self.logarithmic:
            share = math.log(bounded / self.low) / math.log(self.high / self.low)
        else:
            share = (bounded - self.low) / (self.high - self.low)
        return round(self.left + share * (self.right - self.left), 1)

    def ticks(self) -> list[float]:
        if not self.logarithmic:
            return _round_steps(self.low, self.high)
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps: Sequence[int] = (1, 2, 5) if len(decades) <= 4 else (1,)
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        return [tick for tick in ticks if self.low * 0.999 <= tick <= self.high * 1.001]


def logarithmic(values: Iterable[float], *, around: float | None = None) -> Axis:
    """Round ends that hold all `values`, which are above zero, and `around`."""
    known = [value for value in values if value > 0 and math.isfinite(value)] + ([around] if around else [])
    low, high = min(known, default=1.0), max(known, default=1.0)
    return Axis(_rounded(low * 0.97, math.floor), max(_rounded(high * 1.03, math.ceil), low * 2), logarithmic=True)


def linear(values: Iterable[float]) -> Axis:
    high = max([value for value in values if math.isfinite(value)], default=1.0) or 1.0
    steps = _round_steps(0, high * 1.05)
    return Axis(0, max(steps[-1], high * 1.05), logarithmic=False)


def _rounded(value: float, to: Callable[[float], int]) -> float:
    decade = 10.0 ** math.floor(math.log10(value))
    ends = [1, 2, 5, 10]
    digit = value / decade
    if to is math.floor:
        return decade * max(end for end in ends if end <= digit + 1e-9)
    return decade * min(end for end in ends if end >= digit - 1e-9)


def _round_steps(low: float, high: float) -> list[float]:
    step = _rounded((high - low) / 6, math.ceil)
    return [low + step * number for number in range(int((high - low) / step + 1e-9) + 1)]


def lanes(lines: Sequence[Line], axis: Axis, caption: str, unit: str, *, reference: float | None = None) -> str:
    """Marks with their intervals on one scale. `reference`: a value that a line is drawn at. `caption`: for those who
    do not see it."""
    height = _TOP + sum(line.height for line in lines) + _BOTTOM
    parts = [_scale(axis, height, unit)]
    if reference is not None:
        x = axis.at(reference)
        parts.append(f'<line class="reference" x1="{x}" x2="{x}" y1="{_TOP}" y2="{height - _BOTTOM}"/>')
    top = float(_TOP)
    for line in lines:
        parts.append(_line(line, axis, top))
        top += line.height
    return _svg(height, caption, parts)


def _line(line: Line, axis: Axis, top: float) -> str:
    if not line.marks:
        return f'<text class="heading" x="{_LEFT_TEXT}" y="{top + _HEADING - 8}">{escape(line.label)}</text>'
    middle = top + (line.height - _GAP) / 2 + 4
    parts = [f'<text class="label" x="{_LABELS - 12}" y="{middle}" text-anchor="end">{escape(line.label)}</text>']
    bottom = top + line.height - _GAP / 2
    for mark in line.marks:
        parts.append(_mark(mark, axis, top + mark.lane / 2))
        top += mark.lane
    parts.append(f'<line class="row" x1="{_LEFT_TEXT}" x2="{_WIDTH - 4}" y1="{bottom}" y2="{bottom}"/>')
    return "".join(parts)


def _mark(mark: Mark, axis: Axis, y: float) -> str:
    found = mark.found
    x, low, high = axis.at(found.value), axis.at(found.low), axis.at(found.high)
    kind = "published" if mark.series is None else f"c{mark.series % COLOURS}"
    interval = f'<line class="interval" x1="{low}" x2="{high}" y1="{y}" y2="{y}"/>' if high > low else ""
    note = f'<text class="note" x="{max(x, high) + 9}" y="{y + 4}">{escape(mark.note)}</text>' if mark.note else ""
    return f'<g class="{kind}"><title>{escape(mark.tells)}</title>{interval}{symbol(mark.series, x, y)}{note}</g>'


def symbol(series: int | None, x: float, y: float) -> str:
    """A mark that differs by shape as well as by colour; hollow for what others have published."""
    if series is None:
        return f'<path class="hollow" d="M{x} {y - 5}l5 5l-5 5l-5-5z"/>'
    shape = series % 4
    if shape == 0:
        return f'<circle class="dot" cx="{x}" cy="{y}" r="4"/>'
    path = (f"M{x - 4} {y - 4}h8v8h-8z", f"M{x} {y - 5}l5 9h-10z", f"M{x} {y - 5}l5 5l-5 5l-5-5z")[shape - 1]
    return f'<path class="dot" d="{path}"/>'


def strips(series: Sequence[tuple[int, str, Sequence[float]]], middles: Sequence[Estimate], caption: str,
           unit: str) -> str:
    """Each sample as a dot, and the median as a bar; a strip for each column."""
    axis = logarithmic(value for _, _, values in series for value in values)
    strip = 30
    height = _TOP + strip * len(series) + _BOTTOM
    parts = [_scale(axis, height, unit)]
    for number, ((colour, label, values), middle) in enumerate(zip(series, middles, strict=True)):
        y = _TOP + strip * number + strip / 2
        parts.append(f'<text class="label" x="{_LABELS - 12}" y="{y + 4}" text-anchor="end">{escape(label)}</text>')
        dots = "".join(f'<circle class="sample" cx="{axis.at(value)}" cy="{y + (place % 5 - 2) * 3.5}" r="3"/>'
                       for place, value in enumerate(values))
        x = axis.at(middle.value)
        tells = f"{label}: median {digits(middle.value)} {unit} of {middle.count}"
        end = max(axis.at(value) for value in values) + 10
        parts.append(f'<g class="c{colour % COLOURS}"><title>{escape(tells)}</title>{dots}'
                     f'<line class="median" x1="{x}" x2="{x}" y1="{y - 12}" y2="{y + 12}"/>'
                     f'<text class="note" x="{end}" y="{y + 4}">{digits(middle.value)} {escape(unit)}</text></g>')
    return _svg(height, caption, parts)


def curves(series: Sequence[tuple[int, str, Sequence[tuple[float, Estimate]]]], caption: str, unit: str,
           below: str) -> str:
    """A line for each column over a few whole numbers, which are the names of what is `below`."""
    width, height, left, bottom = 470, 300, 66, 46
    ends = [found.high for _, _, points in series for _, found in points]
    scale = linear(ends)
    places = sorted({place for _, _, points in series for place, _ in points})

    def x(place: float) -> float:
        return round(left + 30 + places.index(place) * (width - left - 70) / max(1, len(places) - 1), 1)

    def y(value: float) -> float:
        return round(height - bottom - value / scale.high * (height - bottom - 14), 1)

    parts = [f'<line class="grid" x1="{left}" x2="{width - 8}" y1="{y(tick)}" y2="{y(tick)}"/>'
             f'<text class="tick" x="{left - 8}" y="{y(tick) + 4}" text-anchor="end">{_tick(tick)}</text>'
             for tick in scale.ticks()]
    parts += [f'<text class="tick" x="{x(place)}" y="{height - bottom + 18}" text-anchor="middle">{place:g}</text>'
              for place in places]
    parts.append(f'<text class="axis" x="{(left + width) / 2}" y="{height - 8}" text-anchor="middle">{escape(below)}'
                 "</text>")
    parts.append(f'<text class="axis" x="14" y="{(height - bottom) / 2}" text-anchor="middle" '
                 f'transform="rotate(-90 14 {(height - bottom) / 2})">{escape(unit)}</text>')
    for number, (colour, label, points) in enumerate(series):
        shift = (number - (len(series) - 1) / 2) * 5  # intervals beside each other
        way = " ".join(f"{x(place) + shift},{y(found.value)}" for place, found in points)
        marks = "".join(
            f"<g><title>{escape(f'{label}, {place:g}: {digits(found.value)} {unit}')}</title>"
            f'<line class="interval" x1="{x(place) + shift}" x2="{x(place) + shift}" y1="{y(found.low)}" '
            f'y2="{y(found.high)}"/>{symbol(colour, x(place) + shift, y(found.value))}</g>' for place, found in points)
        parts.append(f'<g class="c{colour % COLOURS}"><polyline class="curve" points="{way}"/>{marks}</g>')
    return _svg(height, caption, parts, width)


def _scale(axis: Axis, height: float, unit: str) -> str:
    bottom = height - _BOTTOM
    ticks = [f'<line class="grid" x1="{axis.at(tick)}" x2="{axis.at(tick)}" y1="{_TOP}" y2="{bottom}"/>'
             f'<text class="tick" x="{axis.at(tick)}" y="{bottom + 16}" text-anchor="middle">{_tick(tick)}</text>'
             for tick in axis.ticks()]
    middle = (axis.left + axis.right) / 2
    name = f'<text class="axis" x="{middle}" y="{bottom + 36}" text-anchor="middle">{escape(unit)}</text>'
    return "".join(ticks) + name


def _tick(value: float) -> str:
    return f"{value:,.10g}"


def _svg(height: float, caption: str, parts: Iterable[str], width: int = _WIDTH) -> str:
    return (f'<svg viewBox="0 0 {width} {height:g}" role="img" aria-label="{escape(caption)}" '
            f'style="max-width:{width}px">{"".join(parts)}</svg>')
