# SPDX-License-Identifier: GPL-2.0-or-later
"""Attacks on what comes from the host into a VE: a command on its way in, the keeper's program, what a start does with
an image that somebody else has made, output that nobody reads."""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

PYTHON = "/usr/bin/python3"

# Looks for new processes named argv[1], as fast as it can, and does to each what would lead out. What it says of one
# counts only if that one still had the name afterwards: then it had not become the VE's own program meanwhile.
RACER = r"""
import ctypes, json, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def comm(pid):
    with open(f"/proc/{pid}/comm") as file:
        return file.read().strip()
def through(path):
    os.close(os.open(path, os.O_RDONLY))
def ptrace(pid):
    if libc.ptrace(0x4206, int(pid), 0, 0) < 0:  # PTRACE_SEIZE
        raise OSError(ctypes.get_errno(), "ptrace")
    libc.ptrace(0x4207, int(pid), 0, 0)  # PTRACE_INTERRUPT, as only what has stopped can be let go again
    os.waitpid(int(pid), 0x40000000)
    libc.ptrace(17, int(pid), 0, 0)
ATTACKS = {
    "exe": lambda pid: through(f"/proc/{pid}/exe"), "mem": lambda pid: through(f"/proc/{pid}/mem"),
    "root": lambda pid: through(f"/proc/{pid}/root"), "cwd": lambda pid: through(f"/proc/{pid}/cwd"),
    "fd": lambda pid: through(f"/proc/{pid}/fd/0"), "environ": lambda pid: through(f"/proc/{pid}/environ"),
    "ns": lambda pid: through(f"/proc/{pid}/ns/mnt"), "ptrace": ptrace,
}
old = set(os.listdir("/proc"))
print("ready", flush=True)
seen, got, deadline = 0, {}, time.monotonic() + float(sys.argv[2])
while time.monotonic() < deadline and seen < int(sys.argv[3]):
    now = set(os.listdir("/proc"))
    for pid in now - old:
        try:
            if comm(pid) not in sys.argv[1].split(","):
                continue  # not yet, perhaps
            old.add(pid)
            for name, attack in ATTACKS.items():
                try:
                    attack(pid)
                    outcome = "through"
                except OSError as error:
                    outcome = error.strerror
                if comm(pid) in sys.argv[1].split(","):
                    got.setdefault(name, set()).add(outcome)
            seen += 1
        except OSError:
            continue
    old &= now
print(json.dumps([seen, {name: sorted(outcomes) for name, outcomes in got.items()}]))
"""
ATTACKS = {"exe", "mem", "root", "cwd", "fd", "environ", "ns", "ptrace"}


@pytest.fixture
def ve(vemgr, fresh):
    name = vemgr.create(template="host")
    vemgr("start", name)
    return name


def race(racer, provoke):
    """`provoke` over and over until the racer has seen enough."""
    assert racer.stdout.readline() == "ready\n"
    while racer.poll() is None:
        provoke()
    seen, got = json.loads(racer.communicate()[0])
    return seen, got


def test_a_command_on_its_way_in_is_out_of_reach(vemgr, ve):
    """CVE-2016-9962, CVE-2019-5736, CVE-2024-21626: the moment between joining the VE and executing its program."""
    keeper = Path(f"/proc/{vemgr.keeper_pid()}/comm").read_text().strip()
    racer = vemgr.popen("exec", ve, "--", PYTHON, "-c", RACER, keeper, "60", "5")
    seen, got = race(racer, lambda: vemgr("exec", ve, "--", "true"))
    assert seen >= 5, "the race was never won, so nothing is shown"
    assert set(got) == ATTACKS
    assert not [name for name, outcomes in got.items() if "through" in outcomes], got


def test_the_control_a_racer_on_the_host_reaches_a_new_process():
    racer = subprocess.Popen([PYTHON, "-c", RACER, "sleep", "20", "3"], stdout=subprocess.PIPE, text=True)
    seen, got = race(racer, lambda: subprocess.run(["sleep", "0.1"], check=True))
    assert seen >= 3 and all("through" in got[name] for name in ATTACKS), got


OVERWRITE = r"""
import os, sys
path = f"/proc/{sys.argv[1]}/exe"
print(os.readlink(path))
fd = os.open(path, os.O_RDONLY)
try:
    os.close(os.open(f"/proc/self/fd/{fd}", os.O_WRONLY))
    print("through")
except OSError as error:
    print(error.strerror)
"""


def test_the_program_of_the_keeper_cannot_be_overwritten(vemgr, ve, tmp_path):
    """CVE-2019-5736: the command is a link to whoever executes it. It then runs as a program of the VE, and is a file
    of the host's root, which the VE's root is not: EACCES. ETXTBSY would mean that only its running protects it."""
    answer = vemgr.out("exec", ve, "--", "/proc/self/exe", "-c", OVERWRITE, "self").splitlines()
    assert answer[-1] == "Permission denied", answer
    # The control: the same by root of the host to a program of the test's own.
    shutil.copy("/usr/bin/sleep", tmp_path / "victim")
    victim = subprocess.Popen([tmp_path / "victim", "60"])
    reader = os.open(f"/proc/{victim.pid}/exe", os.O_RDONLY)
    victim.kill()
    victim.wait()
    os.close(os.open(f"/proc/self/fd/{reader}", os.O_WRONLY))
    os.close(reader)


# What can be done to a file through the link to one's own program. Arguments: a directory of the same file system, if
# there is one.
THROUGH_EXE = r"""
import ctypes, json, os, stat, sys
libc, exe, place = ctypes.CDLL(None, use_errno=True), "/proc/self/exe", sys.argv[1]
def call(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
def bind():
    open(f"{place}/bind", "w").close()
    call("mount", exe.encode(), f"{place}/bind".encode(), None, 4096, None)
WAYS = {
    "write": lambda: os.close(os.open(exe, os.O_RDWR)), "bind": bind,
    "empty": lambda: os.close(os.open(exe, os.O_WRONLY | os.O_TRUNC)),
    "truncate": lambda: os.truncate(exe, os.stat(exe).st_size), "chmod": lambda: os.chmod(exe, 0o755),
    "chown": lambda: os.chown(exe, 0, 0), "utime": lambda: os.utime(exe),
    "link": lambda: call("linkat", -100, exe.encode(), -100, f"{place}/link".encode(), 0x400),  # AT_SYMLINK_FOLLOW
    "setxattr": lambda: os.setxattr(exe, "trusted.vemgr", b"x"),
    "parent": lambda: os.close(os.open(f"{exe}/..", os.O_PATH)),
    "maps": lambda: os.close(os.open("/proc/self/map_files/" + os.listdir("/proc/self/map_files")[0], os.O_RDWR)),
}
got = {}
for name, way in WAYS.items():
    try:
        way()
        got[name] = "through"
    except OSError as error:
        got[name] = error.strerror
found = os.stat(exe)
print(json.dumps([got, stat.S_IMODE(found.st_mode), found.st_uid, sum(map(len, open(exe, "rb")))]))
"""
CHANGES = {"write", "empty", "truncate", "chmod", "chown", "utime", "link", "setxattr", "bind", "maps"}


def test_the_program_of_the_keeper_can_be_read_and_no_more(vemgr, ve, tmp_path):
    """It is the host's Python, that every user of the host may read and execute. By it nobody comes to another file of
    the host, and nobody changes anything about it, however he has come to run it."""
    vemgr("exec", ve, "--", "sh", "-c", "cd /root; cat > ways; { echo '#!/proc/self/exe'; cat ways; } > script;"
          "chmod +x script; echo 'x:x:0:0::/root:/proc/self/exe' >> /etc/passwd", input=THROUGH_EXE)
    answers = [
        vemgr.out("exec", ve, "--", "/proc/self/exe", "/root/ways", "/tmp"),
        vemgr.out("exec", ve, "--", "/root/script", "/tmp"),
        vemgr.out("enter", "--user", "x", ve, input=f"import sys; sys.argv = ['', '/tmp']\n{THROUGH_EXE}"),
    ]
    for got, mode, owner, _size in map(json.loads, answers):
        assert got.keys() > CHANGES and not [name for name, outcome in got.items() if outcome == "through"], got
        assert owner == 65534 and mode & 0o004, "its owner is nobody of the VE, and it is there for others to read"
    # The control: root of the host and a program of the test's own. What runs cannot be written by anybody.
    shutil.copy(os.path.realpath(PYTHON), tmp_path / "victim")
    (tmp_path / "ways").write_text(THROUGH_EXE)
    told = subprocess.run(["unshare", "--mount", tmp_path / "victim", tmp_path / "ways", tmp_path], check=True,
                          capture_output=True, text=True, timeout=30).stdout
    got = json.loads(told)[0]
    assert {name for name in CHANGES if got[name] == "through"} >= {"chmod", "chown", "utime", "link", "bind"}, got


def test_a_descriptor_in_a_working_directory(vemgr, ve):
    """CVE-2024-21626: the working directory of a command named by a descriptor of whoever executes it."""
    for fd in range(12):
        outcome = vemgr("exec", "--cwd", f"/proc/self/fd/{fd}", ve, "--", "ls", f"../../../../../{vemgr.config}",
                        code=None)
        assert outcome.returncode != 0, fd


@pytest.mark.parametrize("directory", ["dev", "proc", "sys", "run", "etc", "dev/pts", "dev/shm", "dev/console"])
def test_links_in_an_image_lead_nowhere(vemgr, fresh, tmp_path, directory):
    """CVE-2019-19921, CVE-2021-30465, CVE-2025-31133, CVE-2025-52565: what a start makes or mounts in the VE's tree
    meets a link that the image's maker has put there. Control: the same by path does land on the host."""
    target = tmp_path / "host"
    target.mkdir()

    def change(tree):
        path = tree / directory
        if path.is_dir():
            shutil.rmtree(path)
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(target)
        (path / "control").touch()  # as one who looks the path up does

    template = f"hostile-{directory.replace('/', '-')}"
    vemgr.import_busybox(template, change=change)
    assert (target / "control").exists()
    (target / "control").unlink()
    name = vemgr.create(template=template)
    outcome = vemgr("start", name, code=None)
    try:
        assert list(target.iterdir()) == []
        assert str(target) not in Path("/proc/self/mountinfo").read_text()
        if outcome.returncode == 0:
            assert vemgr.out("exec", name, "--", "sh", "-c", "cat /proc/kallsyms /proc/cmdline") == ""
    finally:
        vemgr("destroy", "--force", name)
        vemgr("template", "remove", template)


def memory_of(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])


def test_output_that_nobody_reads_costs_the_host_nothing(vemgr, ve):
    """One command writes as fast as it can to a pipe that is full, another to the console: nobody keeps it."""
    pids = vemgr.daemon_pid(), vemgr.keeper_pid()
    before = [memory_of(pid) for pid in pids]
    unread = vemgr.popen("exec", ve, "--", "yes")
    flood = vemgr.popen("exec", ve, "--", "sh", "-c", "yes > /dev/console & sleep 2; kill $!; wait; echo flooded",
                        stderr=subprocess.DEVNULL)
    began = time.monotonic()
    for _ in range(5):
        vemgr("exec", ve, "--", "true", timeout=10)
    assert flood.communicate(timeout=30)[0] == "flooded\n"
    assert time.monotonic() - began < 30
    after = [memory_of(pid) for pid in pids]
    unread.kill()  # what it ran goes on writing until the VE is destroyed
    unread.wait()
    unread.stdout.close()
    unread.stderr.close()
    assert max(now - then for now, then in zip(after, before, strict=True)) < 4096, (before, after)
