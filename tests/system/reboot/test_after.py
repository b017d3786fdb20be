# SPDX-License-Identifier: GPL-2.0-or-later
"""The second half, after the reboot: what was defined is there, and what starts with the host runs."""

import json
import os
import subprocess
from ipaddress import ip_network
from pathlib import Path

import pytest

from tests.system.reboot import services

PROJECT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def notes():
    return json.loads(Path("/root/before-reboot.json").read_text())


def test_there_has_been_a_reboot(notes):
    assert Path("/proc/sys/kernel/random/boot_id").read_text() != notes["boot"]


def test_ves_that_start_with_the_host_run_and_no_others(command, until):
    # `web` waits until those are up that it comes after.
    until(lambda: "web" in command.list() and command.list()["web"]["state"] == "running", 240)
    assert {name: ve["state"] for name, ve in command.list().items()} == {
        "first": "stopped", "boots": "running", "asked": "stopped", "idle": "stopped",
        **dict.fromkeys(services.NAMES, "running")}


@pytest.mark.timeout(400)
def test_services_serve_each_other_as_before(command, until):
    until(lambda: command("exec", "web", "--", "systemctl", "is-system-running", "--wait", status=None,
                          timeout=200).stdout == "running\n", 200, "the last of them is up")
    assert services.answers(command, until) == services.WHOLE


def test_definitions_and_data_are_kept(command, notes):
    for path, text in notes["definitions"].items():
        assert Path(path).read_text() == text
    for name, ve in command.list().items():
        assert ve["address"] == notes["list"][name]["address"]
    assert command("exec", "boots", "--", "cat", "/root/file").stdout == "kept\n"
    shown = json.loads(command("show", "--json", "boots").stdout)["inForce"]
    assert (shown["memory"], shown["pids"]) == ("96M", "40")


def test_ves_were_asked_to_end(command):
    command("start", "asked")
    assert command("exec", "asked", "--", "cat", "/root/end").stdout == "asked\n"


def test_its_network_works_again(command):
    address, gateway = command.list()["boots"]["address"], str(ip_network(command.host()["subnet"])[1])
    command("exec", "boots", "--", "ping", "-c1", "-W5", gateway)
    assert subprocess.run(["ping", "-c1", "-W5", address], capture_output=True).returncode == 0


def test_uninstall_takes_everything_back(command):
    done = subprocess.run([PROJECT / "scripts/uninstall", "--yes"], capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not Path("/opt/vemgr").exists()
    assert not list(Path("/etc/systemd/system").glob("**/vemgr*"))
    assert not Path("/run/vemgr").exists()
    assert "vemgr0" not in os.listdir("/sys/class/net")
    assert "vemgr" not in subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True).stdout
    assert not [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "vemgr" in line]
