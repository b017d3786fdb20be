# SPDX-License-Identifier: GPL-2.0-or-later
"""vemgr in a VE: with the feature `nesting` and a volume for its state it makes VEs there."""

import json
import os
import sys

import pytest

from tests.kernel.conftest import ROOT

PREFIX = os.path.realpath(sys.prefix)


@pytest.fixture(scope="module")
def outer(vemgr):
    """A VE in which this vemgr is installed, as far as that is possible by looking at it."""
    vemgr("volume", "create", "nested")
    places = [f"{place}:{place}:ro" for place in (PREFIX, str(ROOT)) if not place.startswith("/usr/")]
    name = vemgr.create("--feature", "nesting", "--mount", "nested:/var/lib/vemgr",
                        *(word for place in places for word in ("--mount", place)), template="host")
    vemgr("start", name)
    yield name
    vemgr("destroy", "--force", name)
    vemgr("volume", "remove", "nested")


@pytest.fixture
def inside(vemgr, outer):
    def run(*words, code=0):
        return vemgr("exec", outer, "--", "env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "vemgr.cli", *words,
                     code=code)
    return run


def sh(inside, name, script, code=0):
    return inside("exec", name, "--", "sh", "-c", script, code=code).stdout


def test_a_ve_in_a_ve(vemgr, outer, inside):
    inside("create", "inner", "--template", "host")
    inside("start", "inner")
    assert sh(inside, "inner", "cat /proc/self/uid_map").split() == ["0", "0", "65536"]
    assert "vemgr.daemon" not in sh(inside, "inner", "ps -eo args")
    address = vemgr.show(outer)["address"]
    assert "1 received" in sh(inside, "inner", f"ping -c1 -W5 {address}")
    assert "1 received" in sh(inside, "inner", f"ping -c1 -W5 {address.rpartition('.')[0]}.1")
    sh(inside, "inner", "echo kept >/root/file && rm -r /usr/share/doc && mkdir -p /usr/share/doc/x")
    inside("restart", "--timeout", "5", "inner")
    assert sh(inside, "inner", "cat /root/file; ls /usr/share/doc") == "kept\nx\n"
    assert inside("stop", "inner").stdout == "inner: clean\n"
    inside("clone", "inner", "second")
    inside("push", "/etc/hostname", "second:/root/file")
    inside("start", "inner", "second")
    assert sh(inside, "second", "cat /root/file") == f"{outer}\n"
    inside("destroy", "--force", "inner")
    inside("destroy", "--force", "second")


def test_it_is_bounded_as_a_ve_is(vemgr, outer, inside):
    """Against what is around it, too, though its ids are the same."""
    vemgr("exec", outer, "--", "sh", "-c", "echo hidden >/root/secret")
    inside("create", "bound", "--template", "host", "--network", "none")
    inside("start", "bound")
    for act in ("cat /root/secret", "cat /proc/1/root/root/secret", "mknod /tmp/disk b 254 0",
                "mount -t proc proc /mnt", "umount /proc/kcore",
                "echo 1 >/proc/sys/kernel/panic", "ls /var/lib/vemgr/ve/bound", "ls /dev/.vemgr",
                # The nodes are those of the VE around, and so is their owner.
                "chmod 0 /dev/null", "chown 1000 /dev/zero", "touch -d @1 /dev/tty",
                "mount -o remount,bind,rw /dev/null"):
        assert inside("exec", "bound", "--", "sh", "-c", act, code=None).returncode != 0, act
    used = "echo x >/dev/null && head -c 1 /dev/zero | wc -c && grep ^0: /proc/self/cgroup"
    assert sh(inside, "bound", used) == "1\n0::/\n"
    inside("destroy", "--force", "bound")


def test_without_a_place_for_its_state_it_says_what_is_wrong(vemgr, outer):
    configuration = 'state-dir = "/root/state"\nrun-dir = "/run/other"\nbridge = "other0"\ntable = "other"\n'
    vemgr("exec", outer, "--", "tee", "/etc/other.toml", input=configuration)
    said = vemgr("exec", outer, "--", "env", f"PYTHONPATH={ROOT}", "VEMGR_CONFIG=/etc/other.toml", sys.executable, "-m",
                 "vemgr.cli", "list", code=None).stderr
    assert "on an overlay" in said and "--mount VOLUME" in said


def test_the_doctor_misses_nothing_that_is_not_needed_there(inside):
    found = {each["check"]: each for each in json.loads(inside("doctor", "--json", code=None).stdout)}
    assert [found[check]["level"] for check in ("capabilities", "id-mapped-layers")] == ["ok", "ok"], found


def test_nothing_is_left_when_the_ve_around_ends(vemgr, outer, inside):
    inside("create", "left", "--template", "host")
    inside("start", "left")
    vemgr("stop", "--kill", outer)
    assert not os.path.exists(f"{vemgr.cgroup}/ve/{outer}")
    vemgr("start", outer)
    assert [line.split()[:2] for line in inside("list").stdout.splitlines()[1:]] == [["left", "stopped"]]
    inside("start", "left")
    inside("destroy", "--force", "left")
