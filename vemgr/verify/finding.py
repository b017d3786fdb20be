# SPDX-License-Identifier: GPL-2.0-or-later
"""What came of a measurement, and the judgement: pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

_ABOVE = 0.02  # of a limit: what accounting in ticks and the edges of a measurement come to
_BELOW = 0.95  # of a limit: with less, something else was the limit
_KEPT = 0.97  # of a guarantee


class Outcome(StrEnum):
    ENFORCED = "enforced"
    KEPT = "kept"  # a guarantee
    EXCEEDED = "exceeded"
    MISSED = "missed"  # a guarantee
    NOT_ENFORCEABLE = "not enforceable"
    NOT_MEASURED = "not measured"

    @property
    def exit_code(self) -> int:
        """As `vemgr.core.errors` has them: a limit was not reached, or the host cannot enforce it."""
        return {"exceeded": 6, "missed": 6, "not enforceable": 5}.get(self.value, 0)


@dataclass(frozen=True)
class Finding:
    """`asked` and `got` in `unit`; `why`: what else there is to say."""

    setting: str
    outcome: Outcome
    asked: str = ""
    got: str = ""
    unit: str = ""
    why: str = ""

    def __str__(self) -> str:
        if not self.got:
            return f"{self.setting}: {self.outcome} because {self.why}"
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.setting}: {self.outcome}: asked {self.asked}, got {self.got}{unit}" + (
            f" ({self.why})" if self.why else "")

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "outcome": str(self.outcome)}


def judge_rate(setting: str, asked: float, got: float, scale: float, unit: str, edge: float = 0.0) -> Finding:
    """A limit of so much in each second. `scale`: of one `unit`. `edge`: the part of the measurement that a period of
    the limit takes, by which it may see more."""
    outcome = Outcome.ENFORCED if got <= asked * (1 + _ABOVE + edge) else Outcome.EXCEEDED
    low = "less than the limit allows: something else held it back" if got < asked * _BELOW else ""
    return Finding(setting, outcome, f"{asked / scale:.2f}", f"{got / scale:.2f}", unit, low)


def judge_guarantee(setting: str, asked: float, got: float, scale: float, unit: str) -> Finding:
    outcome = Outcome.KEPT if got >= asked * _KEPT else Outcome.MISSED
    return Finding(setting, outcome, f"{asked / scale:.2f}", f"{got / scale:.2f}", unit)


def judge_amount(setting: str, asked: int, most: int, scale: int, unit: str, *, hit: bool, how: str) -> Finding:
    """A limit of how much there may be at a time. `most`: what was seen. `hit`: the load was stopped by it."""
    if most > asked:
        return Finding(setting, Outcome.EXCEEDED, f"{asked / scale:g}", f"{most / scale:.5g}", unit, how)
    if not hit:
        return Finding(setting, Outcome.NOT_MEASURED, why=how)
    return Finding(setting, Outcome.ENFORCED, f"{asked / scale:g}", f"{most / scale:.5g}", unit, how)


def exit_code(findings: list[Finding]) -> int:
    """Of all: a limit that was not met weighs more than one that cannot be enforced."""
    return max((finding.outcome.exit_code for finding in findings), default=0)
