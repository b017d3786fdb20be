# SPDX-License-Identifier: GPL-2.0-or-later
"""Readers of the kernel's files, against trees of plain files: cgroups, block devices, processes, /etc/subuid."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vemgr.kernel import blockdev
from vemgr.kernel.cgroups import CgroupTree, io_max_of, readings
from vemgr.kernel.devices import DEFAULT_RULES, DeviceRule, assemble
from vemgr.kernel.process import handles_signal, is_zombie, start_time
from vemgr.runtime.subids import foreign_ranges


@pytest.fixture
def tree(tmp_path):
    """As cgroup2 shows it; only the reading is tested here, since a plain file takes every write."""
    root = tmp_path / "cgroup"
    top = root / "vemgr"
    for directory in (root, top, top / "ve"):
        directory.mkdir()
        (directory / "cgroup.controllers").write_text("cpu io memory pids\n")
        (directory / "cgroup.subtree_control").write_text("cpu io memory pids\n")
    return CgroupTree(str(top))


def test_controllers_and_names(tree, tmp_path):
    assert tree.controllers == {"cpu", "io", "memory", "pids"}
    os.mkdir(f"{tree.base}/web2")
    os.mkdir(f"{tree.base}/web1")
    assert tree.names() == ["web1", "web2"]


def test_no_controllers(tmp_path):
    assert CgroupTree(str(tmp_path / "vemgr")).controllers == frozenset()


def test_readings(tree):
    directory = f"{tree.base}/web1"
    os.mkdir(directory)
    for name, text in (("memory.current", "4096\n"), ("pids.current", "3\n"), ("memory.max", "max\n"),
                       ("cpu.stat", "usage_usec 100\nuser_usec 60\n"), ("cgroup.events", "populated 1\nfrozen 0\n"),
                       ("pids.max", "50\n")):
        with open(f"{directory}/{name}", "w") as file:
            file.write(text)
    found = readings(tree["web1"])
    assert found == {"memory_current": 4096, "pids_current": 3, "cpu_stat": {"usage_usec": 100, "user_usec": 60}}
    assert tree["web1"].memory_max is None and tree["web1"].pids_max == 50
    assert tree.populated("web1") and not tree.populated("missing")
    assert tree["web1"].has("memory.max") and not tree["web1"].has("memory.reclaim")
    tree["web1"].pids_max = None
    with open(f"{directory}/pids.max") as file:
        assert file.read().startswith("max")
    with pytest.raises(OSError) as failure:
        tree["web1"].io_max = "x"
    assert os.fsdecode(failure.value.filename).endswith("web1/io.max") and not os.path.exists(f"{directory}/io.max")


def test_io_max():
    text = "8:0 rbps=max wbps=2097152 riops=max wiops=120\n259:0 rbps=1 wbps=1 riops=1 wiops=1\n"
    assert io_max_of(text, "8:0") == {"rbps": "max", "wbps": "2097152", "riops": "max", "wiops": "120"}
    assert io_max_of(text, "8") == io_max_of("", "8:0") == {}


@pytest.fixture
def sysfs(tmp_path):
    """vda with a partition; dm-0 over vda1 and vdb; a loop on a file; md over dm that goes in a circle."""
    devices, index = tmp_path / "devices", tmp_path / "block"
    index.mkdir()

    def device(number, name, inside=""):
        path = devices / inside / name
        path.mkdir(parents=True)
        (path / "dev").write_text(f"{number}\n")
        (index / number).symlink_to(path)
        return path

    vda = device("254:0", "vda")
    (vda / "queue").mkdir()
    (vda / "queue/scheduler").write_text("none mq-deadline [bfq]\n")
    (device("254:1", "vda1", "vda") / "partition").write_text("1\n")
    vdb = device("254:16", "vdb")
    (vdb / "slaves").mkdir()
    dm = device("253:0", "dm-0")
    (dm / "slaves/vda1").mkdir(parents=True)
    (dm / "slaves/vda1/dev").write_text("254:1\n")
    (dm / "slaves/vdb").mkdir()
    (dm / "slaves/vdb/dev").write_text("254:16\n")
    circle = device("9:0", "md0")
    (circle / "slaves/md0").mkdir(parents=True)
    (circle / "slaves/md0/dev").write_text("9:0\n")
    loop = device("7:0", "loop0")
    (loop / "loop").mkdir()
    (loop / "loop/backing_file").write_text("/images/disk.img\n")
    return str(index)


@pytest.mark.parametrize(("device", "disks"), [
    ("254:0", ["254:0"]), ("254:1", ["254:0"]), ("253:0", ["254:0", "254:16"]), ("9:0", []), ("1:1", []), ("", []),
    ("7:0", ["254:16"]),
])
def test_disks_behind(sysfs, monkeypatch, device, disks):
    monkeypatch.setattr(blockdev, "_filesystem_device", {"/data": device, "/images": "254:16"}.__getitem__)
    assert blockdev.disks_behind("/data", sysfs) == disks


def test_scheduler_and_name(sysfs):
    assert blockdev.scheduler_of("254:0", sysfs) == "bfq" and blockdev.scheduler_of("254:16", sysfs) == ""
    assert blockdev.name_of("254:1", sysfs) == "vda1"


def test_processes():
    assert start_time(os.getpid()) == start_time(os.getpid()) > 0
    with pytest.raises(ProcessLookupError):
        start_time(2**22 + 1)
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert is_zombie(child) and not is_zombie(os.getpid()) and start_time(child) >= start_time(os.getpid())
    os.waitpid(child, 0)
    with pytest.raises(ProcessLookupError):
        is_zombie(child)
    assert handles_signal(os.getpid(), 2), "Python catches SIGINT"
    assert not handles_signal(os.getpid(), 10) and not handles_signal(2**22 + 1, 2)


def test_a_process_that_waits_for_signals_handles_them():
    """As tini does; meanwhile the kernel shows them as neither blocked nor caught."""
    waiting = subprocess.Popen([sys.executable, "-c", "import signal\nsignal.pthread_sigmask(0, {10})\n"
                                                      "print('ready', flush=True)\nsignal.sigwait({10})"],
                               stdout=subprocess.PIPE)
    with waiting:
        assert waiting.stdout.readline() == b"ready\n"
        for _ in range(200):
            if "sigtimedwait" in Path(f"/proc/{waiting.pid}/wchan").read_text():
                break
            time.sleep(0.01)
        assert handles_signal(waiting.pid, 10)
        waiting.send_signal(10)
    assert waiting.returncode == 0


def test_ranges_of_others(tmp_path):
    file = tmp_path / "subuid"
    file.write_text("user:100000:65536\n# comment\nbroken\nx:y:z\n\nother:165536:1\nlong:1:2:3\n")
    assert (100000, 65536) in foreign_ranges((str(file),)) and (165536, 1) in foreign_ranges((str(file),))
    assert all(isinstance(n, int) for pair in foreign_ranges((str(file),)) for n in pair)
    assert foreign_ranges((str(tmp_path / "missing"),)) == []


class Machine:
    """Enough of the BPF machine to run a device program on paper."""

    def __init__(self, code):
        self.code = [code[i:i + 8] for i in range(0, len(code), 8)]

    def run(self, kind, access, major, minor):
        context = {0: access << 16 | kind, 4: major, 8: minor}
        registers, at = [0] * 11, 0
        while True:
            opcode, both = self.code[at][0], self.code[at][1]
            dst, src = both & 15, both >> 4
            offset = int.from_bytes(self.code[at][2:4], "little", signed=True)
            value = int.from_bytes(self.code[at][4:8], "little", signed=True)
            at += 1
            if opcode == 0x61:
                registers[dst] = context[offset]
            elif opcode == 0xB7:
                registers[dst] = value
            elif opcode == 0xBF:
                registers[dst] = registers[src]
            elif opcode == 0x57:
                registers[dst] &= value
            elif opcode == 0x77:
                registers[dst] >>= value
            elif opcode == 0x55:
                at += offset if registers[dst] != value else 0
            else:
                assert opcode == 0x95
                return registers[0]


@pytest.mark.parametrize(("device", "access", "allowed"), [
    ((2, 1, 3), 7, 1), ((2, 1, 3), 6, 1), ((2, 1, 1), 2, 0), ((1, 1, 3), 2, 0), ((2, 136, 77), 6, 1),
    ((2, 136, 77), 1, 0), ((2, 5, 1), 6, 1), ((2, 5, 1), 1, 0), ((1, 8, 0), 2, 0), ((2, 10, 229), 6, 0),
])
def test_the_device_program(device, access, allowed):
    kind, major, minor = device
    assert Machine(assemble(DEFAULT_RULES)).run(kind, access, major, minor) == allowed


def test_a_device_program_without_rules_allows_nothing():
    assert Machine(assemble(())).run(2, 2, 1, 3) == 0
    assert Machine(assemble((DeviceRule("b", 8, None, "r"),))).run(1, 2, 8, 5) == 1
