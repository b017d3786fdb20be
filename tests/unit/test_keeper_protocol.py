# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages and queues between daemon and keeper: what is full, too long, broken or short of descriptors."""

import errno
import gc
import json
import os
import resource
import socket

import pytest

from vemgr.keeper.connection import Connection
from vemgr.keeper.loop import Loop
from vemgr.keeper.outgoing import GoneError, Outgoing, QueueFullError
from vemgr.keeper.protocol import MESSAGE_BOUND, check_complete, encode, receive, send


@pytest.fixture
def pair():
    """A socket pair that does not block; sees that no descriptor is left open."""
    gc.collect()  # what earlier tests have left to it is not ours
    before = sorted(os.listdir("/proc/self/fd"))
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (one, other):
        end.setblocking(False)
    yield one, other
    one.close()
    other.close()
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def loop(pair):
    loop = Loop()
    yield loop
    loop.close()


def read_all(channel):
    """What is there to be read."""
    messages = []
    while True:
        try:
            message, fds = receive(channel)
        except BlockingIOError:
            return messages
        if message is None:
            return messages
        messages.append((message, fds))


# Messages


@pytest.mark.parametrize("text", ["", "ü€𝄞", "a\nb\x01", "\udcff\udc80", 'quote " backslash \\'])
def test_text_comes_back_as_it_was(pair, text):
    send(pair[0], {"id": 1, "text": text})
    assert receive(pair[1]) == ({"id": 1, "text": text}, [])


def test_a_text_takes_no_more_room_than_its_bytes():
    assert len(encode({"text": "ü" * 50_000})) < 100_100
    with pytest.raises(OSError) as refused:
        encode({"text": "\x01" * 60_000})
    assert refused.value.errno == errno.EMSGSIZE


@pytest.mark.parametrize(("data", "id_", "damage"), [
    (b'{"id": 7, "call"', 7, errno.EBADMSG), (b"{", 0, errno.EBADMSG), (b"[1]", 0, errno.EBADMSG),
    (b"\xff\xfe\x00", 0, errno.EBADMSG), (b"7", 0, errno.EBADMSG), (b"[" * 100_000, 0, errno.EBADMSG),
])
def test_what_is_no_message(pair, data, id_, damage):
    reader, writer = os.pipe()
    socket.send_fds(pair[0], [data], [reader, writer])
    os.close(reader)
    os.close(writer)
    message, fds = receive(pair[1])
    assert (message, fds) == ({"id": id_, "damaged": damage}, [])
    with pytest.raises(OSError) as refused:
        check_complete(message)
    assert refused.value.errno == damage


def test_a_message_beyond_the_bound_is_told(pair):
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MESSAGE_BOUND)
    pair[0].send(json.dumps({"id": 12, "text": "x" * MESSAGE_BOUND}).encode())
    assert receive(pair[1]) == ({"id": 12, "damaged": errno.EMSGSIZE}, [])


def test_descriptors_that_did_not_arrive(pair):
    reader, writer = os.pipe()
    send(pair[0], {"id": 3, "event": "cloned"}, [reader, writer])
    os.close(reader)
    os.close(writer)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.open("/", os.O_RDONLY)
    os.close(spare)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare + 1, hard))  # room for one of the two
    try:
        message, fds = receive(pair[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (message, fds) == ({"id": 3, "event": "cloned", "damaged": errno.EMFILE}, [])


# The queue


def test_nothing_is_lost_when_the_buffer_is_full(pair):
    outgoing = Outgoing(pair[0], 1 << 20)
    reader, writer = os.pipe()
    for number in range(1000):
        outgoing.put({"id": number}, [writer] if number % 100 == 0 else [])
    os.close(writer)  # at once: what waits has its own
    assert 0 < len(outgoing) < 1000
    found = []
    while len(outgoing):
        found += read_all(pair[1])
        outgoing.flush()
    found += read_all(pair[1])
    assert [message["id"] for message, _ in found] == list(range(1000))
    for message, fds in found:
        assert len(fds) == (message["id"] % 100 == 0)
        for fd in fds:
            os.write(fd, b"x")
            os.close(fd)
    assert os.read(reader, 100) == b"x" * 10 and os.read(reader, 1) == b""
    os.close(reader)


def test_the_queue_is_bounded_and_closes_what_it_holds(pair):
    outgoing = Outgoing(pair[0], 100_000)
    with pytest.raises(QueueFullError):
        for number in range(10_000):
            outgoing.put({"id": number}, [0])
    assert len(outgoing) > 100
    outgoing.close()
    assert len(outgoing) == 0


def test_the_other_side_is_gone(pair):
    outgoing = Outgoing(pair[0], 1 << 20)
    pair[1].close()
    with pytest.raises(GoneError):
        outgoing.put({"id": 1})


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM])
def test_want_of_memory_loses_nothing(pair, monkeypatch, code):
    outgoing = Outgoing(pair[0], 1 << 20)
    with monkeypatch.context() as patch:
        def fail(*_):
            raise OSError(code, "x")
        patch.setattr("vemgr.keeper.outgoing.socket.send_fds", fail)
        assert not outgoing.put({"id": 1}) and not outgoing.flush()
    assert outgoing.flush() and receive(pair[1])[0] == {"id": 1}


# A connection of the keeper


def test_a_connection_goes_on_when_the_other_side_reads_again(pair, loop):
    ended = []
    connection = Connection(loop, pair[0].dup(), lambda *_: None, ended.append)
    for number in range(20_000):
        connection.tell({"event": "exited", "id": number})
    loop.step(0)
    assert connection.open and connection.waiting
    found = []
    while connection.waiting:
        found += [message["id"] for message, _ in read_all(pair[1])]
        loop.step(0.1)
    found += [message["id"] for message, _ in read_all(pair[1])]
    assert found == list(range(20_000)) and not ended
    connection.close()
    assert ended == [connection]


def test_a_daemon_that_never_reads_is_dropped(pair, loop, monkeypatch):
    monkeypatch.setattr("vemgr.keeper.connection.QUEUE_BOUND", 200_000)
    ended = []
    connection = Connection(loop, pair[0].dup(), lambda *_: None, ended.append)
    for number in range(5000):
        connection.tell({"event": "exited", "id": number}, [0])
    assert ended == [connection] and not connection.open
    loop.step(0)


def test_a_full_buffer_costs_no_time(pair, loop):
    """Level-triggered: a socket that takes nothing must not be reported as writable all the time."""
    connection = Connection(loop, pair[0].dup(), lambda *_: None, lambda _: None)
    for number in range(5000):
        connection.tell({"id": number})
    steps = []
    loop.later(0.2, lambda: steps.append(None))
    rounds = 0
    while not steps:
        loop.step(1)
        rounds += 1
    assert rounds < 20
    connection.close()


# The loop


def test_an_action_that_ends_another_watch(pair, loop):
    called = []

    def first():
        called.append("one")
        for end in pair:
            loop.unwatch(end)

    for end in pair:
        loop.watch(end, first)
        end.send(b"x")
    loop.step(1)
    assert called == ["one"]


def test_timers_and_failures(loop, caplog):
    called = []
    loop.later(0.02, lambda: called.append("late"))
    loop.later(0.01, lambda: 1 / 0)
    loop.later(0.0, lambda: called.append("early")).cancel()
    loop.later(0.0, lambda: called.append("now"))
    for _ in range(10):
        loop.step(0.02)
    assert called == ["now", "late"] and "ZeroDivisionError" in caplog.text
