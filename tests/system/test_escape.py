# SPDX-License-Identifier: GPL-2.0-or-later
"""Ways out that need all controllers, or a setting of the whole host: see tests/kernel/escape for the others."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

PATTERN = Path("/proc/sys/kernel/core_pattern")


@pytest.fixture
def handler(tmp_path):
    """A program that gets the cores of this host; yields where it puts them."""
    program, cores = tmp_path / "handler", tmp_path / "cores"
    cores.mkdir()
    program.write_text(f"#!/bin/sh\ncat > {cores}/$1\n")
    program.chmod(0o755)
    before = PATTERN.read_text()
    PATTERN.write_text(f"|{program} %P")
    yield cores
    PATTERN.write_text(before)


def test_cores_of_a_ve_do_not_reach_the_hosts_handler(make_ve, handler, until):
    ve = make_ve("cores")
    # Whatever limit its root sets: 1, which is the kernel's word for none, is the most.
    crash = "ulimit -Hc; ulimit -c unlimited 2>/dev/null; sh -c 'kill -SEGV $$'; echo crashed"
    assert "crashed" in ve.exec("sh", "-c", crash).stdout
    control = subprocess.Popen(["sh", "-c", "ulimit -c unlimited; kill -SEGV $$"])
    control.wait()
    assert control.returncode == -signal.SIGSEGV
    # Its core comes after the VE's would have come.
    assert until(lambda: (handler / str(control.pid)).exists() and os.listdir(handler)) == [str(control.pid)]


def test_limits_are_the_hosts_to_set(make_ve):
    ve = make_ve("limits", pids="50", memory="64M")
    listing = "cd /sys/fs/cgroup; for f in *; do test -f $f && ( : >> $f ) 2>/dev/null && echo $f; done; true"
    writable = set(ve.exec("sh", "-c", listing).stdout.split())
    assert writable == {"cgroup.procs", "cgroup.threads", "cgroup.subtree_control"}
    assert {"pids.max", "memory.max", "cpu.max", "io.max", "cgroup.max.descendants"} <= set(os.listdir(ve.group))
    # Those of a cgroup of its own below are its to set; they count on top of ours.
    ve.exec("sh", "-c", "mkdir /sys/fs/cgroup/own && echo $$ > /sys/fs/cgroup/own/cgroup.procs && "
                        "echo +pids > /sys/fs/cgroup/cgroup.subtree_control; "
                        "echo max > /sys/fs/cgroup/own/pids.max; true")
    assert ve.number("pids.max") == 50 and ve.number("memory.max") == 64 << 20


def test_a_fork_bomb_meets_its_limit(make_ve, until):
    ve = make_ve("bomb", pids="60")
    ve.spawn("sh", "-c", "bomb() { bomb | bomb & }; bomb")
    until(lambda: ve.table("pids.events")["max"] > 0, what="the limit to be met")
    assert ve.number("pids.current") <= 60
    subprocess.run(["true"], check=True)
