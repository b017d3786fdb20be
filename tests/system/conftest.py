# SPDX-License-Identifier: GPL-2.0-or-later
"""The system ring: vemgr as an administrator has it, with the shipped units, on a booted machine with cgroup v2.

The units are installed as they are shipped and taken away again; tests speak to vemgr by its command line. A host
where vemgr is installed already is left alone.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from vemgr.api.client import Client

PROJECT = Path(__file__).parents[2]
UNITS = sorted((PROJECT / "systemd").iterdir())
UNIT_DIR = Path("/etc/systemd/system")
PREFIX = Path("/opt/vemgr")  # where the units look for the program
STATE = Path("/var/lib/vemgr")
RUN = Path("/run/vemgr")
# A daemon that has come up a moment ago looks through the host's files, directory by directory.
_OF_THE_LOOK = re.compile(r"^(/usr|/var/lib/dpkg)(/|$)|/templates/host/")
CONTROLLERS = {"cpu", "cpuset", "memory", "io", "pids"}

# What has to be run around a reboot is no test of this session: scripts/test drives it.
collect_ignore = [] if os.environ.get("VEMGR_REBOOT") else ["reboot"]


def cannot(reason):
    """Skip, except on a machine that has been chosen because it can."""
    (pytest.fail if os.environ.get("VEMGR_MUST_WORK") else pytest.skip)(reason)


def until(condition, seconds=30.0, what=""):
    """Wait for a condition and return its value, which is the last word on why it has failed."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s: {what or condition} ({value!r})")
        time.sleep(0.1)
    return value


def systemctl(*words, check=True):
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, timeout=180)
    assert not check or done.returncode == 0, done.stderr + journal()
    return done.stdout.strip()


def main_pid(unit):
    return int(systemctl("show", "--property=MainPID", "--value", unit))


def journal():
    return subprocess.run(["journalctl", "--no-pager", "-n", "60", "-u", "vemgr", "-u", "vemgr-keeper"],
                          capture_output=True, text=True).stdout


class Vemgr:
    """The command line. Calling it runs one command; `status` is the exit code that it must have."""

    program = f"{PREFIX}/bin/vemgr"

    def __call__(self, *words, status=0, timeout=240, **options):
        # A file of nothing as standard input: a test that waits for the terminal would wait forever.
        options.setdefault("stdin", subprocess.DEVNULL)
        done = subprocess.run([self.program, *map(str, words)], capture_output=True, text=True, timeout=timeout,
                              **options)
        assert status in (None, done.returncode), (
            f"vemgr {' '.join(map(str, words))}: exit code {done.returncode}, not {status}\n"
            f"{done.stdout}{done.stderr}{journal()}")
        return done

    # To look costs a test the second that Python takes to start in the test VM: what is looked at often comes by the
    # API, as the command line gets it. The commands that print it have tests of their own.

    def ask(self, method, **parameters):
        client = Client(f"{RUN}/vemgr.sock")
        with contextlib.closing(client):
            return client.call(method, parameters)

    def list(self):
        return {ve["name"]: ve for ve in self.ask("List")["ves"]}

    def host(self):
        return self.ask("GetHost")


class VE:
    """A VE of one test."""

    def __init__(self, vemgr, name):
        self.vemgr, self.name = vemgr, name
        self.group = Path(vemgr.host()["cgroup"], name)
        self.processes = []

    def exec(self, *argv, **options):
        return self.vemgr("exec", self.name, "--", *argv, **options)

    def spawn(self, *argv, **options):
        """A command that goes on beside the test; ended with the VE at the latest."""
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, **options}
        process = subprocess.Popen([self.vemgr.program, "exec", self.name, "--", *argv], text=True, **options)
        self.processes.append(process)
        return process

    def burn(self, loops=1):
        """Keep as many CPUs busy as it gets."""
        before = self.number("pids.current")
        for _ in range(loops):
            self.spawn("sh", "-c", "while :; do :; done")
        until(lambda: self.number("pids.current") >= before + loops, what="busy loops in the VE")

    def set(self, status=0, **settings):
        return self.vemgr("set", self.name, *options_of(settings), status=status)

    def show(self):
        return self.vemgr.ask("Show", name=self.name)

    def in_force(self, key):
        return self.show()["inForce"].get(key)

    def definition(self):
        (file,) = (STATE / "ve" / self.name).glob("*.toml")
        return tomllib.loads(file.read_text())

    def read(self, file):
        return (self.group / file).read_text().strip()

    def number(self, file):
        return int(self.read(file))

    def table(self, file):
        """A file of "key value" lines."""
        return {key: int(value) for key, value in (line.split() for line in self.read(file).splitlines())}

    def io(self):
        """What the VE has read and written: {device: {"rbytes": 1, ...}}."""
        lines = (line.split() for line in self.read("io.stat").splitlines())
        return {line[0]: {key: int(value) for key, value in (pair.split("=") for pair in line[1:])} for line in lines}

    def destroy(self):
        self.vemgr("destroy", "--force", self.name, status=None)
        while self.processes:  # a test may destroy what its fixture destroys in the end
            process = self.processes.pop()
            process.kill()
            process.communicate()


def options_of(settings):
    return [f"--{key.replace('_', '-')}={value}" for key, value in settings.items()]


def cpu_shares(ves, seconds):
    """What part of one CPU each VE got, over so many seconds."""
    def look():
        return time.monotonic(), [ve.table("cpu.stat")["usage_usec"] for ve in ves]

    began, before = look()
    time.sleep(seconds)
    ended, after = look()
    return [(b - a) / 1e6 / (ended - began) for a, b in zip(before, after, strict=True)]


@dataclass(frozen=True)
class Traces:
    """All that VEs could leave on the host."""

    mounts: Counter
    cgroups: frozenset
    links: frozenset
    rules: str
    files: frozenset
    descriptors: dict  # of daemon and keeper, by what they are
    children: int  # of the keeper, dead ones that nobody has asked for among them
    memory: dict = field(compare=False)  # of daemon and keeper, in KiB

    @property
    def links_of_ves(self):
        return {name for name in self.links if re.fullmatch(r"ve[0-9a-f]+", name)}

    @property
    def cgroups_of_ves(self):
        return {path for path in self.cgroups if "/ve/" in path}


def traces_of(base):
    pids = {unit: main_pid(unit) for unit in ("vemgr", "vemgr-keeper")}
    mounts = Counter()
    for who in ("self", *pids.values()):
        lines = Path(f"/proc/{who}/mountinfo").read_text().splitlines()
        mounts.update(re.sub(r"^\d+ \d+ ", "", line) for line in lines)
    ruleset = subprocess.run(["nft", "--stateless", "list", "ruleset"], capture_output=True, text=True, check=True)
    status = {unit: Path(f"/proc/{pid}/status").read_text() for unit, pid in pids.items()}
    return Traces(
        mounts=mounts,
        cgroups=frozenset(directory for directory, _, _ in os.walk(base)),
        links=frozenset(os.listdir("/sys/class/net")),
        rules=ruleset.stdout,
        files=frozenset(f"{directory}/{name}" for top in (STATE, RUN) for directory, directories, names in os.walk(top)
                        for name in (*directories, *names)),
        descriptors={unit: descriptors_of(pid) for unit, pid in pids.items()},
        children=len(Path(f"/proc/{pids['vemgr-keeper']}/task/{pids['vemgr-keeper']}/children").read_text().split()),
        memory={unit: int(re.search(r"VmRSS:\s+(\d+)", text)[1]) for unit, text in status.items()},
    )


def descriptors_of(pid):
    found = Counter()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            path = os.readlink(fd)
            if not _OF_THE_LOOK.search(path):
                found[re.sub(r"\d+", "N", path)] += 1
    return found


@pytest.fixture
def traces(vemgr):
    base = vemgr.host()["cgroup"]

    return lambda: traces_of(base)


_figures = []


@pytest.fixture
def figure(request):
    """figure(TEXT): what was measured, for the end of the log: a test that passes should still say by how much."""
    return lambda text: _figures.append(f"{request.node.name}: {text}")


def pytest_terminal_summary(terminalreporter):
    if _figures:
        terminalreporter.section("measured")
        for line in _figures:
            terminalreporter.write_line(line)


def _prerequisites():
    if not Path("/run/systemd/system").is_dir():
        cannot("systemd is not in charge here")
    controllers = Path("/sys/fs/cgroup/cgroup.controllers")
    missing = CONTROLLERS - set(controllers.read_text().split() if controllers.exists() else ())
    if missing:
        cannot(f"cgroup v2 lacks {', '.join(sorted(missing))} here")
    if not os.access(UNIT_DIR, os.W_OK):
        cannot(f"units cannot be installed: no right to write to {UNIT_DIR}")
    ours = PREFIX.is_symlink() and PREFIX.resolve() == Path(sys.prefix)
    if (PREFIX.exists() and not ours) or STATE.exists():
        cannot("vemgr is installed here, and tests must not meddle with its VEs (scripts/uninstall takes it away)")
    if not Path(sys.prefix, "bin/vemgr").exists():
        cannot(f"vemgr is not installed in {sys.prefix}, where the tests run")


@contextlib.contextmanager
def installed():
    """The shipped units, installed and started; everything is taken back."""
    with contextlib.ExitStack() as undo:
        for directory in (STATE, RUN):
            undo.callback(shutil.rmtree, directory, ignore_errors=True)
        if not PREFIX.exists():
            PREFIX.symlink_to(sys.prefix)
            undo.callback(PREFIX.unlink)
        for unit in UNITS:
            shutil.copy(unit, UNIT_DIR)
            undo.callback((UNIT_DIR / unit.name).unlink)
        names = [unit.name for unit in UNITS]
        systemctl("daemon-reload")
        systemctl("--quiet", "enable", *names)
        undo.callback(systemctl, "--quiet", "disable", *names, check=False)
        undo.callback(systemctl, "stop", *names, check=False)
        systemctl("start", *names)
        undo.callback(subprocess.run, [Vemgr.program, "shutdown", "--timeout", "5"], stdin=subprocess.DEVNULL)
        yield


@pytest.fixture(scope="session")
def vemgr(tmp_path_factory):
    """The installed vemgr, with a small template `busybox` that has no init of its own."""
    _prerequisites()
    root = tmp_path_factory.mktemp("busybox")
    busybox_root(root)
    with installed():
        command = Vemgr()
        command("template", "import", "busybox", root)
        yield command


def busybox_root(root):
    program = shutil.which("busybox")
    if program is None:
        cannot("busybox-static is not installed")
    for directory in ("bin", "etc", "proc", "sys", "dev", "tmp", "run", "root", "var"):
        (root / directory).mkdir()
    shutil.copy(program, root / "bin/busybox")
    # Without /sbin/init and /bin/init, so that vemgr's own reaper is process 1.
    applets = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for applet in set(applets) - {"busybox", "init", "linuxrc"}:
        (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")


@contextlib.contextmanager
def ves_of(vemgr):
    made = []

    def make(name, template="busybox", **settings):
        vemgr("create", name, "--template", template, *options_of(settings))
        ve = VE(vemgr, name)
        made.append(ve)
        vemgr("start", name)
        if "group" in settings:
            ve.group = Path(ve.show()["cgroup"])
        return ve

    try:
        yield make
    finally:
        for ve in made:
            ve.destroy()


@pytest.fixture
def make_ve(vemgr):
    """make_ve(NAME, template=..., cpus=..., ...): a running VE, destroyed after the test."""
    with ves_of(vemgr) as make:
        yield make


@pytest.fixture(scope="module")
def module_ves(vemgr):
    """The same for VEs that several tests share."""
    with ves_of(vemgr) as make:
        yield make


# With --import-mode=importlib a test cannot import this file: what it needs comes as fixtures.

@pytest.fixture(name="until", scope="session")
def until_fixture():
    return until


@pytest.fixture(name="burn", scope="session")
def burn_fixture():
    return VE.burn


@pytest.fixture(name="cpu_shares", scope="session")
def cpu_shares_fixture():
    return cpu_shares


@pytest.fixture
def command():
    """The command line of a vemgr that has been installed by other means than this file's."""
    return Vemgr()


@pytest.fixture(name="systemctl", scope="session")
def systemctl_fixture():
    return systemctl


@pytest.fixture(name="main_pid", scope="session")
def main_pid_fixture():
    return main_pid


@pytest.fixture(name="cannot", scope="session")
def cannot_fixture():
    return cannot
