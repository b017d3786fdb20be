# SPDX-License-Identifier: GPL-2.0-or-later
"""Starts, reboots from inside, stops and poweroffs in a row. VEMGR_ROUNDS says how many; the few here are a sample."""

import os

import pytest

from tests.kernel.conftest import eventually

ROUNDS = int(os.environ.get("VEMGR_ROUNDS", "3"))


@pytest.mark.timeout(120 + 20 * ROUNDS)
@pytest.mark.parametrize("template", ["bb", "bbinit"])
def test_none_hangs_and_each_end_says_how(fresh, template):
    """With the built-in init, and with busybox's, which ends its VE itself when it is asked to."""
    name = fresh.create(template=template)
    fresh("start", name)  # the first one makes the directories of what it writes
    fresh("stop", name)
    before = fresh.traces()
    # Each kind of end in turn: asked, a reboot from inside and then killed, a poweroff from inside.
    for number in range(ROUNDS):
        fresh("start", name)
        pid = fresh.show(name)["pid"]
        if number % 3 == 0:
            assert fresh.out("stop", name) == f"{name}: clean\n"
        elif number % 3 == 1:
            fresh("exec", name, "--", "reboot", "-f", code=None)
            eventually(lambda pid=pid: fresh.show(name)["pid"] not in (0, pid), lambda: fresh.out("events", name), 60)
            assert fresh.out("stop", "--kill", name) == f"{name}: killed: on request\n"
        else:
            fresh("exec", name, "--", "poweroff", "-f", code=None)
            eventually(lambda: fresh.state_of(name) == "stopped", lambda: fresh.out("events", name), 60)
    ends = [line.split(maxsplit=4)[3:] for line in fresh.out("events", name).splitlines()]
    ends = [end for end in ends if end[0] in ("stopped", "rebooted", "crashed")]
    each = [[["stopped", "clean"]], [["rebooted", "rebooted"], ["stopped", "killed: on request"]],
            [["stopped", "powered off"]]]
    wanted = [end for number in range(ROUNDS) for end in each[number % 3]]
    wanted.insert(0, ["stopped", "clean"])
    assert ends == wanted[-len(ends):] and len(ends) >= min(len(wanted), 60)  # the last 256 events are kept
    fresh.assert_traces(before)
