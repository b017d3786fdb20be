# SPDX-License-Identifier: GPL-2.0-or-later
"""Guarantees: in the cgroup files, down from the root of the tree; kept against neighbours; and refused."""

import os
from pathlib import Path

MIB = 1 << 20


def above(ve):
    """The VE's cgroup and those above it, without the root."""
    path = ve.group
    while path != Path("/sys/fs/cgroup"):
        yield path
        path = path.parent


def test_a_memory_guarantee_holds_all_the_way_up(make_ve, vemgr, until):
    ve = make_ve("promised", memory_guarantee="64M")
    until(lambda: all(int((path / name).read_text()) >= 64 * MIB for path in above(ve)
                      for name in ("memory.min", "memory.low")), what="protection of the cgroups above the VE")
    assert ve.in_force("memory-guarantee") == ve.show()["settings"]["memory-guarantee"] == "64M"
    knobs = {knob["file"]: knob for knob in vemgr.ask("Explain", name=ve.name)["knobs"]}
    assert {file: knob["value"] for file, knob in knobs.items()} == {
        file: knob["wanted"] for file, knob in knobs.items()}
    ve.set(memory_guarantee="32M")
    assert (ve.read("memory.min"), ve.read("memory.low")) == (str(32 * MIB),) * 2
    until(lambda: (ve.group.parent / "memory.min").read_text().strip() == str(32 * MIB), what="the sum of the VEs")
    ve.set(memory_guarantee="0")
    assert (ve.read("memory.min"), ve.read("memory.low")) == ("0", "0")


def test_a_cpu_guarantee_is_kept_against_heavy_neighbours(make_ve, until, burn, cpu_shares, figure):
    bad = [make_ve(f"bad{number}", cpu_weight=10000) for number in range(3)]
    good = make_ve("good", cpu_guarantee="0.5")
    until(lambda: bad[0].number("cpu.weight") < 10000 or good.number("cpu.weight") > 100, what="weights")
    for ve in (good, *bad):
        burn(ve, os.cpu_count())
    got, *_ = cpu_shares([good, *bad], 10)
    figure(f"guaranteed 0.5 of {os.cpu_count()} CPUs, got {got:.3f}")
    assert got >= 0.5 * 0.97
    good.destroy()
    until(lambda: bad[0].number("cpu.weight") == 10000, what="the weight that was given")


def test_more_than_there_is_is_refused(make_ve, vemgr):
    ve = make_ve("modest")
    before = ve.show()
    for key in ("cpu", "memory"):
        refused = ve.set(36, **{f"{key}_guarantee": "4000" if key == "cpu" else "4T"})
        assert "cannot be guaranteed" in refused.stderr and "would fit" in refused.stderr
    assert ve.show()["settings"] == before["settings"] and ve.show()["pid"] == before["pid"]
    vemgr("stop", ve.name)
    ve.set(memory_guarantee="4T")
    assert "4194304M" in vemgr("start", ve.name, status=36).stderr
    assert vemgr.list()[ve.name]["state"] == "stopped"
