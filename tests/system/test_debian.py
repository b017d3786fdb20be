# SPDX-License-Identifier: GPL-2.0-or-later
"""A real workload: Debian with its own systemd in a VE, nginx installed through NAT, limits changed under load."""

import http.client
import threading
from pathlib import Path

import pytest

ARCHIVE = Path("/opt/vemgr-templates/debian-12.tar")
CHANGES = [
    {"cpus": "1"}, {"memory": "256M"}, {"pids": "100"}, {"cpu_weight": "300"}, {"io_write": "20M/s"},
    {"cpu_mask": "0"}, {"memory": "128M"}, {"iops_read": "500"}, {"cpu_mask": "default"}, {"cpus": "unlimited"},
]


@pytest.fixture(scope="module")
def debian(vemgr, module_ves, until, cannot):
    """A VE from the Debian template whose systemd has come up."""
    if ARCHIVE.exists():
        vemgr("template", "import", "debian-12", ARCHIVE)
    else:
        vemgr("template", "build", "debian-12", timeout=900)
    try:
        ve = module_ves("deb", template="debian-12")

        def state():
            return ve.exec("systemctl", "is-system-running", status=None).stdout.strip()

        until(lambda: state() in ("running", "degraded"), 120, "systemd in the VE comes up")
        yield ve
        ve.destroy()
    finally:
        vemgr("template", "remove", "debian-12", status=None)


def test_its_systemd_boots(debian, figure):
    failed = debian.exec("systemctl", "--failed", "--plain", "--no-legend").stdout
    state = debian.exec("systemctl", "is-system-running", status=None).stdout.strip()
    figure(f"systemd is {state}; failed units: {failed.split() or 'none'}")
    assert debian.exec("cat", "/proc/1/comm").stdout == "systemd\n"
    assert debian.exec("systemctl", "is-active", "basic.target", "dbus.socket").stdout == "active\nactive\n"
    # In its own process and user namespace, and nothing of the host's in sight.
    assert "vemgr-keeper" not in debian.exec("ps", "-eo", "comm").stdout
    assert debian.exec("hostname").stdout == "deb\n"


def test_its_console_has_its_own_getty(debian, vemgr, until):
    until(lambda: "deb login:" in vemgr("logs", "deb").stdout, 60, "the console shows the getty")


@pytest.mark.timeout(600)
def test_nginx_answers_while_limits_change(debian, vemgr, until, figure):
    debian.exec("apt-get", "update", timeout=300)
    debian.exec("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "--no-install-recommends",
                "nginx-light", timeout=400)
    until(lambda: debian.exec("systemctl", "is-active", "nginx", status=None).stdout == "active\n", 60)
    address = vemgr.list()["deb"]["address"]
    over, answers, errors = threading.Event(), [], []

    def ask():
        while not over.is_set():
            connection = http.client.HTTPConnection(address, 80, timeout=20)
            try:
                connection.request("GET", "/")
                reply = connection.getresponse()
                answers.append((reply.status, b"Welcome to nginx" in reply.read()))
            except OSError as error:
                errors.append(error)
            finally:
                connection.close()

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        until(lambda: len(answers) > 3 or errors, 30, "answers")
        for change in CHANGES:
            before = len(answers)
            debian.set(**change)
            ((key, value),) = change.items()
            if value != "default":
                assert debian.in_force(key.replace("_", "-")) == value
            until(lambda before=before: len(answers) > before or errors, 30, f"an answer after {change}")
    finally:
        over.set()
        asker.join()
    figure(f"{len(answers)} requests answered, {len(errors)} failed, during {len(CHANGES)} live changes")
    assert errors == []
    assert set(answers) == {(200, True)}
    assert debian.table("memory.events")["oom_kill"] == 0


def test_it_stops_when_asked(debian, vemgr):
    assert vemgr("stop", "deb", "--timeout", "60").stdout == "deb: clean\n"
    assert vemgr.list()["deb"]["state"] == "stopped"
