# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host's side touches in a VE's tree, replaced by whatever a VE or a template may put there.

Nothing of the host is opened, read or changed, no call takes long, and what cannot be done is refused with a reason.
"""

import os
import re
import shutil
import socket
import struct
import subprocess

import pytest

from tests.kernel.conftest import eventually
from tests.kernel.hostile import TRICKS, immutable, in_time, mounts_of, outside, picture, untouched
from tests.kernel.traced import Trace, descendants, traced
from vemgr.api.client import RemoteError

# Each line is planted in one VE. Those of the second column are touched by its set-up and its init.
STARTS = {
    "proc": ("proc",),
    "sys": ("sys",),
    "dev": ("dev",),
    "run": ("run",),
    "etc": ("etc",),
    "files": ("etc/hosts", "etc/hostname", "etc/resolv.conf"),
    "below mounts": ("proc/sys", "proc/self", "sys/fs", "dev/console", "dev/pts", "dev/null", "run/x"),
}
EXECS = (("etc/passwd", "etc/group"), ("root", "opt", "srv/program"))
# May a mount be made on it?
DIRECTORIES = {"directory", "deep tree", "full directory", "unreadable directory"}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return outside(tmp_path_factory.mktemp("outside"))


@pytest.fixture(scope="module")
def tame_mounts(vemgr):
    """What every VE has to have mounted."""
    name = vemgr.create()
    vemgr("start", name)
    found = mounts_of(vemgr.show(name)["pid"], name)
    vemgr("destroy", "--force", name)
    assert len(found) > 30
    return found


def plant(vemgr, name, places, trick, out):
    upper = vemgr.state / "ve" / name / "data/0/upper"
    for place in places:
        (upper / place).parent.mkdir(parents=True, exist_ok=True)
        TRICKS[trick](upper / place, out)


def answer(client, method, seconds=20, **parameters):
    """The error's code, or 0."""
    with in_time(seconds, method):
        try:
            client.call(method, parameters)
        except RemoteError as error:
            assert "defect" not in str(error), error
            return error.code, str(error)
    return 0, ""


@pytest.mark.parametrize("trick", TRICKS)
def test_starts(vemgr, fresh, out, tame_mounts, trick):
    """A start succeeds, with the same mounts as ever, or is refused, names the step and is undone."""
    before = vemgr.traces()
    with vemgr.client() as client, untouched(out):
        for group, places in STARTS.items():
            name = vemgr.new_name()
            client.call("Create", {"name": name, "template": "bb", "settings": {}})
            plant(vemgr, name, places, trick, out)
            # At a later one the VE's own files are kept.
            for _ in ("the first", "a later one") if "etc" in places[0] else ("the only",):
                code, why = answer(client, "Start", name=name)
                state = client.call("Show", {"name": name})
                if code:
                    assert code == 7 and f"VE {name} cannot start: " in why, why
                    assert places[0] in why or group in ("files", "below mounts"), why
                    assert state["state"] == "stopped"
                else:
                    assert mounts_of(state["pid"], name) == tame_mounts
                    assert answer(client, "Stop", name=name, kill=True)[0] == 0
                if group in ("proc", "sys", "dev", "run"):
                    assert (code == 0) == (trick in DIRECTORIES | {"whiteout"}), (group, why)
            etc = vemgr.state / "ve" / name / "data/0/upper/etc"
            if not etc.is_symlink() and etc.is_dir():
                assert not [file for file in os.listdir(etc) if file.startswith(".vemgr")]
            assert answer(client, "Destroy", 100, name=name)[0] == 0
    vemgr.assert_traces(before)


def test_proc_that_is_the_root(vemgr, fresh, out):
    """What is looked up in /proc would be found in the VE's own tree, and a link there leads to the host."""
    name = vemgr.create()
    upper = vemgr.state / "ve" / name / "data/0/upper"
    (upper / "sys/net/ipv4").mkdir(parents=True)
    (upper / "proc").symlink_to("/")
    (upper / "sys/net/ipv4/ping_group_range").symlink_to(out / "canary")
    with untouched(out):
        refused = vemgr("start", name, code=7).stderr
    assert "fstype=proc" in refused and "a symlink stands where a directory must be" in refused


def begin(client, name, argv, user="root", cwd="", tty=False):
    """Start a command; returns the descriptor that its status comes from, or the error."""
    one, other = socket.socketpair()
    with one, other, open(os.devnull, "r+b") as null, in_time(20, f"exec {argv} {user} {cwd}"):
        command = {"argv": argv, "env": {}, "cwd": cwd, "user": user, "tty": tty}
        fds = [one.fileno()] if tty else [null.fileno()] * 3
        try:
            return client.call("Exec", {"name": name, "command": command, "stdio": list(range(len(fds)))},
                               fds)["descriptors"][0]
        except RemoteError as error:
            assert error.code == 126 and "defect" not in str(error), error
            assert error.facts["status"] in ("126", "127")
            return str(error)


def run(client, name, argv, **options):
    """The exit status of a command, or why it was not started."""
    status = begin(client, name, argv, **options)
    if isinstance(status, str):
        return status
    try:
        return os.waitstatus_to_exitcode(struct.unpack("=i", os.read(status, 4))[0])
    finally:
        os.close(status)


@pytest.mark.parametrize("trick", TRICKS)
def test_commands(vemgr, fresh, out, trick):
    """Commands in a VE whose accounts, home, directories and programs are not what they seem."""
    with vemgr.client() as client, untouched(out):
        for places in EXECS:
            name = vemgr.new_name()
            client.call("Create", {"name": name, "template": "bb", "settings": {}})
            plant(vemgr, name, places, trick, out)
            assert answer(client, "Start", name=name)[0] == 0
            assert run(client, name, ["true"]) == 0, "root needs neither an account nor a home"
            assert run(client, name, ["true"], user="0:0") == 0
            for user in ("user", "1000", "user:extra", "nobody"):
                run(client, name, ["true"], user=user)
            run(client, name, ["true"], cwd="/opt")
            run(client, name, ["/srv/program"])
            run(client, name, ["program"], user="user", cwd="/srv")
            assert answer(client, "Stop", name=name, kill=True)[0] == 0
            assert answer(client, "Destroy", 100, name=name)[0] == 0


# Every path that the host's side looks up in a tree that a VE shapes, with what is done there. `X/*`: below a mount of
# our own on X, which was opened by its descriptor.
TOUCHED = {
    "set-up": {
        "/": "resolved by openat2", "/etc": "made", "/etc/.vemgr-N": "made, renamed", "/etc/hostname": "replaced",
        "/etc/hosts": "replaced", "/etc/resolv.conf": "read, replaced",
        "/usr": "mounted on", "/var/lib/dpkg": "mounted on", "/proc": "mounted on", "/proc/*": "masked, sysctls set",
        "/sys": "mounted on", "/sys/*": "masked", "/dev": "mounted on", "/dev/*": "made", "/run": "mounted on",
    },
    "init and commands": {
        "/": "changed to", "/dev/console": "opened: our own mount", "/sbin/init": "executed", "/etc/passwd": "read",
        "/etc/group": "read", "/dev/pts/ptmx": "opened, checked", "/tmp": "the directory asked for: changed to",
        "/root": "home: changed to", "/usr/local/sbin/P": "executed", "/usr/local/bin/P": "executed",
        "/usr/sbin/P": "executed", "/usr/bin/P": "executed", "/sbin/P": "executed", "/bin/P": "executed",
    },
    "daemon": {
        "data": "made", "data/N": "made, mounted", "data/N/upper": "made, given to the VE", "data/N/work": "made",
    },
}


def in_tree(vemgr, name, path):
    """A path on the host as one in a VE's tree, or None."""
    path = re.sub(r"\.vemgr-[0-9a-f]+", ".vemgr-N", re.sub(r"/+", "/", path).rstrip("/"))
    stage, state = f"{vemgr.run}/stage/root", f"{vemgr.state}/ve/{name}/"
    if path.startswith(f"{state}data"):
        return "daemon", re.sub(r"\d+", "N", path.removeprefix(state))
    if path.startswith(stage):
        return "set-up", re.sub(r"^/(proc|sys|dev)/.*", r"/\1/*", re.sub(r"\d+", "N", path.removeprefix(stage))) or "/"
    return None


@pytest.mark.skipif(not shutil.which("strace"), reason="no strace")
def test_the_list_is_complete(vemgr, fresh, tmp_path):
    log = str(tmp_path / "strace")
    vemgr("template", "list")  # makes the template `host`, which looks at every file of the host
    templates = {"listed": "bbinit", "listed-host": "host"}
    with vemgr.client() as client, traced([*descendants(vemgr.daemon_pid()), *descendants(vemgr.keeper_pid())], log):
        for name, template in templates.items():
            client.call("Create", {"name": name, "template": template, "settings": {}})
            client.call("Start", {"name": name})
            for command in (["prog"], ["/bin/prog"]):
                run(client, name, command)
                run(client, name, command, user="user:extra", cwd="/tmp")
            vemgr("exec", "-t", name, "--", "prog", code=None, input="")
            client.call("Show", {"name": name})
            client.call("Set", {"name": name, "settings": {"description": "x"}})
            client.call("Suspend", {"name": name})
            client.call("Resume", {"name": name})
            client.call("Restart", {"name": name, "timeout": 0})
            client.call("Stop", {"name": name, "kill": True})
            client.call("Destroy", {"name": name})
    trace = Trace(log)
    found = {"set-up": set(), "daemon": set(),
             "init and commands": {re.sub(r"(/s?bin)/prog$", r"\1/P", os.path.normpath(path)) for path in trace.inside}}
    for name in templates:
        for place in filter(None, (in_tree(vemgr, name, path) for path in trace.outside)):
            found[place[0]].add(place[1])
    differing = {who: found[who] ^ set(places) for who, places in TOUCHED.items()}
    assert not any(differing.values()), differing


def test_what_is_mounted_in_a_tree_outlives_it(vemgr, fresh, out):
    """An administrator has mounted something of the host in a VE's data: a destroy does not empty that."""
    name = vemgr.create()
    vemgr("start", name)
    vemgr("stop", "--kill", name)
    upper = vemgr.state / "ve" / name / "data/0/upper"
    (upper / "deep/er/mnt").mkdir(parents=True)
    (upper / "mnt").mkdir()
    before = picture(out)
    points = [upper / "mnt", upper / "deep/er/mnt", upper / "etc/hosts"]
    for point in points:
        source = out / "etc" if point.is_dir() else out / "canary"
        subprocess.run(["mount", "--bind", str(source), str(point)], check=True)
    try:
        vemgr("destroy", name, code=None)
        assert picture(out) == before
        assert vemgr.state_of(name) is None
    finally:
        with open("/proc/self/mountinfo") as file:
            left = [line.split()[4] for line in file if str(vemgr.state) in line]
        for point in reversed(left):
            subprocess.run(["umount", point], check=True)
    assert len(left) == len(points)
    vemgr.kill(vemgr.daemon_pid())
    vemgr("list")
    eventually(lambda: not [entry for entry in os.listdir(vemgr.state / "ve") if entry.endswith(".removed")],
               "the next daemon removes the rest")
    assert picture(out) == before


def test_files_that_cannot_be_changed(vemgr, fresh):
    """chattr +i by an administrator: the step that fails is named, and nothing is half-done."""
    name = vemgr.create()
    vemgr("start", name)
    vemgr("stop", "--kill", name)
    upper = vemgr.state / "ve" / name / "data/0/upper"
    with immutable(upper):
        vemgr("start", name)  # it is as it should be
        vemgr("stop", "--kill", name)
    upper.chmod(0o700)
    with immutable(upper):
        assert f"prepare the data of VE {name}: Operation not permitted" in vemgr("start", name, code=3).stderr
    resolver = upper / "etc/resolv.conf"
    file, before = resolver.stat().st_ino, resolver.read_text()
    with immutable(upper / "etc"):
        vemgr("start", name)  # what is as it should be is not touched
        vemgr("stop", "--kill", name)
        resolver.write_text(f"{before}# changed\n")
        refused = vemgr("start", name, code=7).stderr
        assert "etc/resolv.conf" in refused and "not permitted" in refused, refused
    vemgr("start", name)
    vemgr("stop", "--kill", name)
    assert resolver.read_text() == before and resolver.stat().st_ino != file
    resolver.write_text("# an administrator's own\n")
    vemgr("start", name)
    vemgr("stop", "--kill", name)
    assert resolver.read_text() == "# an administrator's own\n"


@pytest.mark.parametrize("make", [
    "true", "mkfifo ptmx", "mkdir ptmx", "echo > ptmx", "ln -s ptmx ptmx", "ln -s /nowhere ptmx",
    "dd if=/dev/zero of=ptmx bs=1 count=1 seek=100000000000", "ln -s /dev/ptmx ptmx",
    "ln -s /proc/self/fd/3 ptmx", "ln -s /proc/1/root/dev/null ptmx", "ln -s {out}/etc/ptmx ptmx",
    "touch ptmx && mount --bind /dev/null ptmx", "touch ptmx && mount --bind /dev/console ptmx",
    "touch ptmx && mount --bind /proc/version ptmx"])
def test_the_terminal_of_a_command(vemgr, running, out, make):
    """A VE's root mounts over /dev/pts and puts something in place of the multiplexer."""
    vemgr("exec", running, "--", "sh", "-c",
          f"mount -t tmpfs theirs /dev/pts && cd /dev/pts && {make.format(out=out)}")
    with vemgr.client() as client, untouched(out):
        refused = run(client, running, ["true"], tty=True)
        assert "open a terminal: " in str(refused), refused
        assert run(client, running, ["true"]) == 0


# Swapped as fast as busybox can, by a VE that runs.
SWAPPING = """
cd /; mkdir -p swap; cp etc/passwd swap/passwd
while :; do
  for what in {out}/etc /proc/1/root{out}/etc /proc/self/root /; do
    for path in etc/passwd etc/group etc/resolv.conf opt root bin/prog etc dev proc; do
      ln -s $what swap/link; mv -T $path swap/was; mv -T swap/link $path; rm -f $path; mkfifo $path; rm -f $path
      mv -T swap/was $path
    done
    cp swap/passwd etc/passwd
  done
done
"""


def furnish(upper):
    for entry in upper.iterdir() if upper.exists() else ():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    for directory in ("opt", "root", "bin"):
        (upper / directory).mkdir(parents=True)
    (upper / "bin/prog").symlink_to("busybox")


def test_swapping_while_the_host_looks(vemgr, fresh, out):
    name = vemgr.new_name()
    outcomes = set()
    with vemgr.client() as client, untouched(out):
        client.call("Create", {"name": name, "template": "bb", "settings": {}})
        for _ in range(3):
            furnish(vemgr.state / "ve" / name / "data/0/upper")
            assert answer(client, "Start", name=name)[0] == 0
            os.close(begin(client, name, ["sh", "-c", SWAPPING.format(out=out)]))
            for number in range(60):
                user, cwd = ("user", "root", "user:extra")[number % 3], ("", "/opt")[number % 2]
                outcomes.add(str(run(client, name, ["prog"] if number % 4 else ["/bin/true"], user=user, cwd=cwd)))
                if number % 20 == 0:
                    assert answer(client, "Set", name=name, settings={"description": f"{number}"})[0] == 0
                    assert answer(client, "Show", name=name)[0] == 0
            code, why = answer(client, "Restart", name=name, timeout=0)
            assert code in (0, 7), why  # the tree is as it was when its processes were killed
            if code == 0:
                assert answer(client, "Stop", name=name, kill=True)[0] == 0
        assert answer(client, "Destroy", 100, name=name)[0] == 0
    assert "0" in outcomes and len(outcomes) > 2, ("the swapping was seen", outcomes)
