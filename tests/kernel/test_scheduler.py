# SPDX-License-Identifier: GPL-2.0-or-later
"""What the scheduler tells and refuses on this host's kernel, whichever controllers it has."""

import asyncio
import json
import os
import subprocess

import pytest

from vemgr.kernel.cgroups import cgroup2_mountpoint
from vemgr.kernel.pressure import Trigger, stalled


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


def test_a_policy_is_switched_and_outlives_the_daemon(fresh):
    assert fresh.out("scheduler", "policy") == "balanced\n"
    fresh("scheduler", "policy", "dense")
    assert fresh.json("scheduler", "capacity")["resources"][0]["overcommit"] == 4
    assert "dense, was balanced" in fresh.out("scheduler", "events")
    fresh.kill(fresh.daemon_pid())
    assert fresh.out("scheduler", "policy") == "dense (vemgr.toml: balanced)\n"
    assert "balanced, dense" in fresh("scheduler", "policy", "generous", code=21).stderr
    fresh("scheduler", "policy", "balanced")
    assert fresh.json("scheduler", "policy") == {"policy": "balanced", "configured": "balanced"}


def test_pressure_wakes(tmp_path):
    """More busy processes than CPUs in a cgroup wait for a CPU, and the kernel says so."""
    group = f"{cgroup2_mountpoint()}/vemgr-pressure-{os.getpid()}"
    os.mkdir(group)
    busy = []
    try:
        try:
            trigger = Trigger(f"{group}/cpu.pressure")
        except OSError as error:
            pytest.skip(f"this kernel has no pressure triggers: {error}")

        async def wait_for_it():
            woken = asyncio.Event()
            loop = asyncio.get_running_loop()
            loop.add_reader(trigger.fileno(), woken.set)
            await asyncio.sleep(0.1)
            assert not woken.is_set()
            for _ in range(2 * os.cpu_count()):
                busy.append(subprocess.Popen(["sh", "-c", f"echo $$ > {group}/cgroup.procs; while :; do :; done"]))
            async with asyncio.timeout(60):
                await woken.wait()
            assert trigger.take()
            loop.remove_reader(trigger.fileno())

        asyncio.run(wait_for_it())
        with open(f"{group}/cpu.pressure") as file:
            assert stalled(file.read()) >= 100_000
        trigger.close()
    finally:
        for process in busy:
            process.kill()
            process.wait()
        os.rmdir(group)


def test_a_change_is_previewed_and_not_made(vemgr, running):
    before = vemgr.json("show", running)["settings"]
    assert vemgr.out("set", "--dry-run", running, "--hostname", "other").endswith("at the next start: hostname\n")
    memory = vemgr.json("scheduler", "capacity")["resources"][1]["total"]
    refused = vemgr("set", "--dry-run", running, "--memory-guarantee", str(memory * 2), code=None)
    assert refused.returncode in (5, 36), "without the controller it is that which is told"
    vemgr("set", "--dry-run", "missing", "--hostname", "x", code=14)
    assert vemgr.json("show", running)["settings"] == before


def test_demand_is_recorded_and_simulated(vemgr, running, tmp_path):
    """While a VE computes: what it used is what is in the file, and the simulator reads it."""
    file = tmp_path / "host.jsonl"
    with vemgr.popen("exec", running, "--", "sh", "-c", "while :; do :; done") as busy:
        vemgr("scheduler", "record", "--seconds", "2", "--interval", "0.5", str(file))
        vemgr("stop", "--kill", running)
        busy.communicate(timeout=60)
    samples = [json.loads(line)["ves"] for line in file.read_text().splitlines() if '"at"' in line]
    assert samples
    assert any(sample.get(running, {}).get("cpus-used", 0) > 0 for sample in samples)
    found = vemgr.json("scheduler", "simulate", str(file))
    assert running in [kind["kind"] for kind in found["kinds"]]
