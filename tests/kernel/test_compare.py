# SPDX-License-Identifier: GPL-2.0-or-later
"""The drivers of the comparison: each does what the interface says, and a run that is killed leaves nothing."""

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import traceback
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.kernel.conftest import eventually
from vemgr.compare import drivers, marked, stage
from vemgr.compare.driver import Background, CommandTimedOut, Context, Driver, Instance, Resources
from vemgr.compare.guests import accelerator
from vemgr.compare.guests.accelerator import Verdict
from vemgr.compare.guests.domain import HOSTING
from vemgr.compare.guests.kernel import find
from vemgr.core.errors import VemgrError

#: Where `vemgr compare kernel` has put one, if somebody has said it here.
FETCHED = Path("/var/lib/vemgr/compare/kernel")
RESOURCES = Resources(1, 256 << 20)
LOCAL = ["host", "ve", "crun", "runc", "podman", "lxc", "systemd-nspawn"]


@pytest.fixture
def context(fresh, tmp_path_factory):
    directory = fresh.base / f"compare-{os.urandom(3).hex()}"
    yield Context(directory, str(fresh.config), "bb")
    for name in ("cmp-one", "cmp-two"):  # LXC's
        assert not [*Path("/sys/fs/cgroup").glob(f"vemgr-compare/{name}"),
                    *Path("/sys/fs/cgroup").glob(f"*/vemgr-compare/{name}")]
    assert str(directory) not in Path("/proc/self/mountinfo").read_text()
    assert not [*(directory / "journal").glob("*")] and not [*(directory / "instances").glob("*")]
    shutil.rmtree(directory, ignore_errors=True)


def template_tree(vemgr):
    (found,) = (vemgr.state / "templates" / "bb").glob("**/bin/busybox")
    return found.parents[1]


def skip_unless_there(driver):
    """Host and VEs there are wherever this ring runs; of the others the driver says why it has them not."""
    why = driver.probe()
    assert not why or driver.name not in ("host", "ve"), why
    if why:
        assert driver.name in why, why
        pytest.skip(why)


@contextlib.contextmanager
def ready(name, context, vemgr):
    driver = drivers.driver(name, context)
    assert isinstance(driver, Driver)
    skip_unless_there(driver)
    try:
        driver.prepare(template_tree(vemgr), RESOURCES, context.directory / name)
        yield driver
    finally:
        driver.close()


def on_stage(test):
    """As a run does it: where v1 has the controllers, in a mount namespace with a cgroup v2 tree, and so in a child."""
    @functools.wraps(test)
    def do(**fixtures):
        if not stage.is_hybrid():
            test(**fixtures)
            return
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            with open(writer, "w") as said:
                try:
                    stage.enter()
                    test(**fixtures)
                except pytest.skip.Exception as why:
                    said.write(f"skip:{why}")
                except BaseException:
                    said.write(traceback.format_exc())
            os._exit(0)
        os.close(writer)
        with open(reader) as said:
            found = said.read()
        assert os.waitpid(child, 0)[1] == 0, found
        if found.startswith("skip:"):
            pytest.skip(found.removeprefix("skip:"))
        assert not found, found
    return do


@pytest.mark.parametrize("name", LOCAL)
@on_stage
def test_an_instance_runs_commands(name, context, fresh):
    with ready(name, context, fresh) as driver:
        instance = driver.start("cmp-one", RESOURCES)
        assert isinstance(instance, Instance)
        assert 0 < instance.first_instruction < instance.up
        assert instance.memory() > 0 and driver.disk_bytes() > 0

        done = instance.run(["sh", "-c", "cat; echo error >&2; pwd; exit 7"], timeout=30, input=bytes(range(256)) * 999)
        assert (done.code, done.stdout, done.stderr) == (7, bytes(range(256)) * 999 + b"/\n", b"error\n")
        assert done.seconds > 0
        assert instance.run(["no-such-program"], timeout=30).code in (127, 255)  # runc has a word of its own
        assert instance.run(["sh", "-c", "kill -9 $$"], timeout=30).code == 137
        found = instance.run(["env"], timeout=30).stdout.decode().splitlines()
        assert "HOME=/root" in found and not any("PYTHON" in line or "PYTEST" in line for line in found)

        # Its writes are its own, and go with it.
        other = driver.start("cmp-two", RESOURCES)
        assert instance.run(["touch", "/root/mine"], timeout=30).code == 0
        assert other.run(["ls", "/root"], timeout=30).stdout == b""
        assert other.stop() >= 0
        assert instance.run(["ls", "/root"], timeout=30).stdout == b"mine\n"
        assert instance.stop() >= 0
        again = driver.start("cmp-one", RESOURCES)
        assert again.run(["ls", "/root"], timeout=30).stdout == b""


@pytest.mark.parametrize("name", ["host", "ve"])
def test_a_command_that_does_not_end_is_killed(name, context, fresh):
    with ready(name, context, fresh) as driver:
        instance = driver.start("cmp-late", RESOURCES)
        with pytest.raises(CommandTimedOut, match="cmp-late"):
            instance.run(["sh", "-c", "sleep 987654 & trap '' TERM; sleep 987654"], timeout=0.5)
        assert b"987654" not in instance.run(["ps"], timeout=30).stdout.replace(b"ps", b"")

        server = instance.spawn(["sh", "-c", "sleep 987654 & sleep 987654"])
        assert isinstance(server, Background)
        eventually(lambda: instance.run(["ps"], timeout=30).stdout.count(b"987654") >= 2, "it does not run")
        server.stop()
        server.stop()
        assert b"987654" not in instance.run(["ps"], timeout=30).stdout


KILLED = """
import sys, time
from pathlib import Path
from vemgr.compare import drivers
from vemgr.compare.driver import Context, Resources
name, directory, config, tree = sys.argv[1:]
driver = drivers.driver(name, Context(Path(directory), config, "bb"))
driver.prepare(Path(tree), Resources(1, 256 << 20), Path(directory) / name)
instance = driver.start("cmp-killed", Resources(1, 256 << 20))
instance.spawn(["sleep", "987654"])
print("running", flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("name", ["host", "ve", "runc"])
def test_what_a_killed_run_left_is_removed(name, context, fresh):
    driver = drivers.driver(name, context)
    skip_unless_there(driver)
    before = fresh.traces()
    run = subprocess.Popen([sys.executable, "-c", KILLED, name, str(context.directory), str(context.config),
                            str(template_tree(fresh))], env=fresh.environment(), stdout=subprocess.PIPE, text=True)
    try:
        assert run.stdout.readline() == "running\n"
        assert driver.clean() == []  # it is alive
    finally:
        run.send_signal(signal.SIGKILL)
        run.communicate()
    removed = driver.clean()
    assert any("cmp-killed" in line for line in removed), removed
    assert driver.clean() == []
    driver.close()
    fresh.assert_traces(before)


# A guest that runs, for one to kill; what it says of itself is a line of JSON.
GUEST = """
import json, sys, time
from pathlib import Path
from vemgr.compare import drivers
from vemgr.compare.driver import Context, Resources
name, directory, tree = sys.argv[1:]
driver = drivers.driver(name, Context(Path(directory), "", ""))
driver.prepare(Path(tree), Resources(1, 256 << 20), Path(directory) / name)
guest = driver.start("cmp-guest", Resources(1, 256 << 20))
done = guest.run(["sh", "-c", "cat; hostname; exit 7"], timeout=120, input=b"input ")
ping = guest.run(["ping", "-c", "1", "198.18.0.1"], timeout=120)
print(json.dumps({"label": driver.label, "first": guest.first_instruction, "up": guest.up, "memory": guest.memory(),
                  "disk": driver.disk_bytes(), "code": done.code, "out": done.stdout.decode(), "ping": ping.code}),
      flush=True)
time.sleep(1000)
"""
CLEAN = """
import json, sys
from pathlib import Path
from vemgr.compare import drivers
from vemgr.compare.driver import Context
driver = drivers.driver(sys.argv[1], Context(Path(sys.argv[2]), "", ""))
print(json.dumps(driver.clean()))
driver.close()
"""


def guests_of(context):
    """The QEMUs that have disks in the comparison's directory."""
    found = []
    for pid in marked.processes():
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if str(context.directory).encode() in command and b"guest=cmp-" in command and marked.alive(pid):
                found.append(pid)
    return found


@pytest.mark.parametrize("name", ["kvm-virtio", "ve-in-guest", "ves-in-guest"])
def test_a_guest_and_what_is_left_of_it(name, context, fresh):
    """Under TCG, which works everywhere; what decides for KVM is tried in the unit ring."""
    driver = drivers.driver(name, context)
    context.directory.mkdir()
    if FETCHED.is_dir():
        (context.directory / "kernel").symlink_to(FETCHED)
    if kernel := find(context.directory, HOSTING.modules):
        verdict = Verdict("tcg", "the test wants it so", accelerator.state_of_host(kernel))
        (context.directory / "accelerator.json").write_text(json.dumps(asdict(verdict)))
    why = driver.probe()
    driver.close()
    if why:
        assert any(word in why for word in ("install", "'vemgr compare kernel'", "x86_64 only")), why
        pytest.skip(why)

    def inside(script, *arguments):  # its bridge and tap are not for the host
        return subprocess.Popen(["nsenter", f"--net=/run/netns/{fresh.netns}", sys.executable, "-c", script, name,
                                 str(context.directory), *arguments], env=fresh.environment(), stdout=subprocess.PIPE,
                                text=True)

    links = fresh.links()
    run = inside(GUEST, str(template_tree(fresh)))
    try:
        said = json.loads(run.stdout.readline())
        assert guests_of(context) and len(fresh.links()) == len(links) + 2
    finally:
        run.kill()
        run.communicate()
    assert said["label"].endswith("TCG: software emulation, not hardware virtualization")
    assert 0 < said["first"] <= said["up"] and said["disk"] > 0
    assert said["memory"] > (0 if name == "ves-in-guest" else 32 << 20)
    assert (said["code"], said["out"], said["ping"]) == (7, "input cmp-guest\n", 0)

    removed = json.loads(inside(CLEAN).communicate(timeout=60)[0])
    assert [line.split()[0] for line in removed] == ["guest", "bridge"], removed
    assert guests_of(context) == []
    eventually(lambda: fresh.links() == links, fresh.links)
    assert not [*context.directory.glob("guests/cmp-*"), *context.directory.glob("guests/carrier/collecting-*")]


def test_the_list_of_drivers(fresh):
    rows = {row["name"]: row for row in fresh.json("compare", "drivers")}
    assert [*rows] == [*drivers.NAMES]
    assert rows["host"]["available"] and rows["ve"]["available"]
    for name in ("crun", "runc"):  # as they are wherever they are installed, with cgroups of version 1 too
        assert rows[name]["available"] or f"{name} is not installed" in rows[name]["why"]
    assert all(row["available"] == (row["why"] == "") and row["label"] for row in rows.values())
    table = fresh.out("compare", "drivers")
    assert table.splitlines()[0].split() == ["NAME", "LABEL", "AVAILABLE"]
    assert not [*(fresh.state / "compare" / "journal").glob("*")]
    shutil.rmtree(fresh.state / "compare")


def test_the_ve_of_somebody_else_stays(context, fresh):
    fresh.create(name="cmp-theirs")
    with ready("ve", context, fresh) as driver, pytest.raises(VemgrError, match="exists already"):
        driver.start("cmp-theirs", RESOURCES)
    assert driver.clean() == []
    assert fresh.state_of("cmp-theirs") == "stopped"


def test_a_driver_that_there_is_none_of(context):
    with pytest.raises(Exception, match=r"no such driver.*host, ve"):
        drivers.driver("vax", context)
