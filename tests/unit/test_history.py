# SPDX-License-Identifier: GPL-2.0-or-later
"""The judge of the stress test: it has to see what is wrong, and nothing else."""

import pytest

from tests.faults.history import ABSENT, RUNNING, STOPPED, Call, outcome, unfounded


def calls(*lines):
    """Each "begin end verb answer"."""
    found = []
    for line in lines:
        begun, ended, verb, answer = line.split()
        found.append(Call(verb, "a", answer, float(begun), float(ended)))
    return found


@pytest.mark.parametrize(("lines", "states"), [
    (["1 2 create ok", "3 4 start ok"], {RUNNING}),
    (["1 4 create ok", "2 3 start ok"], {RUNNING}),  # the start came after, whatever the answers' order
    (["1 4 create ok", "2 3 create VEExists"], {STOPPED}),
    (["1 4 create ok", "2 3 destroy NoSuchVE"], {STOPPED}),
    (["1 4 create ok", "2 6 destroy ok", "5 7 show absent"], {ABSENT}),
    (["1 4 create ok", "2 3 show absent", "2 3 show stopped"], {STOPPED}),
    (["1 2 create ok", "3 6 start ok", "4 5 stop ok"], {STOPPED}),
])
def test_possible(lines, states):
    assert outcome(calls(*lines), {ABSENT}) == ("", states)


@pytest.mark.parametrize("lines", [
    ["1 2 start ok"],
    ["1 2 create ok", "3 4 create ok"],
    ["1 2 create ok", "3 4 show absent"],
    ["1 2 create ok", "3 4 start AlreadyRunning"],
    ["1 2 create ok", "3 6 start ok", "4 5 show running", "5.1 5.2 show stopped"],
    ["1 4 create ok", "2 2.5 show stopped", "3 3.5 plan NoSuchVE"],  # this one was found
    ["1 2 create ok", "3 4 start StartFailed"],
])
def test_impossible(lines):
    why, states = outcome(calls(*lines), {ABSENT})
    assert "is not possible" in why and states == set()


def test_locked_by_nobody():
    history = calls("1 2 create ok", "3 4 start Locked", "5 8 stop ok", "6 7 set Locked", "6 7 show running")
    assert [str(call) for call in unfounded(history)] == ["3.0000-4.0000 a start: Locked"]
