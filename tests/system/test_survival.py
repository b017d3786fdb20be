# SPDX-License-Identifier: GPL-2.0-or-later
"""What is left of 20 VEs when the daemon is killed (all), and when the keeper is (definitions, and no litter)."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.system.conftest import RUN

NAMES = [f"many{number:02}" for number in range(20)]


def without_elements(rules):
    """A ruleset less what its sets hold, which comes and goes with the VEs."""
    return re.sub(r"\s*elements = \{[^}]*\}", "", rules)


@pytest.fixture(scope="module")
def many(vemgr):
    """Twenty running VEs, some of them with limits."""
    vemgr("create", *NAMES, "--template", "busybox", "--memory", "64M", "--pids", "50")
    try:
        vemgr("start", *NAMES)
        yield
    finally:
        vemgr("destroy", "--force", *(set(NAMES) & set(vemgr.list())))


@pytest.fixture
def open_exec(vemgr, many):
    """A command in a VE that says hello, waits for a line, and ends with 7."""
    process = subprocess.Popen([vemgr.program, "exec", NAMES[3], "--", "sh", "-c", "echo hello; read x; exit $x"],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "hello\n"
        yield process
        process.kill()


def test_the_daemon_is_killed(vemgr, open_exec, systemctl, main_pid, until):
    before = vemgr.list()
    assert {before[name]["state"] for name in NAMES} == {"running"}
    old, keeper = main_pid("vemgr"), main_pid("vemgr-keeper")

    os.kill(old, signal.SIGKILL)
    until(lambda: main_pid("vemgr") not in (0, old), 60, "systemd starts a new daemon")
    assert {ve["name"]: ve for ve in json.loads(vemgr("list", "--json").stdout)} == before
    systemctl("restart", "vemgr")
    assert vemgr.list() == before, "same states, same addresses, same processes"
    assert main_pid("vemgr-keeper") == keeper

    assert open_exec.poll() is None, "the open exec goes on"
    ended, _ = open_exec.communicate("7\n", timeout=30)
    assert (open_exec.returncode, ended) == (7, "")

    ve = NAMES[5]
    vemgr("exec", ve, "--", "sh", "-c", "exit 5", status=5)
    vemgr("set", ve, "--pids", "40")
    vemgr("suspend", ve)
    systemctl("restart", "vemgr")
    assert vemgr.list()[ve]["state"] == "suspended"
    vemgr("resume", ve)
    # Stop and destroy work on what the new daemon has only found.
    assert vemgr("stop", ve).stdout == f"{ve}: clean\n"
    assert vemgr.list()[ve]["state"] == "stopped"
    vemgr("destroy", "--force", NAMES[6])
    assert NAMES[6] not in vemgr.list()
    vemgr("start", ve)
    assert {found["pid"] for name, found in vemgr.list().items() if name not in NAMES[5:7]} == {
        found["pid"] for name, found in before.items() if name not in NAMES[5:7]}


def test_a_ve_that_ends_while_there_is_no_daemon_is_found_stopped(vemgr, many, systemctl, until):
    pid, others = vemgr.list()[NAMES[8]]["pid"], vemgr.list()[NAMES[9]]
    systemctl("stop", "vemgr.socket", "vemgr.service")
    os.kill(pid, signal.SIGKILL)
    systemctl("start", "vemgr.socket", "vemgr.service")
    until(lambda: vemgr.list()[NAMES[8]]["state"] == "stopped", 20)
    assert vemgr.list()[NAMES[9]] == others, "the others run on, also while there was no socket"
    vemgr("start", NAMES[8])


def test_the_keeper_is_killed(vemgr, many, main_pid, until, traces):
    running = {name: ve["pid"] for name, ve in vemgr.list().items() if ve["state"] == "running"}
    assert len(running) >= 18
    before = traces()
    old, daemon = main_pid("vemgr-keeper"), main_pid("vemgr")

    os.kill(old, signal.SIGKILL)

    until(lambda: main_pid("vemgr-keeper") not in (0, old), 120, "systemd starts a new keeper")
    until(lambda: {ve["state"] for ve in vemgr.list().values()} == {"stopped"}, 30, "the daemon notes the ends")
    assert not [pid for pid in running.values() if Path(f"/proc/{pid}").exists()], "its VEs end with it"
    assert main_pid("vemgr") == daemon, "the daemon goes on"
    assert '"lastExit": "ended with the keeper"' in vemgr("show", "--json", NAMES[0]).stdout
    assert traces().cgroups_of_ves == set()
    until(lambda: not traces().links_of_ves, 20, "their links go with them")
    after = traces()
    # What their links were attached to is noted as long as they run.
    attached = {f"{RUN}/network/{name}" for name in running}
    assert attached <= before.files
    assert after.files == before.files - attached
    assert after.mounts == before.mounts
    assert without_elements(after.rules) == without_elements(before.rules)
    assert not re.search(r"\bve[0-9a-z]{10,}", after.rules), "no element of a set speaks of a VE's link"
    # Nothing of each VE: the rest is the connection to a keeper that has gone and one to its successor.
    assert abs(after.descriptors["vemgr"].total() - before.descriptors["vemgr"].total()) <= 1

    vemgr("start", *running)
    assert {ve["state"] for name, ve in vemgr.list().items() if name in running} == {"running"}
    assert vemgr("exec", NAMES[0], "--", "echo", "again").stdout == "again\n"
    # The limits of the definitions are in force in the new keeper's cgroups, too.
    assert '"pids": "50"' in vemgr("show", "--json", NAMES[0]).stdout
    vemgr("stop", *running, "--kill")
    assert traces().cgroups_of_ves == set()
