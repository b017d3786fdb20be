# SPDX-License-Identifier: GPL-2.0-or-later
"""When VEs are started again, and given up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vemgr.core.events import Kind
from vemgr.core.restarting import Policy, Restarts, wants_restart


@pytest.mark.parametrize(("how", "powered_off", "wanting"), [
    (Kind.CRASHED, False, [Policy.ON_FAILURE, Policy.ALWAYS]), (Kind.STOPPED, False, [Policy.ALWAYS]),
    (Kind.STOPPED, True, []), (Kind.REBOOTED, False, []),
])
def test_what_ends_lead_to_a_restart(how, powered_off, wanting):
    assert [policy for policy in Policy if wants_restart(policy, how, powered_off=powered_off)] == wanting


def test_it_waits_longer_each_time_and_gives_up():
    now, restarts, delays = 1000.0, Restarts(), []
    while (after := restarts.next(now, 0.5, 10, 600)) is not None:
        restarts, now = after, after.due + 0.5
        delays.append(round(after.due - after.times[-1]))
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60] and restarts.count == 10


def test_a_long_life_begins_anew():
    restarts = Restarts(count=6, times=(10.0,))
    assert restarts.next(1000.0, 59.0, 3, 600) == Restarts(7, (1000.0,), 1060.0)
    assert restarts.next(1000.0, 60.0, 3, 600) == Restarts(1, (1000.0,), 1001.0)


@given(st.lists(st.tuples(st.floats(0, 200), st.floats(0, 200)), max_size=40), st.integers(1, 12),
       st.integers(1, 2000))
def test_never_more_in_a_window_than_allowed(lives, most, window):
    now, restarts, begun = 100.0, Restarts(), []
    for lived, idle in lives:
        now += lived
        after = restarts.next(now, lived, most, window)
        if after is None:
            assert len([time for time in begun if now - window < time]) == most
            return
        assert 1 - 1e-9 <= after.due - now <= 60 + 1e-9
        begun.append(now)
        restarts, now = after, after.due + idle
        assert len(restarts.times) <= most
