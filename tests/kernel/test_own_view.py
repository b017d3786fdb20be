# SPDX-License-Identifier: GPL-2.0-or-later
"""The VE's own view of memory, CPUs and load: an lxcfs of the tests' own, which is killed and comes back."""

import contextlib
import shutil
import signal
import subprocess

import pytest

from tests.kernel.conftest import eventually
from vemgr.core.views import COVERED

pytestmark = pytest.mark.skipif(shutil.which("lxcfs") is None, reason="lxcfs is not installed")
PATIENCE = 60.0


class Lxcfs:
    def __init__(self, directory):
        self.directory = directory
        self.process = None

    def start(self):
        command = ["lxcfs", "-f", "-p", f"{self.directory}.pid", str(self.directory)]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
        eventually((self.directory / "proc/meminfo").exists, "lxcfs does not come up", PATIENCE)

    def kill(self):
        """As the kernel kills it: nobody unmounts."""
        self.process.kill()
        self.process.wait()

    def unmount(self):
        subprocess.run(["umount", "-l", self.directory], check=True, timeout=20)

    def close(self):
        if self.process and self.process.poll() is None:
            self.kill()
        with contextlib.suppress(subprocess.CalledProcessError):
            self.unmount()


@pytest.fixture(scope="module")
def stage(make_instance):
    with make_instance() as vemgr:
        directory = vemgr.base / "lxcfs"
        directory.mkdir()
        with vemgr.config.open("a") as file:
            file.write(f'lxcfs-dir = "{directory}"\n')
        vemgr.kill(vemgr.daemon_pid())  # it has read the file without that
        lxcfs = Lxcfs(directory)
        try:
            yield vemgr, lxcfs
        finally:
            lxcfs.close()


@pytest.fixture
def served(stage):
    """An instance whose daemon knows that lxcfs serves, and that."""
    vemgr, lxcfs = stage
    if not lxcfs.process or lxcfs.process.poll() is not None:
        lxcfs.close()
        lxcfs.start()
    name = vemgr.create()
    try:
        with given(vemgr, name, "lxcfs"):
            yield vemgr, lxcfs, name
    finally:
        vemgr("destroy", "--force", name)


@contextlib.contextmanager
def given(vemgr, name, view):
    """The VE runs and was started with this view: the daemon has to notice first."""
    def started():
        vemgr("stop", "--kill", name, code=None)
        vemgr("start", name)
        return vemgr.show(name)["view"] == view

    eventually(started, f"no VE starts with the view {view}", PATIENCE)
    yield


def mounts(vemgr, name, *way):
    """File to type of what is seen in it, from inside."""
    found = {}
    for line in vemgr.out("exec", name, "--", *way, "cat", "/proc/self/mountinfo").splitlines():
        before, _, behind = line.partition(" - ")
        found[before.split()[4]] = behind.split()[0]
    return found


def becomes(vemgr, name, view):
    eventually(lambda: vemgr.show(name)["view"] == view,
               lambda: (vemgr.show(name)["view"], (vemgr.run / "daemon.log").read_text()[-2000:]), PATIENCE)
    # The files are replaced one after another.
    eventually(lambda: all(vemgr("exec", name, "--", "cat", f"/{file}", code=None).returncode == 0
                           for file in COVERED), "a file of /proc cannot be read", PATIENCE)


def count(vemgr, name):
    return len(vemgr.out("exec", name, "--", "cat", "/proc/self/mountinfo").splitlines())


def test_a_ve_sees_what_lxcfs_makes(served):
    vemgr, _, name = served
    there = mounts(vemgr, name)
    assert {file: there.get(f"/{file}") for file in COVERED} == dict.fromkeys(COVERED, "fuse.lxcfs")
    assert "MemTotal" in vemgr.out("exec", name, "--", "cat", "/proc/meminfo")
    assert "Mem:" in vemgr.out("exec", name, "--", "free")
    assert "view of memory and CPUs by" in vemgr.out("show", name)
    # Not written to, not taken away, and nothing else of lxcfs to be reached by it.
    refused = vemgr("exec", name, "--", "sh", "-c", "echo 1 >/proc/meminfo; umount /proc/meminfo", code=None)
    assert "Read-only" in refused.stderr and "Invalid argument" in refused.stderr
    assert "cgroup/" not in vemgr.out("exec", name, "--", "sh", "-c", "cd /proc/; find . -maxdepth 1 -name cgroup/")


def test_a_ve_survives_the_death_of_lxcfs(served):
    vemgr, lxcfs, name = served
    pid = vemgr.show(name)["pid"]
    counts = []
    for _ in range(2):
        lxcfs.kill()
        becomes(vemgr, name, "kernel")
        assert vemgr.out("exec", name, "--", "cat", "/proc/diskstats") == ""  # hidden, as without lxcfs
        lxcfs.unmount()
        lxcfs.start()
        becomes(vemgr, name, "lxcfs")
        counts.append(count(vemgr, name))
    assert counts[0] == counts[1]
    assert vemgr.show(name)["pid"] == pid


def test_services_with_mounts_of_their_own_have_it_too(served):
    vemgr, lxcfs, name = served
    vemgr("exec", name, "--", "sh", "-c", "unshare -m sh -c 'echo $$ >/tmp/pid; exec sleep 1000' >/dev/null 2>&1 &")
    eventually(lambda: vemgr("exec", name, "--", "test", "-s", "/tmp/pid", code=None).returncode == 0, "no service")
    pid = vemgr.out("exec", name, "--", "cat", "/tmp/pid").strip()
    way = ("nsenter", "-t", pid, "-m")
    lxcfs.kill()
    eventually(lambda: vemgr("exec", name, "--", *way, "cat", "/proc/meminfo", code=None).returncode == 0,
               "the service has lxcfs that has ended", PATIENCE)
    assert mounts(vemgr, name, *way)["/proc/meminfo"] == "proc"


def test_what_a_ve_has_mounted_there_itself_is_left(served):
    vemgr, lxcfs, name = served
    vemgr("exec", name, "--", "sh", "-c",
          "echo mine >/tmp/mine; mount --bind /tmp/mine /proc/meminfo; mount -t tmpfs none /sys; mkdir /sys/devices")
    lxcfs.kill()
    eventually(lambda: vemgr("exec", name, "--", "cat", "/proc/stat", code=None).returncode == 0, "no file", PATIENCE)
    assert vemgr.out("exec", name, "--", "cat", "/proc/meminfo") == "mine\n"
    assert vemgr.out("exec", name, "--", "ls", "/sys") == "devices\n"
    assert "own view" not in vemgr.out("show", name)


def test_a_symlink_instead_of_proc_leads_nowhere(served):
    """In a mount namespace of its own a VE's root can have any root directory: here one whose proc is a link."""
    vemgr, lxcfs, name = served
    vemgr("exec", name, "--", "sh", "-c",
          "mkdir -p /tmp/r/bait /tmp/r/old && touch /tmp/r/bait/meminfo && ln -s bait /tmp/r/proc && "
          "cp -r /bin /tmp/r/ && unshare -m sh -c 'mount --bind /tmp/r /tmp/r && cd /tmp/r && pivot_root . old && "
          "exec sleep 1000' >/dev/null 2>&1 &")
    eventually(lambda: "sleep" in vemgr.out("exec", name, "--", "ps"), "no process")
    lxcfs.kill()
    becomes(vemgr, name, "kernel")
    pid = vemgr.out("exec", name, "--", "pidof", "sleep").split()[0]
    seen = vemgr.out("exec", name, "--", "cat", f"/proc/{pid}/mountinfo")
    assert " /bait" not in seen and "meminfo" not in [line.split()[4].rpartition("/")[2] for line in
                                                      seen.splitlines() if line.split()[4].startswith("/bait")]


def test_a_daemon_that_comes_up_sees_to_what_has_changed_meanwhile(served):
    vemgr, lxcfs, name = served
    before = vemgr.daemon_pid()
    vemgr.kill(before)
    lxcfs.kill()
    vemgr("list")
    becomes(vemgr, name, "kernel")
    lxcfs.unmount()
    lxcfs.start()
    becomes(vemgr, name, "lxcfs")


def test_an_lxcfs_that_does_not_answer_keeps_no_daemon_from_coming_up(served):
    vemgr, lxcfs, name = served
    lxcfs.process.send_signal(signal.SIGSTOP)
    try:
        vemgr.kill(vemgr.daemon_pid())
        assert vemgr.state_of(name) == "running"
    finally:
        lxcfs.process.send_signal(signal.SIGCONT)
    becomes(vemgr, name, "lxcfs")


def test_a_view_that_must_be(stage):
    vemgr, lxcfs = stage
    text = vemgr.config.read_text()
    lxcfs.close()
    name = vemgr.create()
    try:
        vemgr.config.write_text(text + 'lxcfs = "require"\n')
        vemgr.kill(vemgr.daemon_pid())
        assert "lxcfs" in vemgr("start", name, code=5).stderr
        lxcfs.start()
        eventually(lambda: vemgr("start", name, code=None).returncode == 0, "it does not start", PATIENCE)
        assert vemgr.show(name)["view"] == "lxcfs"
        vemgr("stop", "--kill", name)
        vemgr.config.write_text(text + 'lxcfs = "off"\n')
        vemgr.kill(vemgr.daemon_pid())
        vemgr("start", name)
        assert vemgr.show(name)["view"] == "kernel"
    finally:
        vemgr.config.write_text(text)
        vemgr.kill(vemgr.daemon_pid())
        vemgr("destroy", "--force", name)


