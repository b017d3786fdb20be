# SPDX-License-Identifier: GPL-2.0-or-later
import itertools

import pytest

from vemgr.core.errors import AlreadyRunning, NotRunning, RefusedError, StillRunning
from vemgr.core.lifecycle import TRANSITIONS, State, Verb, check


@pytest.mark.parametrize(("state", "verb"), [
    *itertools.product(State, [verb for verb in Verb if verb != Verb.CREATE])])
def test_every_pair_leads_somewhere_or_is_refused(state, verb):
    if (state, verb) in TRANSITIONS:
        assert check("web1", state, verb) == TRANSITIONS[state, verb]
    else:
        with pytest.raises(RefusedError) as refused:
            check("web1", state, verb)
        assert refused.value.facts["ve"] == "web1" and str(state) in str(refused.value)
        assert "not running but running" not in str(refused.value)


@pytest.mark.parametrize(("state", "verb", "error"), [
    (State.RUNNING, Verb.START, AlreadyRunning), (State.SUSPENDED, Verb.START, AlreadyRunning),
    (State.RUNNING, Verb.RESUME, AlreadyRunning), (State.STOPPED, Verb.RESUME, NotRunning),
    (State.STOPPED, Verb.STOP, NotRunning), (State.SUSPENDED, Verb.EXEC, NotRunning),
    (State.RUNNING, Verb.DESTROY, StillRunning), (State.SUSPENDED, Verb.DESTROY, StillRunning),
])
def test_refusals(state, verb, error):
    with pytest.raises(error):
        check("web1", state, verb)


def test_every_state_can_be_left_and_reached():
    """From each state a way leads to a stopped VE, which can be destroyed."""
    reachable = {State.STOPPED}
    for _ in State:
        reachable |= {before for (before, _), after in TRANSITIONS.items() if after in reachable}
    assert reachable == set(State)
    assert set(TRANSITIONS.values()) == set(State)
