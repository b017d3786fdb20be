# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls of every verb fail: a few of each here, all of them by `python -m tests.faults`."""

import contextlib
import os
import random

import pytest

from tests.chance import seed
from tests.faults import programs
from tests.faults.features import FEATURES
from tests.faults.inject import SHORTAGES, Outcome, count_calls, inject
from tests.faults.stage import made_stage
from tests.faults.verbs import SCENARIOS

POINTS = int(os.environ.get("VEMGR_FAULT_POINTS", "5"))  # of each role in each verb
SEED = seed("fault")
#: The verbs that are tried while something has run out.
WITHOUT = ("create", "set, running", "start, the first", "start, a later", "stop --kill", "destroy", "exec")


class Stages:
    """One for all scenarios. After one that went wrong the next gets another: nobody knows what is left on it."""

    def __init__(self):
        self._made = None
        self._kept = contextlib.ExitStack()

    @contextlib.contextmanager
    def one(self, *, alone=False):
        if alone:
            with made_stage(alone=True) as made:
                yield made
            return
        with self._kept.pop_all() as stack:
            made, self._made = self._made or stack.enter_context(made_stage()), None
            yield made
            self._made, self._kept = made, stack.pop_all()

    def close(self):
        self._kept.close()


@pytest.fixture(scope="module")
def stages(can_run_ves):
    made = Stages()
    yield made
    made.close()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_call_fails(stages, scenario):
    with stages.one(alone=scenario.alone) as stage:
        sample(stage, scenario, POINTS)


@pytest.mark.parametrize("scenario", random.Random(SEED).sample(FEATURES, 3), ids=lambda scenario: scenario.name)
def test_a_call_of_a_feature_fails(stages, scenario):
    """Others each time, but under CI."""
    with stages.one() as stage:
        sample(stage, scenario, 3)


@pytest.mark.parametrize("shortage", [shortage for shortage in SHORTAGES if shortage])
@pytest.mark.parametrize("scenario", [each for each in SCENARIOS if each.name in WITHOUT], ids=lambda each: each.name)
def test_a_shortage_until_the_verb_has_failed(stages, scenario, shortage):
    """Undoing has to do without as well; afterwards all is there again."""
    with stages.one() as stage:
        sample(stage, scenario, 2, **SHORTAGES[shortage])


@pytest.mark.parametrize("scenario", [each for each in SCENARIOS if each.programs], ids=lambda scenario: scenario.name)
def test_a_call_of_the_set_up_fails(stages, scenario):
    print(f"seed {SEED}")
    outcome = Outcome()
    with stages.one() as stage:
        scenario.base(stage)
        before = stage.settled()
        for call, number in random.Random(SEED).sample(programs.points(stage, scenario), 5 * POINTS):
            programs.inject(stage, scenario, call, number, before, outcome)
        scenario.clear(stage)
    assert not outcome.wrong, outcome.wrong
    assert outcome.points > 4 * POINTS, "strace makes no call fail"


def sample(stage, scenario, number, **how):
    print(f"seed {SEED}")
    outcome = Outcome()
    scenario.base(stage)
    for role in scenario.roles:
        count_calls(stage, scenario, role, **how)  # what the first time makes for good
        before = stage.settled(rules=scenario.rules)
        count = count_calls(stage, scenario, role, **how)
        chance = random.Random(f"{SEED}/{scenario.name}/{role}/{how}")
        points = sorted(chance.sample(range(1, count + 1), min(number, count)))
        inject(stage, scenario, role, points, before, outcome, **how)
    scenario.clear(stage)
    assert not outcome.wrong, outcome.wrong
    assert outcome.points or how, "no call was made"
