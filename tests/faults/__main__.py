# SPDX-License-Identifier: GPL-2.0-or-later
"""python -m tests.faults [SCENARIO ...]: every call of every verb fails once. Minutes."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from tests.faults import programs
from tests.faults.features import FEATURES
from tests.faults.inject import SHORTAGES, Outcome, count_calls, inject
from tests.faults.stage import made_stage
from tests.faults.verbs import SCENARIOS, Scenario


def sweep(scenario: Scenario, role: str, first: int, outcome: Outcome, how: dict[str, Any]) -> int:
    """All points from `first` on in one stage; returns the next one, after one that went wrong, or 0."""
    at = 0
    try:
        with made_stage(alone=scenario.alone) as stage:
            scenario.base(stage)
            count_calls(stage, scenario, role, **how)
            before = stage.settled(rules=scenario.rules)
            count = count_calls(stage, scenario, role, **how)
            stage.await_picture(before, why="untouched", rules=scenario.rules)
            for at in range(first, count + 1):
                inject(stage, scenario, role, [at], before, outcome, **how)
            scenario.clear(stage)
    except Exception as error:
        outcome.wrong.append(f"{type(error).__name__}: {error} at {at}")
        return at and at + 1  # where not even an undisturbed verb works, none follows
    return 0


def sweep_programs(scenario: Scenario, outcome: Outcome) -> None:
    """What the set-up process and init do."""
    with made_stage() as stage:
        scenario.base(stage)
        before = stage.settled()
        for call, number in programs.points(stage, scenario):
            programs.inject(stage, scenario, call, number, before, outcome)
        scenario.clear(stage)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.faults", description=__doc__)
    parser.add_argument("only", nargs="*", help="words of scenarios")
    parser.add_argument("--role", action="append")
    parser.add_argument("-v", action="store_true")
    parser.add_argument("--shortage", choices=list(SHORTAGES), default="", help="from the N-th call on, all fail that "
                        "need it")
    options = parser.parse_args()
    points = wrong = 0
    for scenario in (*SCENARIOS, *FEATURES):
        if options.only and not any(word == scenario.name for word in options.only):
            continue
        for role in (*scenario.roles, *(["program"] if scenario.programs and not options.shortage else [])):
            if options.role and role not in options.role:
                continue
            began = time.monotonic()
            outcome = Outcome()
            if role == "program":
                sweep_programs(scenario, outcome)
            at = int(role != "program")
            while at:
                at = sweep(scenario, role, at, outcome, SHORTAGES[options.shortage])
            print(f"{scenario.name}, {role}: {outcome.points} points, {outcome.tolerated.total()} tolerated, "
                  f"{len(outcome.wrong)} WRONG, {time.monotonic() - began:.1f} s", flush=True)
            points += outcome.points
            wrong += len(outcome.wrong)
            for text in outcome.wrong:
                print(f"    WRONG {text[:1500]}")
            if options.v:
                for text, number in outcome.failed.items():
                    print(f"    {number} {text[:400]}")
            for text, number in outcome.tolerated.items():
                print(f"    tolerated {number} {text[:300]}", flush=True)
    print(f"{points} points, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
