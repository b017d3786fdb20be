# SPDX-License-Identifier: GPL-2.0-or-later
"""Ways out that need all controllers: see tests/kernel/escape for the others."""

import os


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
