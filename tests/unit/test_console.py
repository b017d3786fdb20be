# SPDX-License-Identifier: GPL-2.0-or-later
"""Consoles without VEs: pseudo-terminals and sockets of the tests' own; text made plain; keys."""

import contextlib
import errno
import fcntl
import os
import pty
import socket
import struct
import termios
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vemgr.cli.keys import DetachKeys
from vemgr.cli.log_reader import Reader
from vemgr.cli.logs import parse_since
from vemgr.cli.plain import Plain
from vemgr.core.console import (
    DATA,
    ENDED,
    GONE,
    LOG,
    LOG_BOUND,
    LOG_OLDER,
    LOST,
    MOST_DATA,
    RUNS,
    SIZE,
    TIME,
    TIMES,
    TIMES_BOUND,
    TIMES_HEAD,
    TIMES_OLDER,
)
from vemgr.core.errors import BadValue
from vemgr.keeper import console_client
from vemgr.keeper.console import Consoles
from vemgr.keeper.console_log import ConsoleLogs
from vemgr.keeper.loop import Loop


class World:
    """The keeper's consoles; `open` makes a terminal in the place of a VE's."""

    def __init__(self, base, stack):
        self.loop = Loop()
        self.logs = ConsoleLogs(str(base))
        self.consoles = Consoles(self.loop, self.logs)
        self.base, self._stack = base, stack

    def open(self, ve="web1"):
        master, slave = pty.openpty()
        ours = os.dup(slave)
        self._stack.callback(os.close, ours)
        self._stack.callback(self.consoles.end, ve, 0)
        os.set_blocking(ours, False)
        self.consoles.begin(ve, master, slave)
        return ours

    def attach(self, ve="web1", writes=True, force=False, refusal=""):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._stack.callback(ours.close)
        self._stack.callback(self.consoles.forget, ve)
        ours.setblocking(False)
        assert self.consoles.attach(ve, theirs, writes=writes, force=force) == refusal
        if refusal:
            theirs.close()
        return ours

    def go(self, seconds=0.2):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.loop.step(0.01)

    def until(self, condition):
        end = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < end
            self.loop.step(0.01)


@pytest.fixture
def world(tmp_path):
    with contextlib.ExitStack() as stack:
        yield World(tmp_path, stack)


def messages(client):
    found = []
    with contextlib.suppress(BlockingIOError):
        while data := client.recv(8192):
            found.append(data)
    return found


def printed(client):
    return b"".join(data[1:] for data in messages(client) if data[:1] == DATA)


def test_a_client_gets_what_was_printed_and_what_is(world):
    slave = world.open()
    os.write(slave, b"before")
    client = world.attach()
    os.write(slave, b"after")
    world.go()
    assert messages(client)[0] == RUNS
    other = world.attach(writes=False)
    world.go()
    assert printed(other).endswith(b"beforeafter")
    client.send(DATA + b"typed\n")
    client.send(SIZE + struct.pack("HHHH", 10, 20, 0, 0))
    world.go()
    assert os.read(slave, 100) == b"typed\n"
    assert struct.unpack("HHHH", fcntl.ioctl(slave, termios.TIOCGWINSZ, b"\0" * 8))[:2] == (10, 20)
    other.send(DATA + b"no\n")
    world.go()
    with pytest.raises(BlockingIOError):
        os.read(slave, 100)


def test_only_this_life_is_shown_to_who_attaches(world):
    slave = world.open()
    os.write(slave, b"first life\n")
    world.consoles.end("web1", 0)
    client = world.attach()
    slave = world.open()
    os.write(slave, b"second")
    world.go()
    assert printed(client) == b"second"
    assert printed(world.attach(writes=False)) == b"second"
    log = (world.base / "web1" / LOG).read_bytes()
    assert log.count(b"[vemgr: web1 started ") == 2 and log.endswith(b"]\r\nsecond")


def test_who_has_left_is_in_nobodys_way(world):
    """Also when the keeper has not come to see it yet, and what was typed last is not lost."""
    slave = world.open()
    first = world.attach()
    messages(first)  # with something unread, the kernel would throw away what was typed
    first.send(DATA + b"last words\n")
    first.close()
    second = world.attach()
    world.until(lambda: _typed(slave))
    second.send(DATA + b"more\n")
    second.close()
    third = world.attach()
    world.attach(refusal="writer")
    third.close()
    world.attach()


def _typed(slave):
    with contextlib.suppress(BlockingIOError):
        return os.read(slave, 100)


def test_scrollback_is_bounded_and_begins_with_a_line(world):
    slave = world.open()
    for number in range(4000):
        world.until(lambda number=number: _written(slave, f"{number:07}\n".encode()))
    text = printed(world.attach())
    assert 16000 < len(text) <= 16384 and text.startswith(b"000") and text.endswith(b"0003999\r\n")


def _fill(fd):
    """Write as much as it takes; returns how much."""
    written = 0
    with contextlib.suppress(BlockingIOError):
        while written < 60_000:
            written += os.write(fd, b"y" * 1000)
    return written


def _written(fd, data):
    try:
        return os.write(fd, data) == len(data)
    except BlockingIOError:
        return False


def test_the_last_words_and_the_end(world):
    slave = world.open()
    client = world.attach()
    os.write(slave, b"last words")
    world.consoles.end("web1", 9)
    assert messages(client)[-2:] == [DATA + b"last words", ENDED + struct.pack("=i", 9)]


def test_who_may_type(world):
    world.open()
    first = world.attach()
    world.attach(refusal="writer")
    second = world.attach(force=True)
    assert messages(first)[-1][:1] == GONE
    with pytest.raises(OSError, match="Broken pipe") as gone:
        first.send(DATA + b"x")
    assert gone.value.errno == errno.EPIPE
    for _ in range(15):
        world.attach(writes=False)
    world.attach(writes=False, refusal="many")
    second.close()
    world.go(0.1)
    world.attach()


def test_a_client_that_does_not_read_loses_text_and_is_told(world, monkeypatch):
    monkeypatch.setattr(console_client, "_PATIENCE", 0.3)
    slave = world.open()
    client = world.attach()
    sent = 0
    deadline = time.monotonic() + 20
    while sent < 1_000_000:
        assert time.monotonic() < deadline, "the VE is held up for ever"
        sent += _fill(slave)
        world.loop.step(0.01)
    first = messages(client)
    assert sum(len(message) - 1 for message in first) < 400_000
    rest = []
    world.until(lambda: rest.extend(messages(client)) or _written(slave, b"end"))
    world.go()
    rest += messages(client)
    lost = sum(int(message[1:]) for message in rest if message[:1] == LOST)
    whole = sum(len(message) - 1 for message in first + rest if message[:1] == DATA)
    assert lost > 0 and lost + whole == sent + 3
    assert all(len(message) <= MOST_DATA + 1 for message in first + rest)


def test_the_ve_waits_for_a_slow_client(world):
    slave = world.open()
    client = world.attach()
    got = sent = 0
    while sent < 600_000:
        sent += _fill(slave)
        world.go(0.03)  # it reads 100 kB/s at most
        with contextlib.suppress(BlockingIOError):
            message = client.recv(8192)
            assert message[:1] != LOST
            got += len(message) - 1 if message[:1] == DATA else 0
    deadline = time.monotonic() + 10
    while got < sent:
        assert time.monotonic() < deadline
        world.loop.step(0.01)
        got += len(printed(client))
    assert got == sent


def test_what_is_typed_waits_until_it_is_read(world):
    slave = world.open()
    mode = termios.tcgetattr(slave)
    mode[3] &= ~(termios.ICANON | termios.ECHO)
    termios.tcsetattr(slave, termios.TCSANOW, mode)
    client = world.attach()
    text = b"".join(b"%06d\n" % number for number in range(30000))
    sent, got = 0, b""
    deadline = time.monotonic() + 60
    while len(got) < len(text):
        assert time.monotonic() < deadline
        with contextlib.suppress(BlockingIOError):
            client.send(DATA + text[sent:sent + 3000])
            sent += 3000
        world.loop.step(0.001)
        with contextlib.suppress(BlockingIOError):
            got += os.read(slave, 65536)
    assert got == text


def test_a_writer_that_goes_while_nobody_reads(world):
    slave = world.open()
    termios.tcsetattr(slave, termios.TCSANOW, [0, 0, termios.tcgetattr(slave)[2], 0, 0, 0, termios.tcgetattr(slave)[6]])
    client = world.attach()
    with pytest.raises(BlockingIOError):  # what it types is not kept without bound
        for _ in range(300):
            client.send(DATA + b"x" * 3000)
            world.loop.step(0.001)
    client.close()
    world.go(0.3)
    world.attach()


def test_output_stopped_by_a_client_goes_on_without_it(world):
    slave = world.open()
    client = world.attach()
    client.send(DATA + b"\x13")
    world.go(0.1)
    with pytest.raises(BlockingIOError):
        os.write(slave, b"x")
    client.close()
    world.go(0.1)
    assert os.write(slave, b"x") == 1


def test_many_that_print_share_the_time(world):
    slaves = [world.open(f"ve{number}") for number in range(60)]
    turns = []
    for console in world.consoles._consoles.values():
        assert console._timer is None
    read = type(console).read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(console), "read", lambda self, *most: turns.append(1) or read(self, *most))
        end = time.monotonic() + 2
        while time.monotonic() < end:
            for slave in slaves:
                with contextlib.suppress(BlockingIOError):
                    os.write(slave, b"y" * 500)
            world.loop.step(0.01)
    assert len(turns) < 2 * 500 * 1.3 + 60


def test_a_log_is_bounded_and_goes_on(world):
    for number in range(1000):
        world.logs.append("web1", b"%07d\n" % number * 100)
    files = {name: (world.base / "web1" / name).read_bytes() for name in (LOG, LOG_OLDER)}
    assert len(os.listdir(world.base / "web1")) == 4 and all(len(data) <= LOG_BOUND for data in files.values())
    assert (files[LOG_OLDER] + files[LOG]).endswith(b"0000998\n" * 100 + b"0000999\n" * 100)
    assert world.logs.tail("web1", 100_000) == (files[LOG_OLDER] + files[LOG])[-100_000:]
    assert world.logs.tail("web1", 200_000) == (files[LOG_OLDER] + files[LOG])[-200_000:]
    assert world.logs.tail("web2", 100) == b""


def test_a_log_knows_when(world, monkeypatch):
    """Also over the change of files, and where more seconds than fit are told apart."""
    now = [1_800_000_000]
    monkeypatch.setattr("vemgr.keeper.console_log.time.time", lambda: now[0] + 0.9)
    for _ in range(5000):
        now[0] += 1
        world.logs.append("web1", b"%d\n" % now[0])
    sizes = {path.name: path.stat().st_size for path in (world.base / "web1").iterdir()}
    assert sorted(sizes) == [LOG, LOG_OLDER, TIMES_OLDER, TIMES]
    assert sizes[TIMES_OLDER] == TIMES_BOUND > sizes[TIMES]
    directory = os.open(world.base / "web1", os.O_RDONLY)
    try:
        pieces = list(Reader(directory, timed=True).read())
    finally:
        os.close(directory)
    assert [(piece.second, piece.data) for piece in pieces] == [
        (second, b"%d\n" % second) for second in range(1_800_000_001, 1_800_005_001)]


def test_times_are_one_for_each_second_and_of_their_own_log(world, monkeypatch):
    log, times = world.base / "web1" / LOG, world.base / "web1" / TIMES
    monkeypatch.setattr("vemgr.keeper.console_log.time.time", lambda: log.stat().st_mtime if log.exists() else 1e9)
    for _ in range(3):
        world.logs.append("web1", b"text\n")
    assert times.stat().st_size == TIMES_HEAD.size + TIME.size
    monkeypatch.undo()
    (world.base / "web1" / LOG).unlink()
    world.logs.append("web1", b"anew\n")
    assert times.stat().st_size == TIMES_HEAD.size + TIME.size
    os.utime(world.base / "web1" / LOG, (1, 1))
    world.logs.append("web1", b"later\n")
    directory = os.open(world.base / "web1", os.O_RDONLY)
    try:
        assert [piece.data for piece in Reader(directory, timed=True).read()] == [b"anew\n", b"later\n"]
        assert list(Reader(directory, timed=False).read()) == [(0, b"anew\nlater\n")]
    finally:
        os.close(directory)


@pytest.mark.parametrize(("text", "second"), [
    ("2027-01-15T08:00:00Z", 1_800_000_000), ("2027-01-15T09:00:00+01:00", 1_800_000_000),
    ("10m", 1_800_000_000 - 600), ("1h30m", 1_800_000_000 - 5400), ("90s", 1_800_000_000 - 90),
    ("1w2d", 1_800_000_000 - 9 * 86400), ("999999999w", 0),
])
def test_since(monkeypatch, text, second):
    monkeypatch.setattr("vemgr.cli.logs.time.time", lambda: 1_800_000_000.5)
    assert parse_since(text) == second


@pytest.mark.parametrize("text", ["", "soon", "10", "10x", "-5m", "5m-", "2027-13-01", "m"])
def test_since_what(text):
    with pytest.raises(BadValue, match="--since"):
        parse_since(text)


def test_a_log_that_cannot_be_written(world, tmp_path):
    slave = world.open()
    client = world.attach()
    (tmp_path / "web1").write_text("in the way")
    os.write(slave, b"text")
    world.go()
    assert printed(client) == b"text"


def test_a_log_does_not_follow_links(world, tmp_path):
    (tmp_path / "web1").mkdir()
    (tmp_path / "target").write_text("")
    (tmp_path / "web1" / LOG).symlink_to(tmp_path / "target")
    world.logs.append("web1", b"text")
    assert (tmp_path / "target").read_text() == ""


# keys


@pytest.mark.parametrize(("keys", "typed", "out", "found"), [
    ("ctrl-],ctrl-],ctrl-]", b"a\x1d\x1d\x1db", b"a", True),
    ("ctrl-],ctrl-],ctrl-]", b"\x1d\x1dx", b"\x1d\x1dx", False),
    ("ctrl-],ctrl-],ctrl-]", b"\x1d", b"", False), ("ctrl-a,q", b"\x01\x01q", b"\x01", True),
    ("a,a,b", b"aaab", b"a", True), ("a,a,b", b"aacaab", b"aac", True), ("CTRL-A", b"x\x01", b"x", True),
])
def test_detach_keys(keys, typed, out, found):
    assert DetachKeys(keys).feed(typed) == (out, found)
    one_by_one = DetachKeys(keys)
    answers = [one_by_one.feed(typed[position:position + 1]) for position in range(len(typed))]
    got = b""
    for text, complete in answers:
        got += text
        if complete:
            break
    assert (got, any(complete for _, complete in answers)) == (out, found)


def test_keys_that_do_not_go_on():
    keys = DetachKeys("ctrl-],x")
    assert keys.feed(b"\x1d") == (b"", False) and keys.give_up() == b"\x1d" and keys.feed(b"x") == (b"x", False)


@pytest.mark.parametrize("keys", ["", "ctrl-", "ctrl-ab", "a,,b", "ctrl-1", "ü", "\x1b"])
def test_keys_that_are_none(keys):
    with pytest.raises(BadValue):
        DetachKeys(keys)


# text


@pytest.mark.parametrize(("data", "text"), [
    (b"plain\ttext\r\n", "plain\ttext\n"), (b"\x1b[1;31mred\x1b[0m", "red"), (b"\x1b]0;title\x07x", "x"),
    (b"\x1b]0;title\x1b\\x", "x"), (b"\x1bP$q\x1b\\x", "x"), (b"\x1b(Bx\x1b=y\x1bcz", "xyz"), (b"a\rb\r\r\n", "a\nb\n"),
    (b"\x07\x08\x7f\x00", "^G^H^?^@"), (b"\xff\xc3", "\\xff\\xc3"), ("ü€\u202e\x9b".encode(), "ü€\\u202e\\x9b"),
    (b"\x1b]0;never ended\nnext", "^[]0;never ended\nnext"), (b"end \x1b[31", "end ^[[31"),
    (b"\x1b", "^["), (b"\r", "\n"),
    (b"\x1b]0;a\nb\x07c", "^[]0;a\nb^Gc"), (b"\x1b]" + b"x" * 3000 + b"\x07", "^[]" + "x" * 3000 + "^G"),
])
def test_plain_text(data, text):
    plain = Plain()
    assert plain.feed(data, final=True) == text
    plain = Plain()
    pieces = [plain.feed(data[position:position + 1]) for position in range(len(data))]
    assert "".join(pieces) + plain.feed(b"", final=True) == text


@given(st.binary(max_size=300) | st.text(alphabet="\x1b[]P\\;m\x07\r\na0 ", max_size=60).map(str.encode))
def test_nothing_that_a_terminal_would_obey_gets_through(data):
    text = Plain().feed(data, final=True)
    assert all(c in "\n\t" or c.isprintable() for c in text)


def test_hostile_text_takes_no_time():
    for part in (b"\x1b[", b"\x1b]", b"\x1b[0;", b"\r", b"\x1bP\x1b", b"\x1b]" + b"a" * 1000):
        began = time.process_time()
        Plain().feed(part * (400_000 // len(part)), final=True)
        assert time.process_time() - began < 5
