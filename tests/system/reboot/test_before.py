# SPDX-License-Identifier: GPL-2.0-or-later
"""The first half, before the reboot: from a checkout to running VEs by scripts/quickstart, as README.md tells."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.system.reboot import services

PROJECT = Path(__file__).parents[3]
NOTES = Path("/root/before-reboot.json")
WHEELS = Path("/opt/vemgr-wheels")
# Says how it was asked to end, in a file of its VE.
ORDERLY = """sh -c 'trap "echo asked >/root/end; sync; exit" TERM; while :; do sleep 0.2; done'"""


def quickstart():
    # In the test VM, PyPI may be out of reach; with a network of its own a machine takes the same from there.
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(WHEELS)} if WHEELS.is_dir() else {}
    began = time.monotonic()
    done = subprocess.run([PROJECT / "scripts/quickstart"], capture_output=True, text=True, stdin=subprocess.DEVNULL,
                          env=os.environ | offline, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, time.monotonic() - began


@pytest.mark.timeout(900)
def test_quickstart_makes_a_running_ve(command, figure):
    said, seconds = quickstart()
    NOTES.write_text(json.dumps({"quickstart": seconds}))
    figure(f"quickstart took {seconds:.0f} s")
    assert "vemgr create first --template host --cpus 0.5 --memory 256M --pids 200" in said
    assert "cannot enforce limits" not in said
    address = command.list()["first"]["address"]
    assert f"inet {address}" in said or address in said
    assert command.list()["first"]["state"] == "running"
    shown = json.loads(command("show", "--json", "first").stdout)["inForce"]
    assert {key: shown[key] for key in ("cpus", "memory", "pids")} == {"cpus": "0.5", "memory": "256M", "pids": "200"}
    assert command("exec", "first", "--", "hostname").stdout == "first\n"


@pytest.mark.timeout(900)
def test_quickstart_again_does_no_harm(command, figure):
    before = command.list()
    _, seconds = quickstart()
    figure(f"and again {seconds:.0f} s")
    assert command.list() == before
    assert seconds < json.loads(NOTES.read_text())["quickstart"], "what is installed is not installed again"
    assert seconds < 60


@pytest.mark.timeout(900)
def test_services_serve_each_other_and_keep_their_data(command, until, systemctl, figure):
    services.make(command)
    began = time.monotonic()
    command("start", "--all", timeout=400)
    assert {name: command("exec", name, "--", "systemctl", "is-system-running", "--wait", timeout=200).stdout
            for name in services.NAMES} == dict.fromkeys(services.NAMES, "running\n")
    figure(f"three VEs with systemd were running after {time.monotonic() - began:.0f} s")
    services.configure(command)
    until(lambda: services.sql(command, "select 1", status=None) == "1\n", 120, "PostgreSQL answers")
    services.sql(command, "create table words (word text)")
    services.sql(command, "insert into words values (42)")
    services.inside(command, "web", "redis-cli -h cache set word kept")
    assert services.answers(command, until) == services.WHOLE

    pids = services.pids(command)
    systemctl("restart", "vemgr")
    assert services.pids(command) == pids and services.answers(command, until) == services.WHOLE


@pytest.mark.timeout(600)
def test_services_stop_cleanly_in_their_time(command, until):
    said = command("stop", *reversed(services.NAMES), timeout=400).stdout.splitlines()
    assert sorted(said) == sorted(f"{name}: clean" for name in services.NAMES)
    command("start", *services.NAMES, timeout=400)
    assert services.answers(command, until) == services.WHOLE


def test_ves_for_the_reboot(command):
    command("create", "boots", "--template", "host", "--on-boot", "yes", "--memory", "96M", "--pids", "40")
    command("create", "asked", "--template", "host", "--init", ORDERLY)
    command("create", "idle", "--template", "host", "--cpus", "0.3")
    command("start", "boots", "asked")
    command("exec", "boots", "--", "sh", "-c", "echo kept >/root/file; sync")
    listed = command.list()
    assert {name: ve["state"] for name, ve in listed.items()} == {
        "first": "running", "boots": "running", "asked": "running", "idle": "stopped",
        **dict.fromkeys(services.NAMES, "running")}
    definitions = {str(path): path.read_text() for path in sorted(Path("/var/lib/vemgr/ve").glob("*/*.toml"))}
    assert len(definitions) == 7
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    NOTES.write_text(json.dumps({"boot": boot, "list": listed, "definitions": definitions}))
