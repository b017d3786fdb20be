# SPDX-License-Identifier: GPL-2.0-or-later
"""The varlink server against clients that write in pieces, read late, go away, or send what is no call."""

import asyncio
import contextlib
import errno
import json
import os
import socket
from collections.abc import AsyncIterator

import pytest
from asyncvarlink import FileDescriptor, GenericVarlinkErrorReply, VarlinkInterface, VarlinkInterfaceRegistry
from asyncvarlink import varlinkmethod as method
from asyncvarlink.interface import LastResult

from vemgr.api import server as serving
from vemgr.api.server import Server


class Sample(VarlinkInterface, name="org.example.Sample"):
    Secret = staticmethod(os.getpid)  # public to Python, not to varlink

    def __init__(self):
        self.held = asyncio.Event()
        self.done = []

    @method(return_parameter="text")
    def Say(self, *, text: str, times: int = 1) -> str:
        return text * times

    @method(return_parameter="text")
    async def Read(self, *, fd: FileDescriptor) -> str:
        await asyncio.sleep(0)
        return os.pread(fd.fileno(), 100, 0).decode()

    @method(return_parameter="fd")
    async def Open(self, *, path: str) -> FileDescriptor:
        return FileDescriptor(os.open(path, os.O_RDONLY), should_close=True)

    @method
    async def Wait(self) -> None:
        await self.held.wait()
        self.done.append("waited")

    @method(return_parameter="number", delay_generator=False)
    async def Count(self, *, to: int) -> AsyncIterator[int]:
        """To a number, or where it is negative until nobody listens."""
        try:
            for number in range(to):
                if number == 13:
                    raise ZeroDivisionError("of ours")
                yield number
            if to < 0:
                yield 0
                await self.held.wait()
            raise LastResult(to)
        finally:
            self.done.append("counted")

    @method
    async def Fail(self) -> None:
        raise ZeroDivisionError("of ours")


def failure(error):
    return GenericVarlinkErrorReply("org.example.Sample.Failed", {"why": f"{type(error).__name__}: {error}"})


def call(name, more=False, **parameters):
    return json.dumps({"method": f"org.example.Sample.{name}", "parameters": parameters,
                       **({"more": True} if more else {})}).encode() + b"\0"


class Client:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.socket.setblocking(False)
        self.data = b""

    async def send(self, data, fds=()):
        if fds:
            socket.send_fds(self.socket, [data], list(fds))
        else:
            await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def reply(self):
        """The next reply; None at the end of the conversation."""
        while b"\0" not in self.data:
            with contextlib.suppress(ConnectionResetError):
                more = await asyncio.get_running_loop().sock_recv(self.socket, 65536)
                self.data += more
                if more:
                    continue
            return None
        reply, _, self.data = self.data.partition(b"\0")
        return json.loads(reply)


@pytest.fixture
def play(tmp_path):
    """Run `story(sample, server, connect)` against a server; afterwards no descriptor may be left."""
    path = str(tmp_path / "sock")

    def run(story):
        async def main():
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(path)
            registry = VarlinkInterfaceRegistry()
            sample = Sample()
            registry.register_interface(sample)
            server = Server(listener, registry, failure)
            server.start()
            clients = []

            def connect():
                clients.append(Client(path))
                return clients[-1]

            try:
                await asyncio.wait_for(story(sample, server, connect), 20)
            finally:
                server.close()
                for client in clients:
                    client.socket.close()
            deadline = asyncio.get_running_loop().time() + 10
            while server.connections and asyncio.get_running_loop().time() < deadline:
                await asyncio.sleep(0.01)
            assert not server.connections

        before = sorted(os.listdir("/proc/self/fd"))
        asyncio.run(main())
        assert sorted(os.listdir("/proc/self/fd")) == before

    return run


@pytest.fixture
def files(tmp_path):
    """Two open files, "one" and "two"."""
    fds = []
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
        fds.append(os.open(tmp_path / name, os.O_RDONLY))
    yield fds
    for fd in fds:
        os.close(fd)


def test_calls_in_one_piece_are_answered_in_order(play):
    async def story(_sample, _server, connect):
        client = connect()
        await client.send(call("Say", text="a") + call("Fail") + call("Say", text="b", times=2))
        assert [await client.reply() for _ in range(3)] == [
            {"parameters": {"text": "a"}},
            {"error": "org.example.Sample.Failed", "parameters": {"why": "ZeroDivisionError: of ours"}},
            {"parameters": {"text": "bb"}}]
    play(story)


def test_a_call_in_many_pieces(play, files):
    async def story(_sample, _server, connect):
        client = connect()
        message = call("Read", fd=0)
        await client.send(message[:1], files[:1])  # the descriptor comes with the first piece
        for byte in message[1:]:
            await asyncio.sleep(0)
            await client.send(bytes([byte]))
        assert await client.reply() == {"parameters": {"text": "one"}}
    play(story)


def test_descriptors_stay_with_their_calls(play, files):
    async def story(_sample, _server, connect):
        client = connect()
        await client.send(call("Say", text="first"))
        for fd in files:
            await client.send(call("Read", fd=0), [fd])
        assert [(await client.reply())["parameters"]["text"] for _ in range(3)] == ["first", "one", "two"]
    play(story)


def test_a_descriptor_in_a_reply(play, tmp_path):
    (tmp_path / "file").write_text("content")

    async def story(_sample, _server, connect):
        client = connect()
        await client.send(call("Open", path=str(tmp_path / "file")))
        while True:
            with contextlib.suppress(BlockingIOError):
                data, fds, _, _ = socket.recv_fds(client.socket, 100, 1)
                break
            await asyncio.sleep(0.01)
        assert json.loads(data[:-1]) == {"parameters": {"fd": 0}}
        assert os.read(fds[0], 100) == b"content"
        os.close(fds[0])
    play(story)


def test_descriptors_that_could_not_be_received(play, files):
    async def story(_sample, _server, connect):
        client = connect()
        await client.send(call("Read", fd=0), files[:1] * 17)
        assert "not all descriptors" in (await client.reply())["parameters"]["why"]
        await client.send(call("Read", fd=0), files[:1])
        assert await client.reply() == {"parameters": {"text": "one"}}
    play(story)


def test_a_long_reply_waits_for_its_reader_and_nobody_else_does(play):
    async def story(_sample, _server, connect):
        slow, quick = connect(), connect()
        await slow.send(call("Say", text="x", times=5_000_000) + call("Say", text="after"))
        await quick.send(call("Say", text="y"))
        assert await quick.reply() == {"parameters": {"text": "y"}}
        assert (await slow.reply())["parameters"]["text"] == "x" * 5_000_000
        assert await slow.reply() == {"parameters": {"text": "after"}}
    play(story)


def test_a_client_that_goes_does_not_stop_the_work(play):
    async def story(sample, server, connect):
        client = connect()
        await client.send(call("Wait") + call("Say", text="never read"))
        while not server.connections:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        client.socket.close()
        await asyncio.sleep(0.05)
        sample.held.set()
        while server.connections:
            await asyncio.sleep(0.01)
        assert sample.done == ["waited"]
    play(story)


def test_a_client_that_has_said_all_gets_its_reply(play):
    async def story(sample, _server, connect):
        client = connect()
        await client.send(call("Wait"))
        client.socket.shutdown(socket.SHUT_WR)
        await asyncio.sleep(0.05)
        sample.held.set()
        assert await client.reply() == {}
        assert await client.reply() is None
    play(story)


def test_oneway_has_no_reply(play):
    async def story(_sample, _server, connect):
        client = connect()
        oneway = json.dumps({"method": "org.example.Sample.Fail", "oneway": True}).encode() + b"\0"
        await client.send(oneway + call("Say", text="next"))
        assert await client.reply() == {"parameters": {"text": "next"}}
    play(story)


@pytest.mark.parametrize(("message", "error"), [
    (call("Nothing"), {"error": "org.varlink.service.MethodNotFound", "parameters": {"method": "Nothing"}}),
    (call("Secret"), {"error": "org.varlink.service.MethodNotFound", "parameters": {"method": "Secret"}}),
    (b'{"method": "org.example.Other.Say"}\0',
     {"error": "org.varlink.service.InterfaceNotFound", "parameters": {"interface": "org.example.Other"}}),
    (call("Say", text=1), {"error": "org.varlink.service.InvalidParameter", "parameters": {"parameter": "text"}}),
    (call("Read", fd=0), {"error": "org.varlink.service.InvalidParameter", "parameters": {"parameter": "fd"}}),
])
def test_what_is_wrong_with_a_call(play, message, error):
    async def story(_sample, _server, connect):
        client = connect()
        await client.send(message)
        assert await client.reply() == error
    play(story)


@pytest.mark.parametrize("message", [
    b"\0", b"no JSON\0", b"[]\0", b'{"method": 1}\0', b'{"method": "Say"}\0', b"[" * 100_000 + b"\0", b"\xff\xfe\0",
    b"x" * (serving._MESSAGE_BOUND + 1),
])
def test_what_is_no_call_ends_the_conversation(play, files, message):
    async def story(_sample, _server, connect):
        client = connect()
        await client.send(message[:1], files)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await client.send(message[1:])
        assert await client.reply() is None
    play(story)


class Exhausted:
    """A listener of a process that has no descriptor left, for `times` calls."""

    def __init__(self, listener, times):
        self._listener, self._times = listener, times
        self.fileno, self.close = listener.fileno, listener.close

    def accept(self):
        self._times -= 1
        if self._times >= 0:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return self._listener.accept()


def test_a_shortage_of_descriptors_passes(play, monkeypatch):
    monkeypatch.setattr(serving, "_NAP", 0.01)

    async def story(_sample, server, connect):
        server._listener = Exhausted(server._listener, 3)
        client = connect()
        await client.send(call("Say", text="a"))
        assert await client.reply() == {"parameters": {"text": "a"}}
    play(story)


# many replies


def test_many_replies_to_one_call(play):
    async def story(_sample, _server, connect):
        client = connect()
        await client.send(call("Count", more=True, to=2) + call("Say", text="a", more=True) + call("Count", to=2)
                          + call("Count", more=True, to="x") + call("Count", more=True, to=14))
        replies = [await client.reply() for _ in range(3 + 1 + 1 + 1 + 14)]
        assert replies[:4] == [{"parameters": {"number": 0}, "continues": True},
                               {"parameters": {"number": 1}, "continues": True},
                               {"parameters": {"number": 2}}, {"parameters": {"text": "a"}}]
        assert replies[4]["error"] == "org.varlink.service.ExpectedMore"
        assert replies[5]["error"] == "org.varlink.service.InvalidParameter"
        assert replies[-1] == {"error": "org.example.Sample.Failed",
                               "parameters": {"why": "ZeroDivisionError: of ours"}}
    play(story)


def test_who_goes_while_nothing_is_said_is_noticed(play):
    async def story(sample, server, connect):
        client = connect()
        await client.send(call("Count", more=True, to=-1))
        assert (await client.reply())["continues"]
        client.socket.shutdown(socket.SHUT_RDWR)
        while server.connections:  # play's own time is the deadline
            await asyncio.sleep(0.01)
        assert sample.done == ["counted"]
    play(story)
