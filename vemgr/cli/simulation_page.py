# SPDX-License-Identifier: GPL-2.0-or-later
"""What a simulation came to, as one HTML page that needs nothing else: no network, no script, light or dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from vemgr.compare.report.plots import COLOURS
from vemgr.compare.report.style import STYLE
from vemgr.compare.report.timelines import timeline

_RESOURCES = {"cpus": 1, "memory": 2, "io": 4}  # the numbers of their colours
_MOST_KINDS = 500
_PLOTS = (
    ("utilization", "Utilization", "The part of what the hosts can give that was used.", 1.0),
    ("fairness", "Fairness", "Jain's index of what VEs got by what they were entitled to: 1 where all got their due.",
     1.0),
    ("unmet", "Unmet guarantees", "How many of those who wanted something of their guarantee got less than 99 % of it.",
     1.0),
)


def render(found: Mapping[str, Any], name: str) -> str:
    """`found`: as `Report.as_dict` tells it. `name`: the scenario's."""
    description = found["description"] or f"The scenario {name}"
    sections = [_facts(found, name), *(_plot(found, *plot) for plot in _PLOTS), _moves(found), _kinds(found["kinds"])]
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(name)}, simulated</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<style>{STYLE}</style></head>\n<body><main><h1>{escape(description)}</h1>\n"
            + "\n".join(sections) + "\n</main></body></html>\n")


def _facts(found: Mapping[str, Any], name: str) -> str:
    facts = {"scenario": name, "hosts": f"{found['hosts']}",
             "time": f"{found['seconds']:g} s in {found['ticks']} ticks",
             "weights written": f"{found['movesPerMinute']:.1f} per minute"}
    rows = "".join(f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in facts.items())
    legend = "".join(f'<li class="c{_RESOURCES[row["resource"]] % COLOURS}">{_swatch()}{row["resource"]}</li>'
                     for row in found["resources"])
    heads = ("utilization", "conserved", "fairness", "leastFairness", "unmet", "worst")
    table = _table(("", "utilization", "conserved", "fairness", "least fair", "unmet", "worst"),
                   [(row["resource"], *(f"{row[head]:.4f}" for head in heads)) for row in found["resources"]])
    return f'<table class="facts">{rows}</table>{table}<ul class="legend">{legend}</ul>'


def _swatch() -> str:
    return ('<svg class="swatch" viewBox="0 0 16 16" aria-hidden="true">'
            '<rect class="dot" width="16" height="16" rx="3"/></svg>')


def _plot(found: Mapping[str, Any], key: str, title: str, text: str, most: float) -> str:
    steps = found["history"]
    series = []
    for row in found["resources"]:
        resource = row["resource"]
        values = [next((each[key] for each in step["resources"] if each["resource"] == resource), None)
                  for step in steps]
        series.append((_RESOURCES[resource], resource, values))
    return _figure(title, text, timeline([step["seconds"] for step in steps], series, title, "part of 1", most=most))


def _moves(found: Mapping[str, Any]) -> str:
    title, steps = "Moves", found["history"]
    series = [(3, "cpu.weight", [step["movesPerMinute"] for step in steps])]
    return _figure(title, "How often a cpu.weight was written.",
                   timeline([step["seconds"] for step in steps], series, title, "per minute"))


def _figure(title: str, text: str, svg: str) -> str:
    return f'<section><h2>{title}</h2><p>{escape(text)}</p><figure class="plots">{svg}</figure></section>'


def _kinds(kinds: Sequence[Mapping[str, Any]]) -> str:
    """Those that got the least of what they wanted come first, so that none of them is cut off."""
    worst = sorted(kinds, key=lambda kind: min(kind["satisfied"].values(), default=1.0))
    rows = [(kind["kind"], str(kind["started"]), str(kind["refused"]),
             *(f"{kind['satisfied'][each]:.4f}" if each in kind["satisfied"] else "" for each in _RESOURCES))
            for kind in worst[:_MOST_KINDS]]
    more = f"<p>{len(kinds) - _MOST_KINDS} kinds that got more are left out.</p>" if len(kinds) > _MOST_KINDS else ""
    return ("<section><h2>Kinds of VEs</h2><p>How many started and were refused, and what part of their demand they "
            f"got.</p>{_table(('', 'started', 'refused', *_RESOURCES), rows)}{more}</section>")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(f"<tr><th>{escape(first)}</th>" + "".join(f"<td>{escape(text)}</td>" for text in rest) + "</tr>"
                   for first, *rest in rows)
    return f'<div class="wide"><table class="figures"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
