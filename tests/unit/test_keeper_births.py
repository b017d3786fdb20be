# SPDX-License-Identifier: GPL-2.0-or-later
"""The keeper's requests and births on sockets, with ordinary processes in the place of VEs."""

import contextlib
import errno
import os
import signal
import socket
import struct
import time
from base64 import b64encode
from pathlib import Path
from types import SimpleNamespace

import pytest

from vemgr.core.plan import Layer, Network, Overlay, Plan, kernel_operations
from vemgr.keeper import births, children, server, spawn
from vemgr.keeper.console_log import ConsoleLogs
from vemgr.keeper.loop import Loop
from vemgr.keeper.messages import BATCH_BOUND
from vemgr.keeper.protocol import VERSION, channel_pair, receive, send
from vemgr.keeper.server import Keeper
from vemgr.kernel import libc
from vemgr.kernel.process import start_time

PTRACE, PTRACE_SEIZE = 101 if os.uname().machine == "x86_64" else 117, 0x4206


def fork(life):
    """A child that does `life` and ends."""
    pid = os.fork()
    if pid == 0:
        try:
            os.closerange(3, 512)  # or a conversation would not end while it lives
            life()
        finally:
            os._exit(0)
    return pid, os.pidfd_open(pid)


def sleep():
    time.sleep(60)


class Talk:
    """In the place of a program: what the helper says, it says in messages."""

    def __init__(self, fork_helper):
        self._fork_helper = fork_helper

    def begin(self, *_):
        pid, pidfd, self.channel = self._fork_helper()
        return pid, pidfd

    def receive(self):
        return receive(self.channel)


class World:
    """A keeper, and daemons that come and go."""

    def __init__(self, base, monkeypatch):
        self.loop = Loop()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.path = str(base / "keeper.sock")
        listener.bind(self.path)
        listener.listen()
        self._listener = listener
        self.keeper = Keeper(listener, self.loop, ConsoleLogs(str(base / "log")))
        self.pids = []
        self.channels = []  # the ends of the set-up processes
        self.helper_life = sleep
        monkeypatch.setattr(server, "BirthProgram", lambda *_: Talk(self._helper))
        monkeypatch.setattr(server, "fork_command", lambda *_: self._helper())
        monkeypatch.setattr(server.Plan, "from_json", staticmethod(
            lambda text: SimpleNamespace(name=text, operations=(Network(),))))

    def _helper(self):
        ours, theirs = channel_pair()
        self.channels.append(theirs)
        pid, pidfd = fork(self.helper_life)
        self.pids.append(pid)
        return pid, pidfd, ours

    def daemon(self):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(self.path)
        connection.setblocking(False)
        self.channels.append(connection)
        return connection

    def ask(self, daemon, call, number=1, fds=(), **values):
        send(daemon, {"id": number, "call": call, **values}, list(fds))
        return self.hear(daemon)

    def hear(self, daemon, seconds=5):
        """The next message, descriptors closed; None if none comes or the connection has ended."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                message, fds = receive(daemon)
                for fd in fds:
                    os.close(fd)
                return message
            except BlockingIOError:
                if time.monotonic() > deadline:
                    return None
                self.loop.step(0.02)

    def settle(self):
        """Let the keeper do all that there is to do."""
        for _ in range(10):
            self.loop.step(0.01)

    def begin(self, daemon, call="start", number=1):
        """Ask for a birth that goes as far as the first word of its helper, which is ours to say."""
        null = os.open(os.devnull, os.O_RDONLY)
        reader, self.status_fd = os.pipe()
        values = {"plan": "web1"} if call == "start" else {
            "ve": "web1", "argv": ["x"], "env": {}, "cwd": "", "user": "root", "tty": False, "kind": "exec"}
        send(daemon, {"id": number, "call": call, **values}, [null, null, self.status_fd, null, null, null])
        os.close(self.status_fd)
        os.close(null)
        before = len(self.channels)
        deadline = time.monotonic() + 5
        while len(self.channels) == before:
            assert time.monotonic() < deadline
            self.loop.step(0.02)
        return self.channels[-1], reader

    def name_child(self, channel, event="cloned", life=sleep):
        pid, pidfd = fork(life)
        self.pids.append(pid)
        send(channel, {"event": event, "pid": pid}, [pidfd])
        os.close(pidfd)
        return pid

    def start(self, daemon, life=sleep, number=1):
        channel, reader = self.begin(daemon, number=number)
        os.close(reader)
        pid = self.name_child(channel, life=life)
        send(channel, {"event": "going"})
        channel.close()
        assert self.hear(daemon)["event"] == "started"
        return pid

    def close(self):
        for channel in self.channels:
            channel.close()
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        if self.keeper._daemon is not None:
            self.keeper._daemon.close()
        self._listener.close()
        self.loop.close()


@pytest.fixture
def world(tmp_path, monkeypatch):
    world = World(tmp_path, monkeypatch)
    yield world
    world.close()


def test_the_list_names_the_keeper(world):
    daemon = world.daemon()
    assert world.ask(daemon, "list") == {
        "event": "listed", "id": 1, "pid": os.getpid(), "start_time": start_time(os.getpid()), "version": VERSION}


def test_a_long_list_waits_for_its_reader(world):
    daemon = world.daemon()
    pid = world.start(daemon)
    for number in range(2, 1000):
        send(daemon, {"id": number, "call": "list"})
        world.loop.step(0.02)
    for number in range(2, 1000):
        part = world.hear(daemon)
        assert (part["id"], part["children"][0]["pid"]) == (number, pid)
        assert world.hear(daemon)["event"] == "listed"


@pytest.mark.parametrize("data", [
    b'{"id": 5, "call": "nonsense"}', b'{"id": 5, "call": "exec", "ve": "web1"}', b'{"id": 5, "call": "start"}',
    b'{"id": 5, "call": "attach"}', b'{"id": 5}', b'{"id": 5, "call": ["list"]}', b'{"id": 5, "call',
    b'{"id": 5, "call": "%s"}' % (b"x" * 199_000), b'{"id": 5, "call": "%s"}' % (b"\x01" * 30_000),
    b'{"id": 5, "call": "start", "plan": "%s"}' % (b"x" * 199_000),
])
def test_every_request_is_answered(world, data):
    daemon = world.daemon()
    daemon.send(data)
    answer = world.hear(daemon)
    assert (answer["event"], answer["id"]) == ("failed", 5) and answer["error"]
    assert world.ask(daemon, "list", 6)["event"] == "listed"


def test_a_request_with_a_number_that_is_none_is_answered(world):
    daemon = world.daemon()
    daemon.send(b'{"id": "%s", "call": "list"}' % (b"x" * 199_960))
    answer = world.hear(daemon)
    assert (answer["event"], answer["id"]) == ("failed", 0)
    assert world.ask(daemon, "list", 6)["event"] == "listed"


@pytest.mark.parametrize("report", [
    b"x", bytes(11), struct.pack("=III", 5, 0, 0), struct.pack("=III", 2**32 - 1, 0, 0)])
def test_reports_that_are_none(report):
    program = spawn.BirthProgram.__new__(spawn.BirthProgram)
    program.channel, theirs = channel_pair()
    with program.channel, theirs:
        before = os.listdir("/proc/self/fd")
        socket.send_fds(theirs, [report], [0, 1])
        assert program.receive() == ({"damaged": errno.EBADMSG}, [])
        assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize("code, words", [(errno.EINVAL, "memory limit"), (errno.EEXIST, "File exists")])
def test_why_the_network_was_not_made(code, words):
    """The wait for who makes it says EINVAL for one that was killed, else his status, an errno."""
    plan = Plan("v", "v", 1 << 16, (), "/stage", False, (*kernel_operations(), Network()))
    program = spawn.BirthProgram(plan, bytes(8))
    position = next(position for position in range(10_000)
                    if program._program.subject(position) == "wait for the network")
    program.channel, theirs = channel_pair()
    with program.channel, theirs:
        theirs.send(struct.pack("=IIi", 0, position, code))
        message, _ = program.receive()
    assert (message["event"], message["operation"]) == ("failed", "wait for the network") and words in message["error"]


def send_network(daemon, links, inside, start=1):
    send(daemon, {"id": 2, "call": "network", "start": start, "links": b64encode(links).decode(),
                  "inside": b64encode(inside).decode()})


@pytest.mark.parametrize("links", [b"links", b""])
def test_a_network_comes_after_the_plan(world, links):
    daemon = world.daemon()
    channel, reader = world.begin(daemon)
    os.close(reader)
    world.name_child(channel)
    send_network(daemon, b"of another", b"start", start=9)
    send_network(daemon, links, b"inside")
    world.settle()
    assert [channel.recv(100), channel.recv(100)] == [links, b"inside"]
    send(channel, {"event": "going"})
    channel.close()
    assert world.hear(daemon)["event"] == "started"
    send_network(daemon, b"of one that is over", b"inside")
    world.settle()


def test_an_older_daemon_tells_it_with_the_plan(world, monkeypatch):
    network = Network(b64encode(b"links").decode(), b64encode(b"inside").decode())
    monkeypatch.setattr(server.Plan, "from_json", staticmethod(
        lambda text: SimpleNamespace(name=text, operations=(network,))))
    channel, reader = world.begin(world.daemon())
    os.close(reader)
    world.settle()
    assert [channel.recv(100), channel.recv(100)] == [b"links", b"inside"]


def test_a_network_that_is_too_long(world):
    daemon = world.daemon()
    channel, reader = world.begin(daemon)
    os.close(reader)
    pid = world.name_child(channel)
    world.settle()
    send_network(daemon, b"", bytes(BATCH_BOUND + 1))
    answer = world.hear(daemon)
    assert (answer["event"], answer["operation"], answer["errno"]) == ("failed", "network", errno.EMSGSIZE)
    assert f"{BATCH_BOUND} are allowed" in answer["error"]
    wait_for_end(world, pid)


def test_a_network_for_a_set_up_that_has_ended(world):
    """It has told why, or its status will."""
    daemon = world.daemon()
    channel, reader = world.begin(daemon)
    os.close(reader)
    send(channel, births.failure("stage", OSError(errno.ENOSPC, "full")) | {"event": "failed"})
    channel.close()
    send_network(daemon, b"links", b"inside")
    answer = world.hear(daemon)
    assert (answer["event"], answer["operation"], answer["errno"]) == ("failed", "stage", errno.ENOSPC)


def test_a_command(world):
    daemon = world.daemon()
    world.start(daemon)
    channel, reader = world.begin(daemon, "exec", 2)
    pid = world.name_child(channel, "entered", life=lambda: os._exit(7))
    time.sleep(0.05)  # it has ended before its birth is over
    channel.close()
    assert world.hear(daemon) == {"event": "started", "id": 2, "pid": pid, "start_time": start_time_of(daemon, world)}
    ended = world.hear(daemon)
    assert (ended["event"], ended["pid"], ended["status"]) == ("exited", pid, 7 << 8)
    assert struct.unpack("=i", os.read(reader, 4)) == (7 << 8,)
    os.close(reader)
    send(daemon, {"id": 9, "call": "taken", "pid": pid, "start_time": ended["start_time"]})
    assert [child["pid"] for child in world.ask(daemon, "list", 10)["children"]] != [pid]


def start_time_of(_daemon, world):
    return next(child.started for child in world.keeper._children if child.kind == "exec")


def test_a_pid_that_was_given_out_again(world):
    """The end of a child stays until it was taken, also when its pid has come back."""
    children = world.keeper._children
    daemon = world.daemon()
    first = world.start(daemon, life=lambda: None)
    ended = world.hear(daemon)
    assert (ended["event"], ended["status"]) == ("exited", 0)
    old = children.find(first, None)
    children._children[first, old.started + 1] = again = object.__new__(type(old))
    again.__dict__.update({**old.__dict__, "started": old.started + 1, "status": None})
    send(daemon, {"id": 3, "call": "taken", "pid": first, "start_time": old.started})
    (left,) = world.ask(daemon, "list", 4)["children"]
    assert (left["pid"], left["start_time"], left["status"]) == (first, old.started + 1, None)
    del children._children[first, old.started + 1]


def test_births_of_two_daemons_with_the_same_number(world):
    first = world.daemon()
    channel, _ = world.begin(first, number=1)
    pid = world.name_child(channel)
    send(channel, {"event": "going"})
    world.settle()
    first.close()
    world.settle()
    second = world.daemon()
    assert world.ask(second, "list", 3)["children"][0]["pid"] == pid, "only exec was missing"
    other, _ = world.begin(second, number=1)
    channel.close()
    assert world.hear(second)["event"] == "listed"
    assert world.hear(second, 0.2) is None, "an answer to the first daemon's request"
    world.name_child(other)
    send(other, {"event": "going"})
    other.close()
    assert world.hear(second)["event"] == "started"


def test_a_daemon_that_goes_takes_its_starts_along(world):
    daemon = world.daemon()
    channel, _ = world.begin(daemon)
    pid = world.name_child(channel)
    world.settle()
    daemon.close()
    wait_for_end(world, pid)
    assert len(world.keeper._births) == 0


def wait_for_end(world, *pids):
    """All of them have been reaped."""
    deadline = time.monotonic() + 5
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < deadline
        world.loop.step(0.02)


def test_a_helper_that_dies_without_a_word(world):
    daemon = world.daemon()
    world.helper_life = lambda: os.kill(os.getpid(), signal.SIGKILL)
    channel, _ = world.begin(daemon)
    channel.close()
    failed = world.hear(daemon)
    assert failed["event"] == "failed" and "killed by signal 9" in failed["error"]
    wait_for_end(world, *world.pids)


def test_the_first_failure_is_the_one_that_is_told(world):
    """The set-up process fails next, for want of what another was to make."""
    daemon = world.daemon()
    channel, _ = world.begin(daemon)
    for operation, code in (("network", errno.EEXIST), ("pivot", errno.EINVAL)):
        send(channel, {"event": "failed", "operation": operation, "errno": code, "error": "", "path": ""})
    channel.close()
    failed = world.hear(daemon)
    assert (failed["operation"], failed["errno"]) == ("network", errno.EEXIST)
    wait_for_end(world, *world.pids)


def test_a_helper_that_does_not_die_holds_up_nobody(world, monkeypatch):
    monkeypatch.setattr(births, "_END_BOUND", 0.2)
    monkeypatch.setattr("vemgr.keeper.children.Process.kill", lambda _self: None)  # it sleeps in the kernel
    daemon = world.daemon()
    channel, _ = world.begin(daemon)
    channel.close()
    world.loop.step(0.02)
    began = time.monotonic()
    assert world.ask(daemon, "list", 2)["event"] == "listed" and time.monotonic() - began < 0.15
    assert "does not end" in world.hear(daemon)["error"]


@pytest.mark.parametrize("named", [False, True])
def test_a_command_that_is_held_up(world, monkeypatch, named):
    monkeypatch.setattr(births, "EXEC_BOUND", 0.2)
    daemon = world.daemon()
    world.start(daemon)
    channel, reader = world.begin(daemon, "exec", 2)
    pids = [world.pids[-1]]
    if named:
        pids.append(world.name_child(channel, "entered", lambda: os.kill(os.getpid(), signal.SIGSTOP)))
    failed = world.hear(daemon)
    assert (failed["event"], failed["id"], failed["errno"]) == ("failed", 2, 110)
    wait_for_end(world, *pids)
    assert os.read(reader, 1) == b"", "who waits for its status is told that there is none"
    os.close(reader)


def test_a_start_that_is_held_up(world, monkeypatch):
    monkeypatch.setattr(births, "SETUP_BOUND", 0.2)
    daemon = world.daemon()
    channel, _ = world.begin(daemon)
    pid = world.name_child(channel)
    assert world.hear(daemon)["errno"] == 110
    wait_for_end(world, pid, *world.pids)


def test_children_that_nobody_names_are_reaped(world):
    daemon = world.daemon()
    channel, _ = world.begin(daemon)
    stray, pidfd = fork(lambda: None)
    os.close(pidfd)
    time.sleep(0.05)
    world.keeper.on_sigchld()
    assert os.path.exists(f"/proc/{stray}"), "a message may still name it"
    channel.close()
    assert world.hear(daemon)["event"] == "failed"
    wait_for_end(world, stray)


def test_a_flood_of_strays_leaves_time_for_others(world):
    """As a command in a VE can make with CLONE_PARENT: the keeper reaped as long as new ones came."""
    strays = []
    for _ in range(250):
        pid, pidfd = fork(lambda: None)
        os.close(pidfd)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        strays.append(pid)
    for left in (150, 150):  # a signal for each does not make it more
        world.keeper.on_sigchld()
        assert sum(os.path.exists(f"/proc/{pid}") for pid in strays) == left
    wait_for_end(world, *strays)


@pytest.mark.parametrize("pid", [1, "own"])
def test_only_our_own_children_are_adopted(world, pid):
    daemon = world.daemon()
    channel, _ = world.begin(daemon)
    pid = os.getpid() if pid == "own" else pid
    pidfd = os.pidfd_open(pid)
    send(channel, {"event": "cloned", "pid": pid}, [pidfd])
    os.close(pidfd)
    assert world.hear(daemon)["event"] == "failed"


def test_shutdown(world):
    daemon = world.daemon()
    pid = world.start(daemon)
    assert world.ask(daemon, "shutdown", 2)["ending"] is False
    os.kill(pid, signal.SIGKILL)
    assert world.hear(daemon)["event"] == "exited"
    assert world.ask(daemon, "shutdown", 3)["ending"] is True
    world.loop.run()


def test_a_sysctl_that_may_be_missing_forgives_nothing_else():
    """What is expected of the opening of one was expected of the wait for /proc, which came to be in front of it."""
    plan = Plan(name="a", hostname="a", id_base=1879048192, init=(), stage="/s", first=False, operations=(
        Layer(0, "/t"), Overlay("/", (0,), "/d"), *kernel_operations(), Network()))
    calls = spawn._birth_program(plan, bytes(8))._calls
    (opened,) = [call for call in calls if call.number == libc.number("openat2")
                 and b"sys/net/ipv4/ping_group_range" in call.arguments]
    assert [error for error, _ in opened.errors] == [errno.ENOENT]
    assert [call for call in calls if call.number == -6 and call.errors] == []


def test_who_has_ended_but_is_traced_does_not_keep_the_keeper_busy():
    """The kernel shows it to its tracer alone, who may never wait for it (found by attack: a whole CPU)."""
    def trace():
        while True:
            try:
                libc.syscall("ptrace", PTRACE, PTRACE_SEIZE, pid, 0, 0)
                break
            except OSError:
                time.sleep(0.01)
        time.sleep(60)

    pid, pidfd = fork(lambda: time.sleep(0.5))
    tracer, tracer_pidfd = fork(trace)
    loop, ended, steps = Loop(), [], 0
    children.Children(loop, None).watch(children.Process(pid, pidfd), lambda: ended.append(pid))
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        loop.step(until - time.monotonic())
        steps += 1
    assert Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z" and not ended and steps < 10
    os.kill(tracer, signal.SIGKILL)
    os.waitpid(tracer, 0)
    os.close(tracer_pidfd)
    loop.step(1)
    assert ended == [pid] and not os.path.exists(f"/proc/{pid}")
    loop.close()
