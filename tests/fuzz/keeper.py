# SPDX-License-Identifier: GPL-2.0-or-later
"""The keeper's two conversations: with the daemon, whose requests are mutated, and with the processes that it forks,
which report anything. It lives, answers, reaps what it has, and keeps neither descriptors nor memory.

What would be forked is replaced, so that no plan of the fuzzer's is ever executed on the host.
"""

import json
import logging
import os
import random
import signal
import socket
import struct
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.engine import GROWTH, memory, mutated
from tests.kernel.conftest import Instance, eventually, is_alive
from vemgr.core.config import Definition
from vemgr.core.layers import Template, Tree
from vemgr.keeper import main as keeper_main
from vemgr.keeper import server
from vemgr.keeper.protocol import channel_pair, make_room, send
from vemgr.kernel import namespaces
from vemgr.runtime.planning import make_plan

_LOOK = 20
_PATIENCE = 20.0  # seconds
_MORE_DESCRIPTORS = 30
_VALUES = [
    None,
    True,
    0,
    -1,
    1 << 70,
    1.5,
    "",
    "a",
    "\ud800",
    "\udcff",
    "x" * 100_000,
    [],
    {},
    [[]],
    [1] * 1000,
    {"a": {}},
]
_WORDS = [
    b"{",
    b"}",
    b'"',
    b"[" * 3000,
    b"\\ud800",
    b"\xff",
    b"\xed\xa0\x80",
    b"9" * 5000,
    b"null",
    b'"id": 1',
    b'{"id": ',
    b"NaN",
    b'"call": "start"',
    b'"call": "exec"',
    b'"call": "list"',
    b'"call": "abort"',
    b'"call": "attach"',
    b"x" * 250_000,
]
_REPORTS = [
    struct.pack("=III", *numbers)
    for numbers in ((0, 0, 2), (0, 99, 22), (2, 0, 0), (3, 0, 0), (9, 0, 0), (0, 2**32 - 1, 2**32 - 1))
]


class Keepers:
    name = "keeper"

    def __init__(self):
        self._top = tempfile.TemporaryDirectory()
        self._pid = os.fork()
        if self._pid == 0:
            _serve(self._top.name)
        self._path = f"{self._top.name}/keeper.sock"
        eventually(lambda: os.path.exists(self._path), "no keeper")
        self._filter = os.memfd_create("filter")
        os.write(self._filter, bytes(64))
        self._given = [
            os.open("/", os.O_RDONLY),
            self._filter,
            os.open(os.devnull, os.O_RDWR),
            os.open(os.devnull, os.O_RDWR),
            os.open(os.devnull, os.O_RDWR),
            os.open(os.devnull, os.O_RDWR),
        ]
        self._daemon = None
        self._count = 0
        self._look()
        self._used, self._open = memory(self._pid), self._descriptors()

    def corpus(self):
        plan = make_plan(
            Definition("a", "t", 1879048192, ""),
            Template(name="t", trees=[Tree("/", ["/x"])]),
            data="/y",
            stage="/z",
            resolv_conf="nameserver 192.0.2.1\n",
        ).to_json()
        start = {"id": 1, "call": "start", "plan": plan}
        execute = {
            "id": 2,
            "call": "exec",
            "ve": "a",
            "argv": ["true"],
            "env": {"A": "b"},
            "cwd": "/",
            "user": "root",
            "tty": False,
            "kind": "exec",
        }
        others = [
            {"id": 3, "call": "list"},
            {"id": 4, "call": "abort", "start": 1},
            {"id": 5, "call": "forget", "ve": "a"},
            {"id": 6, "call": "taken", "pid": 1, "start_time": 5},
            {"id": 7, "call": "attach", "ve": "a", "writes": True, "force": True},
        ]
        return [
            bytes([given]) + json.dumps(message).encode()
            for given, message in ((2, start), (6, execute), *((1, message) for message in others))
        ]

    def mutate(self, rng, corpus):
        data = rng.choice(corpus)
        if rng.random() < 0.5:
            data = data[:1] + mutated(rng, [part[1:] for part in rng.sample(corpus, 3)], _WORDS)
        else:
            try:
                message = json.loads(data[1:])
                message[rng.choice([*message, "x"])] = rng.choice(_VALUES)
                data = data[:1] + json.dumps(message).encode()
            except (ValueError, TypeError, RecursionError):
                data = data[:-1]
        return data if rng.random() < 0.8 else bytes([rng.randrange(12)]) + data[1:]

    def check(self, data):
        if b"shutdown" in data:
            return "left out"
        given, message = (data[0] if data else 0), data[1:250_000] or b"?"
        if self._daemon is None:
            self._daemon = self._connect()
        try:
            fds = [self._given[number % len(self._given)] for number in range(given % 12)]
            socket.send_fds(self._daemon, [message], fds)
        except OSError as error:
            self._hang_up()
            return f"connection: {error.strerror}"
        outcome = self._replies()
        self._count += 1
        if self._count % _LOOK == 0:
            self._look()
        return outcome

    def _connect(self):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(self._path)
        make_room(connection)
        connection.settimeout(_PATIENCE)
        return connection

    def _hang_up(self):
        if self._daemon is not None:
            self._daemon.close()
            self._daemon = None

    def _replies(self):
        """All until the answer to a list, which is asked for last."""
        number = 1_000_000 + self._count
        self._daemon.send(json.dumps({"id": number, "call": "list"}).encode())
        outcomes = []
        while True:
            data, fds, _, _ = socket.recv_fds(self._daemon, 250_000, 8)
            for fd in fds:
                os.close(fd)
            if not data:
                self._hang_up()
                return "closed"
            reply = json.loads(data)
            if reply.get("id") == number and reply["event"] == "listed":
                return " ".join(outcomes)
            if reply["event"] != "part":
                outcomes.append(f"{reply['event']} {reply.get('operation', '')} {reply.get('error', '')}")

    def _look(self):
        assert is_alive(self._pid), "the keeper has ended"
        self._hang_up()
        self._daemon = self._connect()
        self._replies()
        log = Path(f"{self._top.name}/log.txt").read_text(errors="replace")
        assert "unexpected failure" not in log, log[-4000:]
        if self._count == 0:
            return
        assert memory(self._pid) - self._used < GROWTH, f"{memory(self._pid) >> 20} MiB of {self._used >> 20} before"
        eventually(
            lambda: self._descriptors() < self._open + _MORE_DESCRIPTORS,
            lambda: Counter(Instance.descriptors(self._pid)),
            timeout=90,  # a birth that says nothing more is given up after a minute
        )

    def _descriptors(self):
        return len(os.listdir(f"/proc/{self._pid}/fd"))

    def finish(self):
        self._look()

    def close(self):
        self._hang_up()
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        for fd in self._given:
            os.close(fd)
        self._top.cleanup()


def _serve(directory):
    """The keeper, with children that say anything. Never returns."""
    log = os.open(f"{directory}/log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    logging.root.handlers[:] = [logging.FileHandler("/dev/stderr")]  # pytest's would keep every record
    try:
        rng = random.Random(1)
        server.Spawner = lambda: _Spawner(rng)
        server.fork_command = lambda *_: _fork_command(rng)
        keeper_main.reset_inherited = lambda: None
        keeper_main.argparse.ArgumentParser.parse_args = lambda self: keeper_main.argparse.Namespace(
            run_dir=directory
        )
        keeper_main.main()
    finally:
        os._exit(1)


class _Spawner:
    def __init__(self, rng):
        self._rng = rng

    def run(self, _program, channel_fd, _cgroup_fd):
        """A helper that reports, and with luck names an init that lives for a moment."""
        born = _sleeper(self._rng.choice((0.0, 0.05, 0.5)))
        seed = self._rng.random()
        pid, pidfd = namespaces.clone3(0)
        if pid == 0:
            _report(random.Random(seed), socket.socket(fileno=channel_fd), *born)
        os.close(born[1])
        return pid, pidfd

    def notice_end(self):
        """There is nothing that could end."""


def _sleeper(seconds):
    pid, pidfd = namespaces.clone3(0)
    if pid == 0:
        time.sleep(seconds)
        os._exit(0)
    return pid, pidfd


def _report(rng, channel, pid, pidfd):
    try:
        cloned = struct.pack("=III", 1, rng.choice((pid, pid, pid, 1, 2**31, 0)), 0)
        master, slave = os.openpty()
        for _ in range(rng.randrange(6)):
            kind = rng.randrange(5)
            if kind == 0:
                channel.send(rng.choice(_REPORTS) + rng.randbytes(rng.choice((0, 4, 100))))
            elif kind == 1:
                channel.send(rng.randbytes(rng.randrange(1, 40)))
            elif kind == 2:
                socket.send_fds(
                    channel, [struct.pack("=III", 2, 0, 0)], rng.choice(([master, slave], [], [master], [slave] * 5))
                )
            else:
                socket.send_fds(
                    channel, [cloned], rng.choice(([pidfd, master], [pidfd], [], [master, pidfd], [pidfd] * 4))
                )
    finally:
        os._exit(rng.randrange(3))


def _fork_command(rng):
    ours, theirs = channel_pair()
    born = _sleeper(rng.choice((0.0, 0.05)))
    seed = rng.random()
    pid, pidfd = namespaces.clone3(0)
    if pid == 0:
        _report_command(random.Random(seed), theirs, *born)
    os.close(born[1])
    theirs.close()
    return pid, pidfd, ours


def _report_command(rng, channel, pid, pidfd):
    messages = [
        {"event": "entered", "pid": pid},
        {"event": "entered", "pid": pid},
        {"event": "entered"},
        {"event": "?"},
        {},
        {"event": "failed", "operation": "x", "errno": 2, "error": "y", "path": "z"},
        {"event": "failed"},
        {"event": "console"},
        {"event": "entered", "pid": "1"},
        {"event": ["x"]},
        {"event": "failed", "operation": "x" * 90_000, "errno": "?", "error": "\ud800", "path": None},
    ]
    try:
        for _ in range(rng.randrange(4)):
            if rng.random() < 0.2:
                channel.send(rng.randbytes(rng.randrange(1, 300)))
            else:
                send(channel, rng.choice(messages), rng.choice(([pidfd], [], [pidfd] * 9)))
    finally:
        os._exit(0)
