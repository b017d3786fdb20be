# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory and swap limits: whom they hit, whom they leave alone, and how they shrink."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MIB = 1 << 20
# Takes so many MiB, says so, and waits for the end of its input.
HOLD = "import sys; data = bytearray(b'x') * (int(sys.argv[1]) << 20); print('held', flush=True); sys.stdin.read()"


def python(mib):
    return "/usr/bin/python3", "-c", HOLD, str(mib)


def hold(ve, mib):
    """A process in the VE that has `mib` MiB of anonymous memory."""
    process = ve.spawn(*python(mib), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == "held\n", process.communicate()
    return process


def release(process):
    """How it ended: it is told to, and returns 0, unless something killed it before."""
    process.communicate("")
    return process.returncode


def host_kills():
    for line in Path("/proc/vmstat").read_text().splitlines():
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return 0


def test_a_ve_that_takes_too_much_is_killed_inside_and_nobody_else(make_ve, vemgr):
    greedy, neighbour = make_ve("greedy", template="host", memory="64M"), make_ve("neighbour", template="host")
    bystander = hold(neighbour, 32)
    here = subprocess.Popen([sys.executable, "-c", HOLD, "32"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            text=True)
    with here:
        assert here.stdout.readline() == "held\n"
        pids = {name: ve["pid"] for name, ve in vemgr.list().items()}
        kills = host_kills()

        assert greedy.exec(*python(128), status=None).returncode == 128 + 9

        assert host_kills() == kills + 1
        assert greedy.table("memory.events")["oom_kill"] == 1
        assert neighbour.table("memory.events")["oom_kill"] == 0
        here.stdin.close()
        assert here.wait() == 0
    assert release(bystander) == 0
    assert {name: ve["pid"] for name, ve in vemgr.list().items()} == pids, "the VEs themselves run on"
    assert greedy.exec("echo", "alive").stdout == "alive\n"

    greedy.set(memory="192M")
    process = hold(greedy, 128)
    assert greedy.number("memory.current") > 128 * MIB
    assert release(process) == 0


def test_a_limit_below_usage_gives_up_page_cache_and_kills_nobody(make_ve, figure):
    ve = make_ve("cached", template="host", memory="512M")
    process = hold(ve, 16)
    ve.exec("dd", "if=/dev/zero", "of=/root/file", "bs=1M", "count=160", "conv=fsync")
    before = ve.number("memory.current")
    assert before > 160 * MIB

    ve.set(memory="64M")

    figure(f"{before // MIB}M in use, mostly page cache, shrank to {ve.number('memory.current') // MIB}M")
    assert ve.number("memory.current") <= 64 * MIB
    assert (ve.read("memory.max"), ve.read("memory.high")) == (str(64 * MIB), "max")
    assert ve.in_force("memory") == "64M"
    assert ve.table("memory.events")["oom_kill"] == 0
    assert release(process) == 0


def test_a_limit_below_what_cannot_be_reclaimed_is_refused(make_ve):
    ve = make_ve("full", template="host", memory="256M")  # and with a memory limit no swap, unless asked for
    process = hold(ve, 128)

    refused = ve.set(memory="64M", status=6)

    assert "memory cannot be limited to 64M" in refused.stderr
    assert "the old limit stays in force" in refused.stderr
    assert (ve.read("memory.max"), ve.read("memory.high")) == (str(256 * MIB), "max")
    assert ve.in_force("memory") == ve.show()["settings"]["memory"] == "256M"
    assert ve.definition()["settings"]["memory"] == "256M"
    assert ve.table("memory.events")["oom_kill"] == 0
    assert release(process) == 0
    ve.set(memory="64M")
    assert ve.in_force("memory") == "64M"


@pytest.fixture
def swap():
    """Some swap of the host; without any, a limit on it shows nothing."""
    file = Path("/var/tmp/vemgr-test.swap")
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        for _ in range(256):
            os.write(descriptor, bytes(MIB))
        os.fsync(descriptor)
        subprocess.run(["mkswap", file], check=True, capture_output=True)
        done = subprocess.run(["swapon", file], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no swap file can be had on this host: {done.stderr}")
        yield
        subprocess.run(["swapoff", file], check=True)
    finally:
        os.close(descriptor)
        file.unlink()


def test_swap_is_what_was_asked_for(make_ve, swap, figure):
    ve = make_ve("swapping", template="host", memory="64M")
    assert ve.in_force("swap") == "0"
    assert ve.exec(*python(96), status=None).returncode == 128 + 9, "no swap is the default under a memory limit"

    ve.set(swap="128M")
    process = hold(ve, 128)
    used, swapped = ve.number("memory.current"), ve.number("memory.swap.current")
    figure(f"128M held with --memory 64M --swap 128M: {used // MIB}M in memory, {swapped // MIB}M in swap")
    assert used <= 64 * MIB
    assert 48 * MIB <= swapped <= 128 * MIB
    # What memory.reclaim can push out to swap is no reason to refuse.
    ve.set(memory="48M")
    assert ve.number("memory.current") <= 48 * MIB
    assert release(process) == 0
    assert ve.exec(*python(256), status=None).returncode == 128 + 9, "swap is bounded, too"
