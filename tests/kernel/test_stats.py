# SPDX-License-Identifier: GPL-2.0-or-later
"""`vemgr stats`, on whatever controllers this kernel has for us."""

import contextlib
import os

import pytest

from tests.kernel.conftest import eventually
from tests.kernel.test_disk import can_have_disks  # noqa: F401  (a fixture)

MIB = 1 << 20


def counters(vemgr, name):
    (found,) = vemgr.json("stats", name)
    return {row["resource"]: row for row in found["counters"]}


def test_figures_of_one_that_runs_and_one_that_does_not(vemgr, running, fresh):
    stopped = fresh.create()
    found = {ve["name"]: ve for ve in vemgr.json("stats", running, stopped)}
    assert found[stopped] == {"name": stopped, "state": "stopped", "counters": []}
    by_resource = {row["resource"]: row for row in found[running]["counters"]}
    assert by_resource["cpus"]["held"] > 0
    controllers = vemgr.json("host")["controllers"]
    assert (by_resource["memory"]["held"] is not None) == ("memory" in controllers)
    assert (by_resource["pids"]["held"] is not None) == ("pids" in controllers)
    table = vemgr.out("stats", running).splitlines()
    assert table[0].split() == ["NAME", "RESOURCE", "HELD", "MAXHELD", "LIMIT", "GUARANTEE", "FAILCNT"]
    if "memory" not in controllers:
        assert next(line.split()[2:] for line in table if " memory " in line) == ["n/a", "-", "-", "-", "-"]
    assert running in {ve["name"] for ve in vemgr.json("stats")}
    assert vemgr("stats", "nonsense", code=14).stdout == ""


def test_the_network_is_counted_as_the_ve_sees_it(vemgr, running):
    gateway = vemgr.json("network", "list")[0]["gateway"]
    before = counters(vemgr, running)
    vemgr("exec", running, "--", "ping", "-c", "3", "-s", "1000", gateway)
    eventually(lambda: all(counters(vemgr, running)[key]["held"] > before[key]["held"] + 3000
                           for key in ("net-in", "net-out")), lambda: counters(vemgr, running))


@pytest.mark.usefixtures("can_have_disks")
def test_the_most_a_disk_has_held_outlives_files_and_daemon(make_instance):
    with make_instance() as own:
        ve = own.create("--disk", "64M", "--network", "none")
        own("start", ve)
        own("exec", ve, "--", "sh", "-c", "dd if=/dev/zero of=/fill bs=1M count=20; sync")
        full = eventually(lambda: (row := counters(own, ve)["disk"])["held"] > 20 * MIB and row, "it is not full")
        assert full["maxHeld"] >= full["held"] and 32 * MIB < full["limit"] <= 64 * MIB
        own("exec", ve, "--", "sh", "-c", "rm /fill; sync")
        eventually(lambda: counters(own, ve)["disk"]["held"] < 20 * MIB, "it is not empty")
        assert counters(own, ve)["disk"]["maxHeld"] >= full["held"]
        os.kill(own.daemon_pid(), 15)
        with contextlib.suppress(FileNotFoundError):
            eventually(lambda: not _serves(own), "the daemon stays")
        assert counters(own, ve)["disk"]["maxHeld"] >= full["held"]
        assert counters(own, ve)["inodes"]["held"] > 0
        own("stop", "--kill", ve)
        own("start", ve)
        assert counters(own, ve)["disk"]["maxHeld"] < full["held"]


def _serves(own):
    try:
        own.daemon_pid()
    except ConnectionRefusedError:
        return False
    return True
