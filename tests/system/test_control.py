# SPDX-License-Identifier: GPL-2.0-or-later
"""The control loop: what others change is put right, idle memory goes to who needs it, the policy is switched."""

from pathlib import Path

import pytest

MIB = 1 << 20
CONFIG = Path("/etc/vemgr/vemgr.toml")


def events(vemgr, kind):
    return [line for line in vemgr("scheduler", "events").stdout.splitlines() if f"  {kind}" in line]


def test_what_others_write_to_a_cgroup_is_put_right(make_ve, vemgr, until):
    ve = make_ve("meddled", cpus="0.5", memory="200M", memory_guarantee="64M")
    until(lambda: int((ve.group.parent / "memory.min").read_text()) >= 64 * MIB, what="protection above")
    (ve.group / "cpu.max").write_text("max 100000")
    (ve.group / "memory.max").write_text("max")
    (ve.group.parent / "memory.min").write_text("0")
    until(lambda: ve.read("cpu.max") == "50000 100000" and ve.number("memory.max") == 200 * MIB
          and int((ve.group.parent / "memory.min").read_text()) >= 64 * MIB, 60, "the limits are back")
    found = until(lambda: (lines := events(vemgr, "restored")) and len(lines) >= 3 and lines, what="events")
    assert any("cpu.max was max 100000, not 50000 100000: put right" in line for line in found)
    assert "cpu.max was" in vemgr("scheduler", "explain", ve.name).stdout


def test_a_limit_counts_as_promised_under_the_policy_guaranteed(make_ve, vemgr, until):
    ve = make_ve("policed", memory="64M")
    assert ve.read("memory.min") == "0"
    vemgr("scheduler", "policy", "guaranteed")
    try:
        assert ve.number("memory.min") == ve.number("memory.low") == 64 * MIB
        until(lambda: int((ve.group.parent / "memory.min").read_text()) >= 64 * MIB, what="protection above")
    finally:
        vemgr("scheduler", "policy", "balanced")
    assert ve.read("memory.min") == ve.read("memory.low") == "0"


@pytest.fixture
def short_of_memory(vemgr, systemctl):
    """A host that keeps nearly all memory for itself is always short of it."""
    assert not CONFIG.exists()
    CONFIG.parent.mkdir(exist_ok=True)
    CONFIG.write_text('[scheduler]\nreserve-memory = "99%/1M/999G"\novercommit-memory = 50\n')
    systemctl("restart", "vemgr")
    yield
    CONFIG.unlink()
    systemctl("restart", "vemgr")


def test_idle_memory_is_reclaimed_above_the_guarantee(short_of_memory, make_ve, vemgr, until):
    idle, safe = make_ve("idle"), make_ve("safe", memory_guarantee="128M")
    for ve in (idle, safe):
        ve.exec("dd", "if=/dev/zero", "of=/root/cache", "bs=1M", "count=96")
        ve.exec("sync")
    before = safe.number("memory.current")
    until(lambda: idle.number("memory.current") < 40 * MIB, 120, "idle memory is reclaimed")
    assert safe.number("memory.current") >= before * 0.95
    assert any("idle above its guarantee" in line for line in events(vemgr, "reclaimed"))
    assert not any("  safe  " in line for line in events(vemgr, "reclaimed"))


def test_a_disk_limit_and_a_cpu_mask_that_others_change_are_put_right(make_ve, vemgr, until):
    ve = make_ve("disked", io_write="1M", cpu_mask="0")
    before = ve.read("io.max")
    device = before.split()[0]
    assert "wbps=1048576" in before
    (ve.group / "io.max").write_text(f"{device} wbps=max rbps=4096")
    (ve.group / "cpuset.cpus").write_text("1")
    until(lambda: ve.read("io.max") == before and ve.read("cpuset.cpus") == "0", 60, "the limits are back")
    found = until(lambda: (lines := [line for line in events(vemgr, "restored") if "  disked  " in line])
                  and len(lines) >= 2 and lines, what="events")
    assert any("io.max was" in line and "put right" in line for line in found)
    assert "io.max = " in vemgr("scheduler", "explain", ve.name).stdout
