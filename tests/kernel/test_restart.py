# SPDX-License-Identifier: GPL-2.0-or-later
"""VEs that end by themselves: which of them are started again, and for how long that is tried."""

import os
import signal

import pytest

from tests.kernel.conftest import eventually, is_alive


@pytest.fixture(scope="module")
def host(make_instance):
    """A vemgr that gives up after two restarts."""
    with make_instance() as vemgr:
        vemgr.config.write_text(f"{vemgr.config.read_text()}restart-limit = 2\n")
        vemgr.kill(vemgr.daemon_pid())
        yield vemgr


@pytest.fixture
def make(host):
    """Create a VE with an init that lives as long as nobody makes it end, or another, and start it."""
    made = []

    def make(policy, init="", *, start=True):
        name = host.create("--restart", policy, *(["--init", init] if init else []))
        made.append(name)
        if start:
            host("start", name)
        return name
    yield make
    host("destroy", "--force", *made)


def kinds(host, name):
    return [line.split()[3] for line in host.out("events", name).splitlines()]


def crash(host, name):
    """Returns the pid that it had."""
    pid = host.show(name)["pid"]
    os.kill(pid, signal.SIGKILL)
    return pid


def comes_back(host, name, pid):
    return eventually(lambda: (shown := host.show(name))["state"] == "running" and shown["pid"] != pid and shown,
                      lambda: host.out("events", name), timeout=60)


def test_it_comes_back_and_is_given_up_in_the_end(host, make):
    name = make("on-failure", "sh -c 'exit 3'", start=False)
    host("start", name)
    eventually(lambda: "gave-up" in kinds(host, name), lambda: host.out("events", name), timeout=60)
    assert kinds(host, name) == ["created", *2 * ["started", "crashed", "restarting"], "started", "crashed", "gave-up"]
    assert "after 2 restarts within 600 s" in host.out("events", name)
    assert "2, given up\n" in host.out("show", name)
    assert host.show(name)["lastExit"] == "exited with 3" and host.show(name)["givenUp"]
    host("set", name, "--init", "default")
    host("start", name)  # somebody has mended it: what was tried before does not count
    assert host.show(name)["restarts"] == 0
    crash(host, name)
    eventually(lambda: host.show(name)["restarts"] == 1, "no restart", timeout=60)


def test_a_stop_or_a_destroy_ends_it(host, make):
    name = make("on-failure")
    crash(host, name)
    eventually(lambda: host.show(name)["restarts"] == 1, "no restart", timeout=60)
    pid = comes_back(host, name, 0)["pid"]
    crash(host, name)
    eventually(lambda: host.show(name)["restartIn"] >= 0 or host.show(name)["pid"] not in (0, pid), "no restart")
    said = host.out("stop", name, code=None)
    assert said in (f"{name}: not restarted: killed by signal 9\n", f"{name}: clean\n")
    assert host.state_of(name) == "stopped" and host.show(name)["restarts"] == 0
    host("start", name)
    crash(host, name)
    host("destroy", "--force", name)
    host("create", name, "--template", "bb", "--restart", "on-failure")
    assert host.show(name)["restarts"] == 0 and host.state_of(name) == "stopped"


def test_what_was_tried_survives_the_daemon(host, make):
    name = make("on-failure")
    pid = crash(host, name)
    eventually(lambda: host.show(name)["restarts"] == 1, "no restart", timeout=60)
    host.kill(host.daemon_pid())
    comes_back(host, name, pid)
    assert host.show(name)["restarts"] == 1
    pid = host.show(name)["pid"]
    host.kill(host.daemon_pid())  # and what ends while there is no daemon is found by the next
    os.kill(pid, signal.SIGKILL)
    comes_back(host, name, pid)
    assert host.show(name)["restarts"] == 2


def test_the_keeper_takes_its_ves_along_and_they_come_back(host, make):
    name = make("on-failure")
    pid = host.show(name)["pid"]
    host.kill(host.keeper_pid())
    comes_back(host, name, pid)


def test_which_ends_count(host, make):
    cases = [("no", "kill -9 -1; exit 1", False), ("on-failure", "exit 0", False), ("on-failure", "poweroff -f", False),
             ("always", "exit 0", True), ("always", "poweroff -f", False), ("always", "reboot -f", True)]
    names = [make(policy, f"sh -c 'while ! [ -e /end ]; do sleep 0.05; done; rm /end; {end}; sleep 9'")
             for policy, end, _ in cases]
    pids = [host.show(name)["pid"] for name in names]
    for name in names:
        host("exec", name, "--", "touch", "/end")
    for pid in pids:
        eventually(lambda pid=pid: not is_alive(pid), "it does not end", timeout=60)
    for name, pid, (_, end, back) in zip(names, pids, cases, strict=True):
        eventually(lambda name=name: len(kinds(host, name)) > 2, "its end is not told", timeout=60)
        if back:
            comes_back(host, name, pid)
            assert host.show(name)["restarts"] == ("reboot" not in end)
        else:
            shown = host.show(name)
            assert (shown["state"], shown["restarts"], shown["restartIn"]) == ("stopped", 0, -1), end
            assert kinds(host, name)[2:] in (["crashed"], ["stopped"]), end
