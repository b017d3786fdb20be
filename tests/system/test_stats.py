# SPDX-License-Identifier: GPL-2.0-or-later
"""`vemgr stats` where the kernel counts all that it shows."""

import json

MIB = 1 << 20


def counters(vemgr, ve):
    (found,) = json.loads(vemgr("stats", "--json", ve.name).stdout)
    return {row["resource"]: row for row in found["counters"]}


def test_limits_are_those_of_the_kernel_and_failures_are_counted(make_ve, vemgr, until):
    ve = make_ve("counted", cpus="0.5", memory="64M", pids="20", memory_guarantee="16M")
    before = counters(vemgr, ve)
    assert [before[key]["limit"] for key in ("memory", "pids")] == [ve.number("memory.max"), ve.number("pids.max")]
    assert before["memory"]["guarantee"] == 16 * MIB and before["cpus"]["limit"] == 500_000
    assert before["memory"]["failures"] == before["pids"]["failures"] == 0

    ve.exec("sh", "-c", "dd if=/dev/zero of=/dev/null bs=100M count=1", status=None)  # more than it may have
    ve.exec("sh", "-c", "for i in $(seq 40); do sleep 5 & done 2>/dev/null; wait", status=None)
    ve.exec("dd", "if=/dev/zero", "of=/root/file", "bs=1M", "count=8", "conv=fsync")
    after = until(lambda: (now := counters(vemgr, ve))["pids"]["failures"] > 0 and now, 30, "refused forks are counted")
    assert after["memory"]["failures"] > 0 and after["memory"]["maxHeld"] > 32 * MIB
    assert after["memory"]["maxHeld"] <= 64 * MIB and after["pids"]["maxHeld"] <= 20
    assert before["cpus"]["held"] < after["cpus"]["held"] <= ve.table("cpu.stat")["usage_usec"]
    assert after["io-write"]["held"] >= before["io-write"]["held"] + 8 * MIB
