# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel counts for the whole host or per user: one VE uses up all that it can get, and a neighbour and the
host still have theirs. The control takes the same out of the host's hands and shows that it then lacks."""

import json
import os
import subprocess
from pathlib import Path

import pytest

PYTHON = "/usr/bin/python3"

# Takes as much as there is, says how much and why it ended, and holds it until its input ends.
HOARD = r"""
import ctypes, os, resource, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
def inotify():
    return libc.inotify_init1(0)
def terminal():
    return libc.posix_openpt(os.O_RDWR | os.O_NOCTTY)
def signals():
    return libc.sigqueue(os.getpid(), signal.SIGRTMIN, None)
def namespaces():
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        result = libc.unshare(0x10000000)
        os.write(writer, bytes([0 if result == 0 else ctypes.get_errno()]))
        os.close(writer)
        signal.pause()
    children.append(pid)
    os.close(writer)
    code = os.read(reader, 1)[0]
    os.close(reader)
    ctypes.set_errno(code)
    return -1 if code else 0
children = []
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGRTMIN})
take, most = globals()[sys.argv[1]], int(sys.argv[2])
count = 0
while count < most and take() >= 0:
    count += 1
print(count, ctypes.get_errno() if count < most else 0, flush=True)
sys.stdin.read()
for child in children:
    os.kill(child, signal.SIGKILL)
"""


class Hoarder:
    """A process that holds what it took, until the end of the block."""

    def __init__(self, popen, *arguments):
        self.process = popen(PYTHON, "-c", HOARD, *arguments)

    def __enter__(self):
        self.count, self.error = map(int, self.process.stdout.readline().split())
        return self

    def __exit__(self, *_):
        self.process.communicate(timeout=30)


def on_host(*command):
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def ves(vemgr, fresh):
    names = [vemgr.create(template="host") for _ in range(2)]
    vemgr("start", *names)

    def popen_in(name):
        return lambda *command: vemgr.popen("exec", name, "--", *command, stdin=subprocess.PIPE)
    return [popen_in(name) for name in names]


@pytest.mark.parametrize(("what", "file"), [
    ("inotify", "/proc/sys/fs/inotify/max_user_instances"), ("signals", None), ("namespaces", None)])
def test_a_hoarding_ve_takes_nothing_from_a_neighbour_or_the_host(ves, what, file):
    """Before the user namespace of a VE was made by its own id, all VEs shared what the host's root may have."""
    most = int(Path(file).read_text()) + 10 if file else {"signals": 10**6, "namespaces": 200}[what]
    with Hoarder(ves[0], what, str(most)) as greedy:
        assert greedy.error, f"there is no bound at all: {greedy.count}"
        with Hoarder(ves[1], what, "10") as neighbour, Hoarder(on_host, what, "10") as host:
            assert (neighbour.count, neighbour.error) == (10, 0)
            assert (host.count, host.error) == (10, 0)
        with Hoarder(ves[0], what, "10") as again:
            assert again.count < 10 and again.error == greedy.error, "its own second process finds it used up"


def test_the_control_a_hoarder_on_the_host_does_take_it_from_the_host():
    most = int(Path("/proc/sys/fs/inotify/max_user_instances").read_text()) + 10
    # A user of its own, so that nothing of this host suffers; what is counted is counted by user.
    def as_user(*command):
        return on_host("setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", *command)
    with Hoarder(as_user, "inotify", str(most)) as greedy, Hoarder(as_user, "inotify", "10") as second:
        assert greedy.count == most - 10 and second.count == 0


def test_user_namespaces_are_bounded_by_a_setting(vemgr, fresh):
    for limit, wanted in (("3", 3), ("0", 0)):
        name = vemgr.create("--user-namespaces", limit, template="host")
        vemgr("start", name)
        with Hoarder(lambda *command, name=name: vemgr.popen("exec", name, "--", *command, stdin=subprocess.PIPE),
                     "namespaces", "10") as hoarder:
            assert hoarder.count == wanted
        outcome = vemgr("exec", name, "--", "sh", "-c", "echo 1000 > /proc/sys/user/max_user_namespaces", code=None)
        assert outcome.returncode != 0 and "Read-only" in outcome.stderr
    assert int(Path("/proc/sys/user/max_user_namespaces").read_text()) > 1000, "the host keeps its own"


def test_nothing_is_written_that_shows_on_the_host(vemgr, fresh):
    """A VE may write below /proc/sys/net: what is there belongs to its network namespace, or the write fails."""
    name = vemgr.create(template="host")
    vemgr("start", name)

    def settings():
        found = {}
        for directory, _, files in os.walk("/proc/sys/net"):
            for file in files:
                try:
                    found[f"{directory}/{file}"] = Path(directory, file).read_text()
                except OSError:
                    continue
        return found

    program = r"""
import os, json
wrote = []
for directory, _, files in os.walk("/proc/sys/net"):
    for name in files:
        path = f"{directory}/{name}"
        try:
            with open(path) as file:
                words = file.read().split()
        except OSError:
            continue
        for step in (1, -1):
            try:
                with open(path, "w") as file:
                    file.write(" ".join(str(int(word) + step) if word.isdigit() else word for word in words))
                wrote.append(path)
                break
            except OSError:
                continue
print(json.dumps(wrote))
"""
    volatile = ("conntrack_count", "neigh", "entries", "stable_secret")
    before = settings()
    wrote = json.loads(vemgr.out("exec", name, "--", PYTHON, "-c", program))
    after = settings()
    lwtunnel = "/proc/sys/net/netfilter/nf_hooks_lwtunnel"  # found by this test: it can be set once in a host's life
    if Path(lwtunnel).exists():
        assert "Read-only" in vemgr("exec", name, "--", "sh", "-c", f"echo 1 > {lwtunnel}", code=None).stderr
    assert len(wrote) > 100, "the control: many can be written, in its own namespace"
    changed = {path for path in before if before[path] != after.get(path, before[path])}
    assert {path for path in changed if not any(word in path for word in volatile)} == set()


#: Files that show the same in a VE as on the host, and why that stays: SECURITY.md, "The host shows through".
SHOWN = {"cpuinfo", "meminfo", "stat", "loadavg", "uptime", "version", "vmstat", "zoneinfo", "buddyinfo", "swaps",
         "filesystems", "crypto", "devices", "misc", "cgroups", "softirqs", "schedstat", "locks", "pagetypeinfo",
         "consoles", "execdomains", "ioports", "dma", "mtrr", "fb", "mdstat", "bootconfig", "kpagecgroup",
         "version_signature", "dynamic_debug", "pressure", "driver", "tty", "bus", "irq", "fs", "sysvipc"}


def test_what_shows_of_the_host_is_known(vemgr, fresh):
    """ContainerLeaks (DSN 2017): read every file of /proc that belongs to no process, in a VE and on the host; what has
    the same content there is the host's."""
    name = vemgr.create(template="host")
    vemgr("start", name)
    program = r"""
import os, json, hashlib
found = {}
for top in sorted(os.listdir("/proc")):
    if top.isdigit() or top in ("self", "thread-self", "net", "sys", "mounts", "kmsg", "kcore", "kpagecount",
                                "kpageflags", "kpagecgroup"):
        continue
    paths = [f"/proc/{top}"] if os.path.isfile(f"/proc/{top}") else [
        f"{d}/{f}" for d, _, fs in os.walk(f"/proc/{top}") for f in fs]
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            text = os.read(fd, 4096)
            os.close(fd)
        except OSError:
            continue
        if text.strip():
            found[path] = hashlib.sha256(text).hexdigest()
print(json.dumps(found))
"""
    inside = json.loads(vemgr.out("exec", name, "--", PYTHON, "-c", program))
    host = json.loads(subprocess.run([PYTHON, "-c", program], capture_output=True, text=True, check=True,
                                     timeout=60).stdout)
    assert len(host) > len(inside)
    assert {path.split("/")[2] for path in inside} <= SHOWN
    for hidden in ("cmdline", "kallsyms", "timer_list", "keys", "diskstats", "iomem", "config.gz"):
        assert f"/proc/{hidden}" in host or hidden == "config.gz", "the control: the host shows it"
        assert f"/proc/{hidden}" not in inside


@pytest.fixture
def small_disk(tmp_path):
    """An ext4 of 64 MiB, a quarter of which is kept for root."""
    image, place = tmp_path / "image", tmp_path / "disk"
    place.mkdir()
    with open(image, "wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "25", str(image)], check=True, timeout=20)
    if subprocess.run(["mount", "-o", "loop", str(image), str(place)], timeout=20).returncode:
        pytest.skip("cannot mount an image of a file system here")
    yield place
    subprocess.run(["umount", str(place)], check=True, timeout=20)


def test_what_a_file_system_keeps_for_root_is_not_for_ves(make_instance, small_disk):
    """The kernel writes what a VE writes with the ids of who has mounted the overlay."""
    with make_instance(small_disk / "state") as vemgr:
        name = vemgr.create("--network", "none")
        vemgr("start", name)
        before = os.statvfs(small_disk)
        vemgr("exec", name, "--", "dd", "if=/dev/zero", "of=/root/big", "bs=64k", code=1)
        vemgr("exec", name, "--", "sync")
        full = os.statvfs(small_disk)
        assert full.f_bavail * full.f_frsize < 1 << 20 < before.f_bavail * before.f_frsize, "it has filled the rest"
        assert (small_disk / "state/ve" / name / "data/0/upper/root/big").stat().st_size > 16 << 20
        assert full.f_bfree * full.f_frsize > 14 << 20
        # The control: the host's root gets what is kept.
        (small_disk / "for-root").write_bytes(bytes(8 << 20))
