# SPDX-License-Identifier: GPL-2.0-or-later
"""`vemgr doctor` with a daemon and without, and firewalls of others that really are there."""

import json
import subprocess

import pytest


def by_check(vemgr, code=0):
    return {each["check"]: each for each in json.loads(vemgr.out("doctor", "--json", code=code))}


@pytest.fixture
def nft(vemgr):
    def run(*command):
        subprocess.run(["nsenter", f"--net=/run/netns/{vemgr.netns}", "nft", *command], check=True, timeout=20)

    yield run
    run("delete", "table", "ip", "filter")


def test_with_a_daemon(vemgr, running):
    found = by_check(vemgr)
    assert [found[check]["level"] for check in ("daemon", "keeper", "version", "kernel", "namespaces", "cgroup2",
                                                "leftovers", "addresses", "forwarding")] == ["ok"] * 9, running
    text = vemgr.out("doctor")
    assert " ok, " in text.splitlines()[-1] and "\nok " not in text
    assert "ok    daemon: the daemon runs\n" in vemgr.out("doctor", "--all")


def test_who_drops_what_is_forwarded(vemgr, nft):
    vemgr("list")
    nft("add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }")
    found = by_check(vemgr)["forward-policy"]
    assert found["level"] == "warn" and "ip filter FORWARD" in found["fact"]
    for command in found["remedy"].split("; "):  # it is a command, and it is enough
        nft(*command.split()[1:])


def test_without_a_daemon_none_is_started(make_instance):
    with make_instance(template=False) as own:
        found = by_check(own, code=None)
        assert found["daemon"]["level"] in ("warn", "fail") and found["kernel"]["level"] == "ok"
        assert not (own.run / "vemgr.sock").exists()
        own.config.write_text(own.config.read_text() + 'lxcfs = "require"\nlxcfs-dir = "/nonexistent"\n')
        assert by_check(own, code=5)["lxcfs"]["level"] == "fail"
