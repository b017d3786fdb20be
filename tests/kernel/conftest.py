# SPDX-License-Identifier: GPL-2.0-or-later
"""A vemgr of the tests' own, driven through its command line, on this host's kernel.

It has its own state, bridge, table and part of the cgroup tree, and lives in a network namespace that is made for it.
The namespace is entered with nsenter and not with `ip netns exec`, which mounts a fresh /sys without the cgroups.
"""

import contextlib
import fcntl
import itertools
import json
import os
import pty
import re
import secrets
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections import Counter
from pathlib import Path

import pytest

from vemgr.api.client import Client
from vemgr.kernel.cgroups import cgroup2_mountpoint

ROOT = Path(__file__).parents[2]
BUSYBOX = "/bin/busybox"
_OF_THE_LOOK = re.compile(r"^(/usr|/var/lib/dpkg)(/|$)|/templates/host/")


def eventually(condition, why, timeout=10.0):
    """What the kernel does behind our back needs a moment: wait for `condition` to be true."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline, why() if callable(why) else why
        time.sleep(0.02)
    return found


def is_alive(pid):
    """Zombies do not count: process 1 of a container may never reap what falls to it. But one whose other threads have
    not ended yet does: they keep its sockets, and a client may connect to a daemon that is dead already."""
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z" or len(os.listdir(f"/proc/{pid}/task")) > 1
    except OSError:
        return False


def lines_of(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.splitlines()


def _differing(before, after):
    """What has gone and what has come, where it can be told: pytest cuts long lists short."""
    if isinstance(before, list):
        gone, come = Counter(before), Counter(after)
        return {"gone": [*(gone - come).elements()], "come": [*(come - gone).elements()]}
    return before, after


def _connected_to(path):
    """How many connections to a listener at `path` this process holds."""
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                with socket.socket(fileno=os.dup(int(fd))) as ours:
                    count += ours.family == socket.AF_UNIX and str(ours.getpeername()).startswith(path)
    return count


class Instance:
    """One vemgr. Calling it runs the command line: `vemgr("start", "web1", code=32)`."""

    def __init__(self, base, state_dir=None):
        self.base = Path(base)
        self.tag = secrets.token_hex(3)
        self.netns = f"vemgr-test-{self.tag}"
        self.state, self.run = Path(state_dir or self.base / "state"), self.base / "run"
        self.cgroup = f"{cgroup2_mountpoint()}/{self.netns}"
        self.config = self.base / "vemgr.toml"
        self.config.write_text(
            f'state-dir = "{self.state}"\nrun-dir = "{self.run}"\nbridge = "vt{self.tag}"\ntable = "vt{self.tag}"\n'
            f'cgroup = "{self.netns}"\nhooks-dir = "{self.base}/hooks"\nhook-timeout = 1\n'
            f'profiles-dir = "{self.base}/profiles"\n')
        self._numbers = itertools.count(1)
        self._used_daemon = None
        subprocess.run(["ip", "netns", "add", self.netns], check=True, timeout=20)
        subprocess.run(["ip", "-n", self.netns, "link", "set", "lo", "up"], check=True, timeout=20)

    def command(self, *arguments):
        return ["nsenter", f"--net=/run/netns/{self.netns}", sys.executable, "-m", "vemgr.cli", *arguments]

    def environment(self, **more):
        return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "VEMGR_CONFIG": str(self.config), **more}

    def __call__(self, *arguments, code=0, env=None, **options):
        """Run to the end and return what it printed. `code` None: any exit code will do."""
        given = {"text": True, "timeout": 60, **options}
        if "input" not in given:
            given.setdefault("stdin", subprocess.DEVNULL)
        run = subprocess.run(self.command(*arguments), env=self.environment(**(env or {})), capture_output=True,
                             **given)
        assert code in (None, run.returncode), (arguments, run.returncode, run.stdout[-3000:], run.stderr[-3000:])
        if options.get("text", True):
            assert "Traceback" not in run.stderr, run.stderr
        return run

    def popen(self, *arguments, **options):
        return subprocess.Popen(self.command(*arguments), env=self.environment(),
                                **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE,
                                   "text": True} | options)

    def out(self, *arguments, **options):
        return self(*arguments, **options).stdout

    def json(self, *arguments):
        return json.loads(self.out(*arguments, "--json"))

    def show(self, name):
        return self.json("show", name)

    def state_of(self, name):
        return next((ve["state"] for ve in self.json("list") if ve["name"] == name), None)

    @contextlib.contextmanager
    def client(self):
        """The API without a command line around it: a tenth of the time."""
        client = Client(f"{self.run}/vemgr.sock")
        try:
            yield client
        finally:
            client.close()

    def new_name(self):
        return f"ve{next(self._numbers)}"

    def create(self, *options, template="bb", name=None):
        name = name or self.new_name()
        self("create", name, "--template", template, *options)
        return name

    def import_busybox(self, name="bb", *, init=False, change=None):
        """A template of busybox alone; without `init` it has vemgr's built-in one. `change`: what to do to its tree."""
        tree = self.base / f"tree-{name}"
        for directory in ("bin", "etc", "proc", "sys", "dev", "tmp", "root", "run", "usr", "sbin"):
            (tree / directory).mkdir(parents=True)
        (tree / "tmp").chmod(0o1777)
        shutil.copy2(BUSYBOX, tree / "bin/busybox", follow_symlinks=True)
        for applet in lines_of(BUSYBOX, "--list"):
            if applet not in ("busybox", "init", "linuxrc"):
                (tree / "bin" / applet).symlink_to("busybox")
        (tree / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:a user:/tmp:/bin/sh\n")
        (tree / "etc/group").write_text("root:x:0:\nuser:x:1000:\nextra:x:44:user\n")
        if init:
            (tree / "sbin/init").symlink_to("/bin/busybox")
            (tree / "etc/inittab").write_text("::sysinit:/bin/true\n")
        if change:
            change(tree)
        self("template", "import", name, str(tree))
        shutil.rmtree(tree)

    # the processes behind it

    def daemon_pid(self):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(f"{self.run}/vemgr.sock")
            return struct.unpack("iII", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]

    def keeper_pid(self):
        return self.json("host")["keeperPid"]

    def spawner_pid(self):
        """Of the process that VEs are forked from; there is one once a VE has been started."""
        keeper = self.keeper_pid()
        with open(f"/proc/{keeper}/task/{keeper}/children") as file:
            children = file.read().split()
        return next(int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text() == "vemgr-spawner\n")

    @staticmethod
    def kill(pid):
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not is_alive(pid), f"process {pid} does not die")

    # what is there

    def links(self):
        return sorted(line.split()[1].split("@")[0].rstrip(":") for line in
                      lines_of("ip", "-n", self.netns, "-o", "link"))

    def ip_batch(self, lines):
        subprocess.run(["ip", "-n", self.netns, "-batch", "-"], input="\n".join(lines), check=True, text=True,
                       capture_output=True, timeout=60)

    def ruleset(self):
        text = "\n".join(lines_of("nsenter", f"--net=/run/netns/{self.netns}", "nft", "list", "ruleset"))
        return re.sub(r"packets \d+ bytes \d+", "", text)

    def cgroups(self):
        return sorted(directory for directory, _, _ in os.walk(self.cgroup))

    def files(self):
        """Everything of ours on disk, less the logs, which grow."""
        found = {}
        for top in (self.state, self.run):
            for directory, names, files in os.walk(top):
                if "/templates/" in directory:
                    names[:] = []
                found[directory] = sorted(file for file in files if not file.endswith(".log"))
        return found

    @staticmethod
    def descriptors(pid):
        """What the descriptors of a process lead to; numbers of pipes and sockets differ each time.

        Without those of the look through the host's files that a daemon has after it has begun: on a loaded machine
        that takes minutes, and a picture with it in it is like no later one.
        """
        found = []
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                found.append(re.sub(r"\d+", "N", os.readlink(f"/proc/{pid}/fd/{fd}")))
        return sorted(path for path in found if not _OF_THE_LOOK.search(path))

    def traces(self):
        """All that starting and stopping VEs could leave behind on this host."""
        self._use_daemon()
        # The kernel takes the link of a stopped VE down in its own time; a picture taken before shows it as ours.
        wanted = [ve for ve in self.json("list") if ve["state"] != "stopped" and ve["address"]]
        eventually(lambda: len([link for link in self.links() if link.startswith("ve")]) == len(wanted),
                   lambda: f"links {self.links()} of {wanted}", timeout=30.0)
        # Before the look at the daemon: each of them is a connection to it.
        daemon, keeper = self.daemon_pid(), self.keeper_pid()
        self._await_rest(daemon)
        with open("/proc/self/mountinfo") as file:
            mounts = sorted(line.split(" - ")[0].split(maxsplit=2)[2] for line in file)
        return {
            "mounts": [mount for mount in mounts if self.netns in mount or str(self.base) in mount],
            "cgroups": self.cgroups(), "links": self.links(), "rules": self.ruleset(), "files": self.files(),
            "daemon": self.descriptors(daemon), "keeper": self.descriptors(keeper),
        }

    def _use_daemon(self):
        """What all VEs share, a daemon has from the first start on: a picture without it would be like no later one."""
        daemon = self.daemon_pid()
        if daemon != self._used_daemon and "bb" in {template["name"] for template in self.json("template", "list")}:
            self("run", "--template", "bb", "--", "true")
            self._used_daemon = daemon

    def _await_rest(self, daemon):
        """A daemon that gets no CPU still holds connections that their clients have closed, and removes what earlier
        tests have destroyed. A picture taken before that has ended has more in it than any later one."""
        path = f"{self.run}/vemgr.sock"

        def connections():
            # The daemon's end of a connection belongs to the network namespace of the client.
            found = {line for who in ("self", daemon) for line in Path(f"/proc/{who}/net/unix").read_text().splitlines()
                     if f" {path}" in line}
            return [line for line in found if line.split()[5] != "01"]  # 01: nobody is connected, as with a listener

        def removals():
            return [entry for entry in os.listdir(self.state / "ve") if entry.endswith(".removed")]

        eventually(lambda: len(connections()) <= _connected_to(path) and not removals(),
                   lambda: (connections(), removals()), timeout=60.0)

    def assert_traces(self, before):
        """Nothing but what was there `before`."""
        def difference():
            after = self.traces()
            return {key: _differing(before[key], after[key]) for key in before if before[key] != after[key]}

        eventually(lambda: not difference(), difference, timeout=30.0)

    def close(self):
        """Shut down, and see that nothing is left."""
        try:
            if (self.run / "vemgr.sock").exists():
                names = [ve["name"] for ve in self.json("list")]
                if names:
                    self("destroy", "--force", *names)
                daemon, keeper = self.daemon_pid(), self.keeper_pid()
                self("shutdown", "--timeout", "0")
                eventually(lambda: not is_alive(daemon) and not is_alive(keeper), "daemon or keeper stays")
                assert self.links() == ["lo"]
                assert self.ruleset() == ""
                assert self.cgroups() == []
                assert str(self.base) not in Path("/proc/self/mountinfo").read_text().replace(f" {self.state} ", "")
        finally:
            subprocess.run(["ip", "netns", "del", self.netns], check=True, timeout=20)


class Terminal:
    """A person at a terminal of `columns` x `rows` who runs a command of vemgr on it."""

    def __init__(self, vemgr, *arguments, rows=30, columns=100, command=None):
        self.master, slave = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.text = ""
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *(command or vemgr.command(*arguments))], env=vemgr.environment(TERM="vt100"),
            stdin=slave, stdout=slave, stderr=slave)

    def resize(self, rows, columns):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text):
        os.write(self.master, text.encode())

    def read(self, timeout):
        ready, _, _ = select.select([self.master], [], [], timeout)
        if ready:
            self.text += os.read(self.master, 65536).decode(errors="replace").replace("\r\n", "\n")
        return bool(ready)

    def expect(self, text, timeout=20):
        """Wait until `text` has appeared and forget what came before; returns that."""
        deadline = time.monotonic() + timeout
        while text not in self.text:
            assert self.read(deadline - time.monotonic()) or time.monotonic() < deadline, (text, self.text[-2000:])
        before, _, self.text = self.text.partition(text)
        return before

    def wait(self, timeout=20):
        deadline = time.monotonic() + timeout
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.text[-2000:]
            self.read(0.05)
        while self.read(0.05):
            pass
        return self.process.returncode

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


def _probe():
    """Why this host cannot run VEs at all, or "": the capability, not the user id."""
    try:
        base = cgroup2_mountpoint()
        os.mkdir(f"{base}/vemgr-probe-{os.getpid()}")
        os.rmdir(f"{base}/vemgr-probe-{os.getpid()}")
        subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], check=True, timeout=20,
                       capture_output=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"cannot make namespaces or cgroups here: {error}"
    missing = [tool for tool in ("ip", "nft", "nsenter", BUSYBOX) if shutil.which(tool) is None]
    return f"missing: {missing}" if missing else ""


@pytest.fixture(scope="session")
def can_run_ves():
    why = _probe()
    if why:
        (pytest.fail if os.environ.get("VEMGR_MUST_WORK") == "1" else pytest.skip)(why)


@pytest.fixture(scope="session")
def make_instance(can_run_ves):
    """Make a further instance, for tests that kill or starve it: `with make_instance() as vemgr`."""
    @contextlib.contextmanager
    def make(state_dir=None, template=True):
        # On a disk, as a real one is; /tmp may be a tmpfs.
        with tempfile.TemporaryDirectory(prefix="vemgr-test-", dir="/var/tmp") as base:
            instance = Instance(base, state_dir)
            try:
                if template:
                    instance.import_busybox()
                yield instance
            finally:
                log = instance.run / "daemon.log"
                if log.exists():
                    print(log.read_text())
                instance.close()
    return make


@pytest.fixture(scope="session")
def vemgr(make_instance):
    """The instance that most tests share."""
    with make_instance() as instance:
        instance.import_busybox("bbinit", init=True)
        yield instance


@pytest.fixture
def ve(vemgr):
    """A stopped VE with the built-in init."""
    name = vemgr.create()
    yield name
    vemgr("destroy", "--force", name, code=None)


@pytest.fixture
def running(vemgr, ve):
    vemgr("start", ve)
    return ve


@pytest.fixture
def fresh(vemgr):
    """For tests that create VEs themselves: destroys what they leave, and sees that the names are free again."""
    before = {ve["name"] for ve in vemgr.json("list")}
    yield vemgr
    left = [ve["name"] for ve in vemgr.json("list") if ve["name"] not in before]
    if left:
        vemgr("destroy", "--force", *left)


@pytest.fixture
def terminal(vemgr):
    with contextlib.ExitStack() as stack:
        yield lambda *arguments, **options: stack.enter_context(
            contextlib.closing(Terminal(vemgr, *arguments, **options)))
