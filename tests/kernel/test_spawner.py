# SPDX-License-Identifier: GPL-2.0-or-later
"""The spawner executes programs of system calls, and refuses what is none."""

import contextlib
import errno
import os
import secrets
import select
import signal
import struct
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.kernel.conftest import eventually, is_alive
from vemgr.keeper.program import _HEADER, _OPERATION, ANY_ERROR, CHANNEL, Program, encoded
from vemgr.keeper.protocol import channel_pair
from vemgr.keeper.spawner import Spawner
from vemgr.kernel.cgroups import cgroup2_mountpoint

AT_FDCWD = -100
CREATE = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
REPORT = struct.Struct("=III")


class Stage:
    """A spawner, a cgroup and a directory. `run` returns the wait status and what was reported."""

    def __init__(self, directory):
        self.directory = directory
        self.cgroup = f"{cgroup2_mountpoint()}/vemgr-test-{secrets.token_hex(4)}"
        os.mkdir(self.cgroup)
        self.spawner = Spawner()

    def begin(self, content):
        ours, theirs = channel_pair()
        cgroup = os.open(self.cgroup, os.O_RDONLY)
        try:
            return (ours, *self.spawner.run(content, theirs.fileno(), cgroup))
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(cgroup)

    def run(self, program, plan=None):
        ours, pid, pidfd = self.begin(program.encode().fill(plan))
        assert select.select([pidfd], [], [], 10)[0], "the program does not end"
        os.close(pidfd)
        status = os.waitpid(pid, 0)[1]
        ours.setblocking(True)
        reports = []
        while report := ours.recv(4096):
            reports.append(report)
        ours.close()
        return os.waitstatus_to_exitcode(status), reports

    def make(self, program, name, content=b"", length=None):
        """Append calls that write a file."""
        with program.descriptor() as fd:
            program.call("openat", AT_FDCWD, encoded(f"{self.directory}/{name}"), CREATE, 0o600, into=fd)
            program.call("write", fd, content, len(content) if length is None else length)

    def names(self):
        return sorted(os.listdir(self.directory))

    def close(self):
        self.spawner.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.spawner.pid, 0)
        eventually(lambda: not subprocess.run(["rmdir", self.cgroup], capture_output=True).returncode, "cgroup in use")


@pytest.fixture
def stage(tmp_path):
    stage = Stage(tmp_path)
    yield stage
    stage.close()


def test_a_program_gets_its_parameters(stage):
    program = Program()
    text = program.parameter(64, lambda plan: plan.text)
    length = program.number(lambda plan: len(plan.text))
    stage.make(program, "file", text, length)
    content = program.encode()
    for value in (b"one", b"another"):
        ours, pid, pidfd = stage.begin(content.fill(SimpleNamespace(text=value)))
        os.close(pidfd)
        assert os.waitpid(pid, 0)[1] == 0
        ours.close()
        assert (stage.directory / "file").read_bytes()[:len(value)] == value
    with pytest.raises(OSError, match="longer than 64"):
        content.fill(SimpleNamespace(text=b"x" * 65))


@pytest.mark.parametrize("expected", [(errno.ENOENT,), (errno.EACCES, errno.ENOENT), (ANY_ERROR,),
                                      (errno.EACCES, ANY_ERROR)])
def test_an_expected_failure_skips(stage, expected):
    program = Program()
    call = program.call("mkdirat", AT_FDCWD, encoded(f"{stage.directory}/no/such"), 0o700)
    stage.make(program, "skipped")
    for error in expected:
        program.expect(call, error)
    stage.make(program, "done")
    assert stage.run(program) == (0, [])
    assert stage.names() == ["done"]


def test_success_skips_what_is_for_the_failure(stage):
    program = Program()
    call = program.call("mkdirat", AT_FDCWD, encoded(f"{stage.directory}/there"), 0o700)
    program.expect(call, errno.EEXIST)
    stage.make(program, "failed")
    program.else_(call)
    assert stage.run(program) == (0, [])
    assert stage.names() == ["there"]
    assert stage.run(program) == (0, [])
    assert stage.names() == ["failed", "there"]


def test_a_failure_is_reported_with_its_place_and_ends_the_program(stage):
    program = Program()
    program.step("first")
    stage.make(program, "before")
    program.step(7)
    program.call("mkdirat", AT_FDCWD, encoded(f"{stage.directory}/no/such"), 0o700)
    program.step("after")
    stage.make(program, "after")
    status, (report,) = stage.run(program)
    kind, position, code = REPORT.unpack_from(report)
    assert (status, kind, code) == (1, 0, errno.ENOENT)
    assert program.encode().subject(position) == 7
    assert stage.names() == ["before"]


def test_the_kernel_explains_a_failed_mount(stage):
    program = Program()
    with program.descriptor() as context:
        program.call("fsopen", b"tmpfs", 1, into=context)
        program.call("fsconfig", context, 1, b"no_such_option", b"x", 0, log=context)
    _, (report,) = stage.run(program)
    assert REPORT.unpack_from(report)[2] == errno.EINVAL
    assert b"no_such_option" in report[REPORT.size:], report


def test_a_child_does_its_part_and_its_failure_is_the_parents(stage):
    program = Program()
    child = program.register()
    with program.forked(child):
        stage.make(program, "child")
    program.call("wait", child)
    stage.make(program, "parent")
    assert stage.run(program) == (0, [])
    assert stage.names() == ["child", "parent"]
    program = Program()
    with program.forked(child):
        program.call("report_to", -1)
        program.call("mkdirat", AT_FDCWD, encoded(f"{stage.directory}/no/such"), 0o700)
    program.step("wait for it")
    program.call("wait", child)
    _, (report,) = stage.run(program)
    assert REPORT.unpack_from(report)[2] == errno.ENOENT
    assert program.encode().subject(REPORT.unpack_from(report)[1]) == "wait for it"


def test_numbers_and_comparisons(stage):
    program = Program()
    place, name, count = program.room(4), program.room(24), program.register()
    program.call("store32", place, 1234567890)
    program.call("load32", place, into=count)
    program.call("decimal", name, count)
    program.call("equal", name, b"1234567890", 11)
    differ = program.call("equal", name, b"1234567891", 11)
    stage.make(program, "equal")
    program.expect(differ, errno.EINVAL)
    program.call("write", CHANNEL, name, 10)
    assert stage.run(program) == (0, [b"1234567890"])
    assert stage.names() == []


def test_what_is_executed_has_no_descriptor_but_its_own(stage):
    """Neither the spawner's socket nor anything of the keeper's may end up in a VE (CVE-2024-21626)."""
    program = Program()
    program.call("execve", b"/bin/sleep", program.pointers([b"sleep", b"60"]), program.pointers([]))
    leaked = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(leaked, True)
    try:
        ours, pid, pidfd = stage.begin(program.encode().fill(None))
    finally:
        os.close(leaked)
    eventually(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n", "it is not executed")
    numbers = {int(fd) for fd in os.listdir(f"/proc/{pid}/fd")}
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(pidfd)
    ours.close()
    assert numbers <= {0, 1, 2}, numbers


def good():
    program = Program()
    program.call("exit", 0)
    return program.encode().fill(None)


BAD = {
    "empty": b"x", "header only": good()[:_HEADER.size], "cut off": good()[:-8],
    "longer than it says": good() + bytes(8),
    "more calls than there are": _HEADER.pack(2, len(good()), 0, 0) + good()[_HEADER.size:],
    "calls without end": _HEADER.pack(0xFFFFFFFF, len(good()), 0, 0) + good()[_HEADER.size:],
    "more room than there is": _HEADER.pack(1, len(good()), 0xFFFFFFF0, 0) + good()[_HEADER.size:],
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD.keys())
def test_what_is_no_program_is_refused(stage, content):
    with pytest.raises(OSError):
        stage.begin(content)
    program = Program()
    stage.make(program, "still")
    assert stage.run(program) == (0, [])


def test_a_cgroup_that_has_gone_is_told_at_once(stage):
    """The kernel has given out a number for the pidfd by then; with that in it, the answer could not be sent."""
    program = Program()
    program.call("exit", 0)
    ours, theirs = channel_pair()
    cgroup = os.open(stage.cgroup, os.O_RDONLY)
    os.rmdir(stage.cgroup)
    with ours, theirs, pytest.raises(OSError) as failure:
        stage.spawner.run(program.encode().fill(None), theirs.fileno(), cgroup)
    os.close(cgroup)
    os.mkdir(stage.cgroup)
    assert failure.value.errno in (errno.ENODEV, errno.ENOENT)
    assert stage.run(program) == (0, [])


def test_a_spawner_that_was_killed_is_replaced(stage):
    program = Program()
    program.call("exit", 0)
    assert stage.run(program)[0] == 0
    first = stage.spawner.pid
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    assert stage.run(program)[0] == 0
    assert stage.spawner.pid != first


def test_it_ends_with_its_keeper(stage):
    program = Program()
    program.call("exit", 0)
    stage.run(program)
    pid = stage.spawner.pid
    stage.spawner.close()
    eventually(lambda: not is_alive(pid), "the spawner lives on")
    os.waitpid(pid, 0)


def test_layout():
    """That of spawner.c on a 64-bit machine."""
    assert _OPERATION.size == 72 and _HEADER.size == 16
