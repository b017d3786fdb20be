# SPDX-License-Identifier: GPL-2.0-or-later
"""The birth of a VE as one program, and what its processes report while they execute it.

    spawner --clone3--> set-up process --clone3(CLONE_PARENT)--> the VE's init; both are children of the keeper
                        set-up process --clone3--> a helper for the network

The set-up process reports `cloned` with init's pidfd, makes the VE's mounts, sends the console, lets init go and ends
when that one has its copy of them. The channel ends with init's exec.

Network and mounts have nothing to do with each other and take about as long, so they are made at the same time: init
makes the network namespace, the helper makes the VE's links as soon as the daemon has sent the messages for them, the
set-up process makes the mounts and waits for both at the end. Whoever fails first is believed; the others end with the
set-up process.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
from typing import Any, NamedTuple

from vemgr.core.plan import Bind, Disk, Layer, Operation, Overlay, Plan
from vemgr.keeper.init import append_init
from vemgr.keeper.program import CGROUP, CHANNEL, Data, Encoded, Program, Register, room_for
from vemgr.keeper.protocol import channel_pair
from vemgr.keeper.setup import Setup, shape
from vemgr.keeper.spawner import Spawner
from vemgr.kernel import libc, namespaces, netlink

_INIT_NAMESPACES = (
    namespaces.CLONE_NEWUSER | namespaces.CLONE_NEWPID | namespaces.CLONE_NEWUTS | namespaces.CLONE_NEWIPC
    | namespaces.CLONE_NEWCGROUP
)  # the network namespace, which takes longer than all of these, init makes itself
_AT_FDCWD = -100
_FAILED, _CLONED, _CONSOLE, _GOING, _NOTIFY = range(5)  # kinds of reports
_EVENTS = ("failed", "cloned", "console", "going", "notify")
_REPORT = struct.Struct("=IIi")  # kind; for a failure the position of the call and errno, else a number
_NOSIGNAL = 0x4000
_AWAIT_HELPER = "wait for the network"
_MOST_FDS = 2
_PIPE_BUFFER = 8
_OFFSETS_ROOM = 96
_MAP_ROOM = 40


class BirthProgram:
    """What is executed, and the keeper's end of the conversation about it."""

    def __init__(self, plan: Plan, filter_: bytes) -> None:
        self._plan = plan
        self._program = _program_for(plan, filter_)
        self.channel: socket.socket

    def begin(self, spawner: Spawner, cgroup_fd: int) -> tuple[int, int]:
        """Fork the set-up process into the VE's cgroup; returns its pid and pidfd. Raises `OSError`."""
        self.channel, theirs = channel_pair()
        try:
            return spawner.run(self._program.fill(self._plan), theirs.fileno(), cgroup_fd)
        except BaseException:
            self.channel.close()
            raise
        finally:
            theirs.close()

    def receive(self) -> tuple[dict[str, Any] | None, list[int]]:
        """One report as a message, with its descriptors; (None, []) at the end of the conversation."""
        data, fds, flags, _ = socket.recv_fds(self.channel, 4096, _MOST_FDS, socket.MSG_CMSG_CLOEXEC)
        if not data:
            return None, fds
        damage = errno.EMFILE if flags & socket.MSG_CTRUNC else 0
        kind, number, code = _REPORT.unpack_from(data.ljust(_REPORT.size, b"\0"))
        if len(data) < _REPORT.size or kind >= len(_EVENTS):
            damage = damage or errno.EBADMSG
        if damage:
            for fd in fds:
                os.close(fd)
            return {"damaged": damage}, []
        if kind == _FAILED:
            return {"event": "failed", **self._failure(number, code, data[_REPORT.size:])}, fds
        return {"event": _EVENTS[kind], "pid": number}, fds

    def _failure(self, position: int, code: int, detail: bytes) -> dict[str, Any]:
        subject = self._program.subject(position)
        operation = self._plan.describe_operation(subject) if isinstance(subject, int) else subject
        words = netlink.failure_text(detail) if operation == "network" else _explanation(detail)
        if isinstance(subject, int):
            words = _words(self._plan.operations[subject], code) or words
        elif subject == _AWAIT_HELPER and code == errno.EINVAL:  # who ends by himself has told why
            words = "who makes it was killed; it counts against the VE's memory limit, which may be too small"
        return {"operation": operation, "errno": code, "error": words or os.strerror(code), "path": ""}


_BIND_WORDS = {
    errno.EINVAL: "its file system cannot be mounted with other ids, or a file would be mounted on a directory",
    errno.EPERM: "it is mounted with other ids already",
    errno.EOVERFLOW: "a directory to mount on is missing in what is mounted above it, and is to be made there first",
    errno.ELOOP: "there is a symlink in one of the paths",
    errno.ENOTDIR: "a file stands where a directory must be",
}


def _words(operation: Operation, code: int) -> str:
    """What an error means that the kernel's own words do not tell."""
    if isinstance(operation, Bind):
        return _BIND_WORDS.get(code, "")
    return "a symlink stands where a directory must be" if code == errno.ELOOP else ""


def _explanation(log: bytes) -> str:
    """What a mount context says of a failure: "e overlay: ..." (fsopen(2))."""
    return log.decode(errors="replace").strip().removeprefix("e ")


_programs: dict[tuple[Any, ...], Encoded] = {}
_MOST_PROGRAMS = 64


def _program_for(plan: Plan, filter_: bytes) -> Encoded:
    """One is made for all VEs that differ only in values, and kept."""
    key = (filter_, *shape(plan))
    found = _programs.get(key)
    if found is None:
        if len(_programs) >= _MOST_PROGRAMS:
            _programs.clear()
        found = _programs[key] = _birth_program(plan, filter_).encode()
    return found


def _birth_program(plan: Plan, filter_: bytes) -> Program:
    trees = sum(isinstance(operation, Layer | Disk | Overlay) for operation in plan.operations)  # they come first
    program = Program()
    program.step("begin")
    _protect(program, plan)
    program.call("close", CGROUP)
    init = _clone_init(program, plan, filter_)
    process, userns = _identify(program, init.pid)
    program.step("clone")
    _report(program, _CLONED, init.pid, (init.pidfd,))
    setup = Setup(program, plan, init.pidfd, userns, init.network)
    setup.stage()
    program.step("enter namespaces")
    program.call("setns", init.pidfd, namespaces.CLONE_NEWPID | namespaces.CLONE_NEWUTS | namespaces.CLONE_NEWIPC
                 | namespaces.CLONE_NEWCGROUP)
    length = program.number(lambda plan: len(plan.hostname))
    program.call("sethostname", program.parameter(room_for(plan.hostname), lambda plan: plan.hostname.encode()), length)
    for operation in plan.operations[:trees]:
        setup.operation(operation)
    # Now rather than at the beginning, when it would have to wait for the network namespace: the kernel looks for a CPU
    # that is free when a process is born, and in a virtual machine not when one wakes up (available_idle_cpu in
    # kernel/sched: a CPU that has halted counts as taken away).
    helper = _network_helper(program, setup, process)
    for operation in plan.operations[trees:]:
        setup.operation(operation)
    setup.finish()
    program.step(_AWAIT_HELPER)
    program.call("wait", helper)
    if setup.console is not None:
        _report(program, _CONSOLE, 0, setup.console)
    if setup.notify_socket is not None:
        _report(program, _NOTIFY, 0, (setup.notify_socket,))
    _report(program, _GOING, 0, ())
    program.call("write", init.go, b"g", 1)
    program.call("report_to", -1)  # the rest of the conversation is init's
    program.call("close", CHANNEL)
    setup.await_init()
    program.call("exit", 0)
    return program


class _Init(NamedTuple):
    """`go`: the pipe that lets it go. `network`: the one that tells three times when it has its network namespace,
    and ends when it has its mounts."""

    pid: Register
    pidfd: Register
    go: Register
    network: Register


def _network_helper(program: Program, setup: Setup, process: Register) -> Register:
    """Fork what makes the VE's links; returns its pid. It knows nothing by path: the pivot of the set-up process
    changes what its paths mean. `process`: init's directory in /proc, which nothing else needs."""
    pid = program.register()
    with program.forked(pid):
        _protect(program, setup.plan)
        setup.make_network(process)
    program.call("close", process)
    return pid


def _pipe(program: Program) -> tuple[Register, Register]:
    ends = program.room(_PIPE_BUFFER)
    reader, writer = program.register(), program.register()
    program.call("pipe2", ends, os.O_CLOEXEC)
    program.call("load32", ends, into=reader)
    program.call("load32", ends.plus(4), into=writer)
    return reader, writer


def _clone_init(program: Program, plan: Plan, filter_: bytes) -> _Init:
    program.step("clone")
    if not plan.nested:  # CAP_SYS_TIME
        _start_clocks_at_zero(program)
    number, pid, pidfd = program.room(8), program.register(), program.register()
    go_reader, go = _pipe(program)
    network, network_writer = _pipe(program)
    flags = _INIT_NAMESPACES | namespaces.CLONE_PARENT | namespaces.CLONE_PIDFD
    # Who makes a user namespace is charged for all that is counted per user in it: inotify instances, namespaces,
    # queued signals, message queues. That must not be the host's root, or one VE could use up what belongs to all.
    program.call("setresuid", -1, program.number(lambda plan: plan.id_base), -1)
    with program.forked(pid, flags, number):
        program.call("close", network)
        program.call("close", go)  # then nothing but what it is given is open: the spawner has no more itself
        append_init(program, plan, filter_, go_reader, network_writer)
    program.step("clone")
    program.call("setresuid", -1, 0, -1)
    _protect(program, plan)  # a change of ids has undone it
    program.call("close", go_reader)
    program.call("close", network_writer)
    program.call("load32", number, into=pidfd)
    return _Init(pid, pidfd, go, network)


def _protect(program: Program, plan: Plan) -> None:
    """End with the keeper, and let nobody of a VE look in."""
    program.call("prctl", libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    if not plan.nested:  # the kernel gives the /proc files of who is protected to the host's root, out of our reach
        program.call("prctl", libc.PR_SET_DUMPABLE, 0)


def _start_clocks_at_zero(program: Program) -> None:
    """A time namespace whose monotonic and boot clocks start now, for what is cloned next."""
    program.call("unshare", namespaces.CLONE_NEWTIME)
    with program.descriptor() as fd:
        program.call("openat", _AT_FDCWD, b"/proc/self/timens_offsets", os.O_WRONLY | os.O_CLOEXEC, into=fd)
        offsets = program.parameter(_OFFSETS_ROOM, lambda _: namespaces.offsets_to_zero().ljust(_OFFSETS_ROOM, b"\n"))
        program.call("write", fd, offsets, _OFFSETS_ROOM)


def _identify(program: Program, pid: Register) -> tuple[Register, Register]:
    """Map init's ids; returns descriptors of its directory in /proc and of its user namespace."""
    program.step("map ids")
    name, process, userns = program.room(24), program.register(), program.register()
    program.call("decimal", name, pid)
    content = program.parameter(_MAP_ROOM, lambda plan: f"0 {plan.id_base} {plan.id_count}".encode().ljust(_MAP_ROOM))
    with program.descriptor() as proc:
        program.call("openat", _AT_FDCWD, b"/proc", os.O_PATH | os.O_CLOEXEC, into=proc)
        program.call("openat", proc, name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, into=process)
    for kind in (b"uid_map", b"gid_map"):
        with program.descriptor() as fd:
            program.call("openat", process, kind, os.O_WRONLY | os.O_CLOEXEC, into=fd)
            program.call("write", fd, content, _MAP_ROOM)
    program.call("openat", process, b"ns/user", os.O_RDONLY | os.O_CLOEXEC, into=userns)
    return process, userns


def _report(program: Program, kind: int, number: int | Register, fds: tuple[Register, ...]) -> None:
    """sendmsg(2) of a report with descriptors (unix(7), SCM_RIGHTS)."""
    content = program.buffer(_REPORT.pack(kind, 0, 0))
    if not isinstance(number, int):
        program.call("store32", content.plus(4), number)
    rights = program.buffer(struct.pack("=QII2i", 16 + 4 * len(fds), socket.SOL_SOCKET, socket.SCM_RIGHTS, 0, 0))
    for position, fd in enumerate(fds):
        program.call("store32", rights.plus(16 + 4 * position), fd)
    part = _pointer_and(program, content, _REPORT.size)
    message = program.buffer(struct.pack("=7Q", 0, 0, 0, 1, 0, 24 if fds else 0, 0))
    program.call("store64", message.plus(16), part)
    if fds:
        program.call("store64", message.plus(32), rights)
    program.call("sendmsg", CHANNEL, message, _NOSIGNAL)


def _pointer_and(program: Program, target: Data, length: int) -> Data:
    part = program.buffer(struct.pack("=QQ", 0, length))
    program.call("store64", part, target)
    return part
