# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VE's root can see and do, asked from inside with busybox, as root and as an exec'd command is."""

import os
import re
import socket
from pathlib import Path

import pytest

from vemgr.core.ids import ID_COUNT
from vemgr.core.privileges import CAPABILITIES
from vemgr.kernel.capabilities import NAMES


@pytest.fixture(scope="module", params=["bb", "host"])
def ve(vemgr, request):
    name = vemgr.create(template=request.param)
    vemgr("start", name)
    yield name
    vemgr("destroy", "--force", name)


@pytest.fixture
def sh(vemgr, ve):
    """Run a line of shell inside; returns (exit code, output and errors)."""
    def run(line):
        answer = vemgr("exec", ve, "--", "sh", "-c", f"{{ {line}; }} 2>&1", code=None)
        return answer.returncode, answer.stdout
    return run


def refused(outcome):
    """The kernel said no. busybox's date exits with 0 all the same, and umount has its own words for EINVAL."""
    code, text = outcome
    return "not permitted" in text or (code != 0 and re.search(
        "denied|Read-only|space|Invalid argument|No such|not implemented|not found|not mounted|no mount point|"
        "can't|cannot|unable|failed|error", text, re.IGNORECASE))


def test_capabilities_and_filter(sh, vemgr, ve):
    wanted = sum(1 << NAMES.index(name) for name in CAPABILITIES)
    for who in ("self", "1"):
        status = dict(line.split(":\t", 1) for line in sh(f"cat /proc/{who}/status")[1].splitlines() if ":\t" in line)
        assert int(status["CapBnd"], 16) == int(status["CapEff"], 16) == int(status["CapPrm"], 16) == wanted
        assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
        assert status["Seccomp"].strip() == "2"
    host_side = Path(f"/proc/{vemgr.show(ve)['pid']}/status").read_text()
    assert f"Uid:\t{vemgr.show(ve)['idBase']}\t" in host_side


def test_id_map(sh, vemgr, ve):
    base = vemgr.show(ve)["idBase"]
    for kind in ("uid_map", "gid_map"):
        assert sh(f"cat /proc/self/{kind}")[1].split() == ["0", str(base), str(ID_COUNT)]


def test_namespaces_are_its_own(vemgr, ve):
    pid = vemgr.show(ve)["pid"]
    for kind in ("mnt", "pid", "uts", "ipc", "net", "cgroup", "user", "time"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), kind


@pytest.mark.parametrize("line", [
    "umount /proc/kcore", "umount /proc/sys", "umount -l /proc/keys", "mount -o remount,rw /proc/sys",
    "mount -o remount,bind,rw /proc/sys", "mount -o remount,bind,rw /sys", "umount /proc", "umount /sys/firmware",
    "mknod /tmp/sda b 8 0", "mknod /tmp/mem c 1 1", "cat /proc/kcore | head -c 1 | grep .",
    "echo b > /proc/sysrq-trigger", "echo 1 > /proc/sys/kernel/panic", "echo x > /proc/sys/kernel/core_pattern",
    "dmesg", "date -s 2001-01-01", "cat /proc/1/environ | grep .", "cat /proc/1/mem", "ls /proc/1/root/",
    "ls -l /proc/1/exe | grep -e '->'", "ls /proc/1/cwd/", "ls /proc/1/fd/ | grep .", "cat /proc/1/maps | grep .",
    "cat /dev/mem", "swapon /etc/passwd", "echo 1 > /proc/1/oom_score_adj && false",
    "echo 1 > /proc/sys/vm/drop_caches", "echo max > /sys/fs/cgroup/pids.max && grep -q . /sys/fs/cgroup/pids.max",
    "echo -1000 > /proc/self/oom_score_adj",
])
def test_what_root_of_the_ve_cannot_do(sh, line):
    outcome = sh(line)
    assert refused(outcome) or outcome == (1, ""), (line, outcome)


def test_the_mounts_tell_nothing_of_the_host(sh, vemgr):
    text = sh("cat /proc/self/mountinfo")[1]
    assert str(vemgr.base) not in text and "/var/tmp" not in text and "/dev/vd" not in text and "/dev/sd" not in text
    roots = {line.split()[4] for line in text.splitlines()}
    assert {"/", "/proc", "/sys", "/dev", "/dev/pts", "/run", "/sys/fs/cgroup"} <= roots
    assert sh("cat /proc/self/cgroup")[1].splitlines()[-1].startswith("0::/")
    assert vemgr.netns not in sh("cat /proc/self/cgroup")[1]


def test_only_the_three_descriptors(sh, vemgr, ve):
    assert set(sh("ls /proc/self/fd")[1].split()) <= {"0", "1", "2", "3"}  # 3 is the directory being listed
    pid = vemgr.show(ve)["pid"]
    for fd in os.listdir(f"/proc/{pid}/fd"):
        assert re.match(r"/dev/(pts/\d+|console)", os.readlink(f"/proc/{pid}/fd/{fd}"))


def test_only_its_own_processes(sh, vemgr):
    other = vemgr.create()
    vemgr("start", other)
    pids = [int(entry) for entry in sh("ls /proc")[1].split() if entry.isdigit()]
    assert 1 in pids and len(pids) < 12
    assert refused(sh(f"kill -0 {os.getpid()}")) or os.getpid() in pids
    vemgr("destroy", "--force", other)


def test_hostname_and_clock_are_its_own(sh):
    before = socket.gethostname()
    assert sh("hostname changed && hostname")[1] == "changed\n"
    assert socket.gethostname() == before
    assert float(sh("cut -d' ' -f1 /proc/uptime")[1]) < 300


def test_devices(sh):
    names = set(sh("ls /dev")[1].split())
    assert names == {"console", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
                     "stdout", "tty", "urandom", "zero"}
    assert sh("echo x > /dev/null && head -c 4 /dev/zero | od -An -tx1")[1].split() == ["00"] * 4
    assert refused(sh("echo x > /dev/full"))
    assert sh("stat -c %a /dev/shm /tmp")[1].split() == ["1777", "1777"]


def test_mounts_of_its_own_work_and_do_not_reach_the_host(sh, vemgr):
    """Root of a VE is root of its VE; programs such as sandboxes and package builders count on it."""
    assert sh("mount -t tmpfs ve-marker /tmp && grep -q ve-marker /proc/mounts && umount /tmp")[0] == 0
    assert sh("mount -t tmpfs ve-marker /tmp")[0] == 0
    assert "ve-marker" not in Path("/proc/self/mountinfo").read_text()


def test_a_command_keeps_no_way_out_by_its_terminal(vemgr, ve):
    """TIOCSTI into the administrator's terminal: the command has no controlling terminal of the caller's."""
    fields = vemgr.out("exec", ve, "--", "cat", "/proc/self/stat").rpartition(")")[2].split()
    pid = vemgr.out("exec", ve, "--", "sh", "-c", "echo $$; cut -d' ' -f6 /proc/$$/stat").split()
    assert fields[4] == "0", "tty_nr"
    assert pid[0] == pid[1], "leader of a session of its own"
