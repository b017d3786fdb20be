# SPDX-License-Identifier: GPL-2.0-or-later
"""Disk limits, measured by the program that meets them and by what arrives at the disk."""

import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

MIB = 1 << 20
SECONDS = re.compile(r" copied, ([0-9.]+) s")
# What is to be met: setting, how much of it the VE gets, and how it uses it. The file is there before, so that what is
# measured is its data and not the making of it.
KINDS = {
    "write-direct": ({"io_write": "2M/s"}, ["of=/root/file", "if=/dev/zero", "oflag=direct", "bs=256k", "count=96"]),
    "write-buffered": ({"io_write": "2M/s"}, ["of=/root/file", "if=/dev/zero", "conv=notrunc,fsync", "bs=1M",
                                             "count=24"]),
    "read-direct": ({"io_read": "2M/s"}, ["if=/root/file", "of=/dev/null", "iflag=direct", "bs=256k", "count=96"]),
    "ops-write": ({"iops_write": "100"}, ["of=/root/file", "if=/dev/zero", "conv=notrunc", "oflag=direct", "bs=4k",
                                          "count=1200"]),
    "ops-read": ({"iops_read": "100"}, ["if=/root/file", "of=/dev/null", "iflag=direct", "bs=4k", "count=1200"]),
}


def copy(ve, words):
    """Run dd in the VE; its own seconds."""
    done = ve.exec("env", "LC_ALL=C", "dd", *words)
    return float(SECONDS.search(done.stderr)[1])


@pytest.fixture(scope="module")
def measured(vemgr, module_ves):
    """What every kind of limit gave, {kind: (seconds, what the disk saw)}; all at once, as each has a VE of its own."""
    ves = {kind: module_ves(kind, template="host", memory="128M") for kind in KINDS}

    def prepare(kind):
        copy(ves[kind], ["if=/dev/zero", "of=/root/file", "bs=1M", "count=24", "conv=fsync"])

    def measure(kind):
        before = ves[kind].io()
        seconds = copy(ves[kind], KINDS[kind][1])
        after = ves[kind].io()
        (device,) = {line.split()[0] for line in ves[kind].read("io.max").splitlines()}
        seen = {key: after[device][key] - before.get(device, {}).get(key, 0) for key in after[device]}
        return seconds, seen

    with ThreadPoolExecutor(len(ves)) as pool:
        # All files are there before the first limit is: what one VE waits for may lie in a block that another, slowed
        # down, has to write.
        list(pool.map(prepare, ves))
        list(pool.map(lambda kind: ves[kind].set(**KINDS[kind][0]), ves))
        return dict(zip(ves, pool.map(measure, ves), strict=True))


@pytest.mark.parametrize("kind", ["write-direct", "write-buffered", "read-direct"])
def test_a_limit_on_bytes_holds(measured, kind, figure):
    seconds, seen = measured[kind]
    rate = 24 / seconds
    arrived = seen["rbytes" if kind.startswith("read") else "wbytes"]
    figure(f"2M/s gave {rate:.3f} MiB/s over {seconds:.1f} s; {arrived / MIB:.1f} MiB seen on the limited disk")
    assert rate == pytest.approx(2, rel=0.1)
    assert arrived == pytest.approx(24 * MIB, rel=0.05), "the limit is on the disk where the data goes"


@pytest.mark.parametrize("kind", ["ops-write", "ops-read"])
def test_a_limit_on_operations_holds(measured, kind, figure):
    seconds, seen = measured[kind]
    rate = 1200 / seconds
    arrived = seen["rios" if kind.endswith("read") else "wios"]
    figure(f"100 operations/s gave {rate:.1f} over {seconds:.1f} s; {arrived} seen on the limited disk")
    assert rate == pytest.approx(100, rel=0.1)
    assert arrived == pytest.approx(1200, rel=0.05)


def test_a_limit_changes_under_way(make_ve, until, figure):
    ve = make_ve("changing", template="host", io_write="1M/s")
    ve.spawn("sh", "-c", "while :; do dd if=/dev/zero of=/root/file oflag=direct bs=128k count=256 conv=notrunc; done")
    (device,) = {line.split()[0] for line in ve.read("io.max").splitlines()}

    def written():
        return ve.io().get(device, {}).get("wbytes", 0)

    until(lambda: written() > MIB, 30, "the VE writes")

    def rate(seconds):
        def look():
            return time.monotonic(), written()

        time.sleep(1)
        (began, before), _, (ended, after) = look(), time.sleep(seconds), look()
        return (after - before) / (ended - began) / MIB

    first = rate(5)
    ve.set(io_write="4M/s")
    second = rate(5)
    ve.set(io_write="unlimited")
    third = rate(2)
    figure(f"1M/s gave {first:.2f} MiB/s, then 4M/s {second:.2f}, then unlimited {third:.1f}")
    assert first == pytest.approx(1, rel=0.15)
    assert second == pytest.approx(4, rel=0.15)
    assert third > 8


def queue_of(ve_root):
    """The directory /sys/block/X/queue of the disk under a path."""
    number = subprocess.run(["findmnt", "--noheadings", "--output", "MAJ:MIN", "--target", ve_root],
                            capture_output=True, text=True, check=True).stdout.strip()
    device = Path("/sys/dev/block", number).resolve()
    return next((d / "queue" for d in (device, device.parent) if (d / "queue/scheduler").exists()), None)


def test_a_weight_is_refused_unless_something_enforces_it(make_ve, vemgr, cannot):
    queue = queue_of("/var/lib/vemgr")
    if queue is None:
        cannot("no disk with a scheduler stands directly behind /var/lib/vemgr")
    scheduler = queue / "scheduler"
    before = re.search(r"\[(.+)\]", scheduler.read_text())[1]
    assert before != "bfq", "the test needs a host that does not use BFQ"

    refused = vemgr("create", "weighty", "--template", "busybox", "--io-weight", "300", status=5)
    assert "neither BFQ nor io.cost is active" in refused.stderr
    assert "bfq > /sys/block/" in refused.stderr, "and what to do about it"
    assert "weighty" not in vemgr.list()

    subprocess.run(["modprobe", "bfq"], capture_output=True)
    if "bfq" not in scheduler.read_text():
        cannot("this kernel has no BFQ")
    scheduler.write_text("bfq")
    try:
        ve = make_ve("weighty", io_weight=300)
        assert ve.in_force("io-weight") == "300"
        ve.set(io_weight=500)
        assert ve.in_force("io-weight") == "500"
        assert ve.read("io.bfq.weight").splitlines()[0].split()[-1] == "500"
    finally:
        scheduler.write_text(before)
