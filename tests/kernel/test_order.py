# SPDX-License-Identifier: GPL-2.0-or-later
"""The order in which VEs start with the host and stop with it, and how long all of that may take."""

import re

import pytest

from tests.kernel.conftest import eventually
from tests.kernel.test_lifecycle import NOTIFIER

# It has a handler for the signal that asks it to end, and goes on.
STUBBORN = "sh -c 'trap : TERM; while :; do sleep 0.1; done'"


@pytest.fixture(scope="module")
def host(make_instance):
    """A vemgr with no VEs but those of these tests: db, app after it, web after both."""
    with make_instance() as vemgr:
        vemgr.config.write_text(f"{vemgr.config.read_text()}stop-deadline = 9\n")
        vemgr.kill(vemgr.daemon_pid())
        vemgr("create", "web", "--template", "bb", "--after", "app", "--after", "db")
        vemgr("create", "app", "--template", "bb", "--after", "db")
        vemgr("create", "db", "--template", "bb")
        yield vemgr


def began(vemgr):
    """Who has started, in this order, since the last call."""
    events = [line.split()[2] for line in vemgr.out("events").splitlines() if line.split()[3] == "started"]
    new = events[getattr(vemgr, "seen", 0):]
    vemgr.seen = len(events)
    return new


def test_a_circle_is_refused(host):
    refused = host("set", "db", "--after", "web", code=21)
    assert "it goes round: db after web after" in refused.stderr
    assert "x after y after x" in (host("create", "y", "--template", "bb", "--after", "x") and
                                   host("create", "x", "--template", "bb", "--after", "y", code=21).stderr)
    host("destroy", "y")
    host("rename", "app", "app2")
    assert "app2 after web" not in host("set", "app2", "--after", "web").stderr  # web comes after an app that is gone
    assert host("rename", "app2", "app", code=21).stderr.count("app after web after app")
    host("set", "app2", "--after", "db")
    host("rename", "app2", "app")


def test_all_start_and_stop_in_their_order(host):
    began(host)
    host("start", "--all")
    assert began(host) == ["db", "app", "web"]
    assert host.out("stop", "--all").split("\n")[:3] == ["web: clean", "app: clean", "db: clean"]


def test_a_stuck_one_takes_the_time_of_no_other(host):
    host("set", "web", "--init", STUBBORN, "--stop-timeout", "3600")
    host("start", "--all")
    web, *others = host.out("stop", "--all").splitlines()
    assert re.fullmatch(r"web: killed: [1-3](\.\d)? s passed", web) and others == ["app: clean", "db: clean"]
    host("set", "web", "--init", "default", "--stop-timeout", "default")


def test_with_the_host_and_after_one_that_is_never_up(host):
    host("destroy", "--force", "slow", code=None)  # of a first try
    host("create", "slow", "--template", "host", "--ready-timeout", "1", "--boot-priority", "9")
    host("start", "slow")
    host("stop", "--kill", "slow")
    root = host.state / "ve/slow/data/0/upper"
    (root / "systemd").write_text(NOTIFIER)
    (root / "systemd").chmod(0o755)
    host("set", "slow", "--init", "/systemd")
    host("set", "db", "--after", "slow")
    for name in ("slow", "db", "web"):
        host("set", name, "--on-boot", "yes")
    began(host)
    (host.run / "booted").unlink()
    host.kill(host.daemon_pid())
    eventually(lambda: host.state_of("web") == "running" and host.state_of("db") == "running", "web does not start",
               timeout=60)
    assert began(host) == ["slow", "db", "web"] and host.state_of("app") == "stopped"
    assert "VE db starts although VE slow, which it comes after, is not up" in (host.run / "daemon.log").read_text()
    eventually((host.run / "booted").exists, "the boot is not over")
    host("stop", "--all", "--kill")
    host.kill(host.daemon_pid())
    began(host)  # by a new daemon: of the killed one's last events some may not be written down
    assert {ve["state"] for ve in host.json("list")} == {"stopped"}
    assert host("start", "--all", code=133).stderr.count("has not said within 1 s") == 1
    assert began(host) == ["slow", "db", "app", "web"]  # and nothing by the new daemon, as this is the same boot
    host("stop", "--all", "--kill")
    host("destroy", "slow")
