# SPDX-License-Identifier: GPL-2.0-or-later
"""CPUs that are chosen for VEs, and VEs that take only what others leave."""

import json
import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def two_cpus():
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is one CPU only")


def on(ve):
    return ve.exec("grep", "Cpus_allowed_list", "/proc/self/status").stdout.split()[1]


def test_cpus_are_chosen_where_least_is_pinned_and_moved_when_that_has_gone(make_ve, vemgr, until):
    fixed = make_ve("fixed", cpu_mask="0")
    first, second = make_ve("first", cpu_mask="auto:1"), make_ve("second", cpu_mask="auto:1", cpus="0.5")
    assert (on(first), on(second)) == ("1", "0")
    third = make_ve("third", cpu_mask="auto:1")
    assert on(third) == "1"
    found = json.loads(vemgr("scheduler", "explain", "--json", "third").stdout)["knobs"]
    assert next(knob for knob in found if knob["file"] == "cpuset.cpus") == {
        "file": "cpuset.cpus", "value": "1", "wanted": "1",
        "reason": "1 CPU on 1 core; what may use 1 of one was pinned to them"}
    vemgr("stop", "--kill", fixed.name)
    until(lambda: {on(first), on(third)} == {"0", "1"}, 60, "one has moved")
    assert "  moved" in vemgr("scheduler", "events").stdout
    first.set(cpu_mask="auto:2")
    assert on(first) == "0-1" and first.in_force("cpu-mask") == "0-1"
    assert "there are" in first.set(21, cpu_mask="auto:4000").stderr


def test_chosen_cpus_outlive_the_daemon(make_ve, vemgr, systemctl):
    fixed, ve = make_ve("fixed", cpu_mask="0"), make_ve("placed", cpu_mask="auto:1")
    assert on(ve) == "1"
    systemctl("restart", "vemgr")
    vemgr("destroy", "--force", fixed.name)
    assert on(ve) == "1" and make_ve("other", cpu_mask="auto:1").in_force("cpu-mask") == "0"


def test_an_idle_ve_has_what_others_leave(make_ve, burn, cpu_shares, figure, until):
    idle, busy = make_ve("idle", cpu_weight="idle", cpu_mask="1"), make_ve("busy", cpu_mask="1")
    assert (idle.read("cpu.idle"), idle.in_force("cpu-weight")) == ("1", "idle")
    burn(idle)
    (alone,) = cpu_shares([idle], 4)
    assert alone > 0.9
    burn(busy)
    low, high = cpu_shares([idle, busy], 8)
    figure(f"--cpu-weight idle got {low:.2%} of a CPU beside a busy loop of weight 100")
    assert low < 0.02 and low + high > 0.9
    assert "guarantee" in idle.set(21, cpu_guarantee="0.5").stderr
    idle.set(cpu_weight="100")
    # What it ran while it was idle has been counted 341 times over (1024 / 3), and the other catches up first.
    until(lambda: cpu_shares([idle, busy], 2)[0] > 0.4, 120, what="a share again")
    low, high = cpu_shares([idle, busy], 8)
    assert low / high == pytest.approx(1, rel=0.05)


def test_a_ve_that_somebody_has_made_idle(make_ve, until):
    """It does not keep the others from the weights that follow from guarantees, and gets its own again."""
    made, other = make_ve("made"), make_ve("other")
    (made.group / "cpu.idle").write_text("1")
    good = make_ve("good", cpu_guarantee="0.5")
    until(lambda: good.read("cpu.weight") == "10000" and other.read("cpu.weight") != "100", what="weights")
    until(lambda: made.read("cpu.idle") == "0" and made.read("cpu.weight") == other.read("cpu.weight"), 60,
          "the one that was made idle has its weight again")


@pytest.fixture
def last_cpu():
    """A CPU that can be taken away."""
    switch = Path("/sys/devices/system/cpu/cpu1/online")
    if not switch.exists() or len(os.sched_getaffinity(0)) != 2:
        pytest.skip("there is no second and last CPU that can go offline")
    yield switch
    switch.write_text("1")


def test_cpus_that_go_and_come_back(make_ve, last_cpu, until):
    fixed, one = make_ve("fixed", cpu_mask="0"), make_ve("one", cpu_mask="auto:1")
    both = make_ve("both", cpu_mask="auto:2")
    assert (on(fixed), on(one), on(both)) == ("0", "1", "0-1")
    last_cpu.write_text("0")
    until(lambda: (one.read("cpuset.cpus"), both.read("cpuset.cpus")) == ("0", "0"), 60, "moved to what is there")
    last_cpu.write_text("1")
    until(lambda: (one.read("cpuset.cpus"), both.read("cpuset.cpus")) == ("1", "0-1"), 90, "moved back")
