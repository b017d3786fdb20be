# SPDX-License-Identifier: GPL-2.0-or-later
"""What the scheduler tells and refuses on this host's kernel, whichever controllers it has."""

import os

import pytest


def test_capacity_is_that_of_the_host(vemgr):
    found = {each["resource"]: each for each in vemgr.json("scheduler", "capacity")["resources"]}
    assert found["cpus"]["total"] == os.cpu_count() * 1000
    assert found["memory"]["total"] == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for each in found.values():
        assert each["promisable"] == each["total"] - each["reserve"] >= each["free"] == (
            each["promisable"] - each["promised"])
        assert 0 <= each["used"] <= each["total"]
    assert "RESERVE" in vemgr.out("scheduler", "capacity")


def test_what_fits(vemgr):
    memory = vemgr.json("scheduler", "capacity")["resources"][1]
    each = memory["free"] // 3 - (1 << 20)
    assert vemgr.json("scheduler", "plan", "--memory", str(each)) == {
        "count": 3, "scarce": "memory", "unlimited": False}
    assert "more (cpus ends first)" in vemgr.out("scheduler", "plan", "--cpus", "0.1", "--memory", "1")
    assert "bad value" in vemgr("scheduler", "plan", "--memory", "much", code=21).stderr


def test_a_ve_is_explained(vemgr, running):
    found = vemgr.json("scheduler", "explain", running)
    assert (found["state"], [share["resource"] for share in found["shares"]]) == ("running", ["cpus", "memory"])
    for knob in found["knobs"]:
        path = f"{vemgr.json('host')['cgroup']}/{running}/{knob['file']}"
        assert bool(knob["value"]) == os.path.exists(path)
        assert knob["value"] in ("", knob["wanted"])
    assert "cpu.max" in vemgr.out("scheduler", "explain", running)
    vemgr("scheduler", "explain", "missing", code=14)
    vemgr("scheduler", "explain", "a/b", code=21)


@pytest.mark.parametrize(("text", "code"), [
    ('[scheduler]\npolicy = "generous"', 21), ("[scheduler]\nnonsense = 1", 20), ("scheduler = 1", 21),
    ('[scheduler]\nreserve-memory = "1G"', 21), ("[scheduler]\novercommit-cpus = 0", 21),
])
def test_a_configuration_that_is_wrong(vemgr, tmp_path, text, code):
    config = tmp_path / "vemgr.toml"
    config.write_text(f"{text}\n")
    assert "scheduler" in vemgr("--config", str(config), "list", code=code).stderr
