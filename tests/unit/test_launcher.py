# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon's conversation with a keeper that says what the test wants."""

import asyncio
import contextlib
import errno
import json
import os
import socket
import threading

import pytest

from vemgr.core.errors import ExecFailed, StartFailed, SystemFailure, Unreachable
from vemgr.core.plan import Network, Plan
from vemgr.keeper.protocol import MESSAGE_BOUND, VERSION, send
from vemgr.runtime.launcher import KeeperIdentity, Launcher

PLAN = Plan(name="web1", hostname="web1", id_base=1, init=(), stage="/s", first=True, operations=(Network(),))
FAILED = {"event": "failed", "operation": "overlay target=/", "errno": 22, "error": "Invalid argument", "path": "/x"}
COMMAND = {"argv": ["x"], "env": {}, "cwd": "", "user": "root", "tty": False, "kind": "exec"}


class Keeper:
    """`answer(keeper, message, fds)` is called for each request, in a thread; `said`: all requests."""

    def __init__(self, path, answer):
        self.said = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(path)
        self._listener.listen()
        self._answer = answer
        self.connection = None
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        with self._listener, contextlib.suppress(OSError):
            self.connection, _ = self._listener.accept()
            with self.connection:
                while True:
                    # Not `receive`: its buffer is the daemon's too, which is another thread here.
                    data, fds, _, _ = socket.recv_fds(self.connection, MESSAGE_BOUND, 8)
                    if not data:
                        return
                    message = json.loads(data)
                    self.said.append(message["call"])
                    self._answer(self, message, fds)
                    for fd in fds:
                        os.close(fd)

    def send(self, message, fds=None):
        send(self.connection, message, fds)

    def join(self):
        self._thread.join(10)
        assert not self._thread.is_alive()


@pytest.fixture
def talk(tmp_path):
    """Run `work(launcher)` against a keeper that answers by `answer`; returns its result and what was asked."""
    def one(answer, work, on_exit=lambda _child: None, on_lost=lambda: None, version=VERSION):
        path = str(tmp_path / "keeper.sock")
        keeper = Keeper(path, answer)
        before = len(os.listdir("/proc/self/fd"))

        async def main():
            launcher = Launcher(path, on_exit, on_lost, lambda _child: None)
            launcher.keeper = KeeperIdentity(1, 1, version)
            await launcher.connect()
            try:
                return await asyncio.wait_for(work(launcher), 10)
            finally:
                await asyncio.sleep(0.05)
                launcher.close()

        try:
            return asyncio.run(main(), debug=False), keeper.said
        finally:
            keeper.join()
            os.unlink(path)
            assert len(os.listdir("/proc/self/fd")) <= before, "a descriptor leaks"
    return one


NETWORK = ("bGlua3M=", "aW5zaWRl")


async def connected():
    return NETWORK


def start(launcher, connect=connected):
    async def go():
        fd = os.open("/", os.O_RDONLY)
        try:
            return await launcher.start(PLAN, fd, fd, connect)
        finally:
            os.close(fd)
    return go()


def test_a_start(talk):
    def answer(keeper, message, fds):
        if message["call"] == "start":
            keeper.number = message["id"]
            assert Plan.from_json(message["plan"]) == PLAN and len(fds) == 2
        else:
            assert (message["start"], message["links"], message["inside"]) == (keeper.number, *NETWORK)
            keeper.send({"event": "started", "id": keeper.number, "pid": 4711, "start_time": 99})

    child, said = talk(answer, start)
    assert (child.kind, child.ve, child.pid, child.start_time) == ("init", "web1", 4711, 99)
    assert said == ["start", "network"]


def test_a_keeper_of_before_is_told_all_at_once(talk):
    def answer(keeper, message, _fds):
        assert Plan.from_json(message["plan"]) == PLAN.with_network(*NETWORK)
        keeper.send({"event": "started", "id": message["id"], "pid": 4711, "start_time": 99})

    child, said = talk(answer, start, version=6)
    assert (child.pid, said) == (4711, ["start"])


def test_a_host_that_cannot_connect_a_ve_has_its_start_aborted(talk, caplog):
    async def connect():
        raise SystemFailure("no bridge")

    def answer(keeper, message, _fds):
        if message["call"] == "abort":
            keeper.send({**FAILED, "id": message["start"]})

    async def work(launcher):
        with pytest.raises(SystemFailure, match="no bridge"):
            await start(launcher, connect)
        await asyncio.sleep(0.1)
        return launcher._aborted

    aborted, said = talk(answer, work)
    assert (aborted, said) == (set(), ["start", "abort"]) and "to no request" not in caplog.text


def test_a_start_that_fails(talk):
    def answer(keeper, message, _fds):
        keeper.send({**FAILED, "id": message["id"]})

    with pytest.raises(StartFailed, match=r"overlay target=/: Invalid argument \(/x\)") as failure:
        talk(answer, start)
    assert failure.value.facts["operation"] == "overlay target=/" and failure.value.exit_code == 7


@pytest.mark.parametrize(("code", "remedy"), [(errno.ENOENT, "--init"), (errno.ENOMEM, "")])
def test_an_init_that_cannot_be_run(talk, code, remedy):
    def answer(keeper, message, _fds):
        keeper.send({**FAILED, "operation": "exec init", "errno": code, "id": message["id"]})

    with pytest.raises(StartFailed, match="its init cannot be run") as failure:
        talk(answer, start)
    assert remedy in failure.value.remedy and bool(failure.value.remedy) == bool(remedy), "it may not be its fault"


def test_an_answer_that_cannot_be_received_aborts_the_start(talk):
    def answer(keeper, message, _fds):
        if message["call"] == "start":
            keeper.send({"event": "started", "id": message["id"], "pid": 1, "start_time": 1, "damaged": errno.EMFILE})

    with pytest.raises(SystemFailure, match="no descriptor left"):
        talk(answer, start)


def test_a_start_that_is_given_up_is_aborted(talk):
    said = []

    async def give_up(launcher):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(start(launcher), 0.2)

    talk(lambda _keeper, message, _fds: said.append(message["call"]), give_up)
    assert said == ["start", "network", "abort"]


def test_a_keeper_that_dies_at_work(talk):
    lost = []
    with pytest.raises(Unreachable, match="the keeper"):
        talk(lambda keeper, _message, _fds: keeper.connection.shutdown(socket.SHUT_RDWR), start,
             on_lost=lambda: lost.append(True))
    assert lost == [True]


@pytest.mark.parametrize(("operation", "code", "status"), [("exec", 2, "127"), ("exec", 13, "126"),
                                                            ("drop privileges", 2, "126"), ("enter", 3, "126")])
def test_a_command_that_does_not_start(talk, operation, code, status):
    def answer(keeper, message, fds):
        assert len(fds) == 6
        keeper.send({"event": "failed", "id": message["id"], "operation": operation, "errno": code, "error": "no",
                     "path": ""})

    with pytest.raises(ExecFailed) as failure:
        talk(answer, lambda launcher: launcher.exec("web1", COMMAND, 0, 0, 0, [0, 1, 2]))
    assert failure.value.facts["status"] == status


def test_children_come_in_parts(talk):
    def answer(keeper, message, _fds):
        for ve in ("web1", "web2"):
            keeper.send({"event": "part", "id": message["id"], "children": [
                {"kind": "init", "ve": ve, "pid": 5, "start_time": 6, "status": None}]})
        keeper.send({"event": "listed", "id": message["id"], "pid": 77})

    (pid, children), _ = talk(answer, lambda launcher: launcher.children())
    assert pid == 77 and [child.ve for child in children] == ["web1", "web2"]


def test_answers_find_their_questions(talk):
    """Two requests at once, answered in the other order; an answer that nobody waits for is dropped."""
    waiting = []

    def answer(keeper, message, _fds):
        waiting.append(message)
        if len(waiting) == 2:
            keeper.send({"event": "started", "id": 4242, "pid": 1, "start_time": 1})
            for asked in reversed(waiting):
                keeper.send({"event": "started", "id": asked["id"], "pid": 100 + int(asked["argv"][0]),
                             "start_time": 1})

    async def both(launcher):
        return await asyncio.gather(*(
            launcher.exec("web1", {**COMMAND, "argv": [str(n)]}, 0, 0, 0, [0, 1, 2]) for n in (1, 2)))

    assert talk(answer, both)[0] == [101, 102]


def test_ends_are_reported(talk):
    ends = []

    def answer(keeper, message, _fds):
        keeper.send({"event": "exited", "kind": "init", "ve": "web1", "pid": 5, "start_time": 6, "status": 9})
        keeper.send({"event": "shutdown", "id": message["id"], "ending": True})

    assert talk(answer, lambda launcher: launcher.shutdown(), on_exit=ends.append)[0] is True
    assert [(child.ve, child.pid, child.status) for child in ends] == [("web1", 5, 9)]


def test_no_keeper(tmp_path):
    launcher = Launcher(str(tmp_path / "missing"), lambda _child: None, lambda: None, lambda _child: None)
    with pytest.raises(Unreachable, match="does not answer") as refused:
        asyncio.run(launcher.connect(), debug=False)
    assert "vemgr-keeper" in refused.value.remedy
    with pytest.raises(Unreachable, match="not running"):
        asyncio.run(launcher.shutdown(), debug=False)
