# SPDX-License-Identifier: GPL-2.0-or-later
"""What counts of what a VE sends to its notification socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator

import pytest

from vemgr.keeper.readiness import _MOST, Readiness

RECEIVED = [-1]  # the other end of `sender`, which `listening` takes over


class Loop:
    """Watches one thing, and is told by the test when it can be read."""

    def __init__(self) -> None:
        self.action: Callable[[], None] | None = None

    def watch(self, _thing: socket.socket, action: Callable[[], None]) -> None:
        self.action = action

    def unwatch(self, _thing: socket.socket) -> None:
        self.action = None


class Child:
    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.ready = True


@pytest.fixture
def sender() -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    ours.setblocking(False)
    RECEIVED[0] = ours.detach()
    yield theirs
    theirs.close()


def listening(pid: int) -> tuple[Loop, Child, Readiness, list[Child]]:
    told: list[Child] = []
    loop, child = Loop(), Child(pid)
    readiness = Readiness(loop, told.append)  # type: ignore[arg-type]
    readiness.listen(child, RECEIVED[0])  # type: ignore[arg-type]
    return loop, child, readiness, told


@pytest.mark.parametrize("message", [b"READY=1", b"STATUS=up\nREADY=1\nMAINPID=1", b"READY=1\n"])
def test_ready(sender, message):
    loop, child, _, told = listening(os.getpid())
    assert not child.ready
    sender.send(message)
    loop.action()
    assert child.ready and told == [child] and loop.action is None


@pytest.mark.parametrize("message", [b"", b"READY=0", b"XREADY=1", b"READY=10", b"STATUS=READY=1", b"STOPPING=1"])
def test_other_words(sender, message):
    loop, child, readiness, told = listening(os.getpid())
    sender.send(message)
    loop.action()
    assert not child.ready and not told and loop.action is not None
    readiness.end(child)


def test_others_than_init_have_no_say(sender):
    loop, child, readiness, told = listening(os.getpid() + 1)
    sender.send(b"READY=1")
    loop.action()
    assert not child.ready and not told
    readiness.end(child)
    readiness.end(child)


def test_descriptors_are_closed(sender):
    loop, child, readiness, _ = listening(os.getpid())
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        socket.send_fds(sender, [b"FDSTORE=1"], [0] * 100)
        loop.action()
    assert len(os.listdir("/proc/self/fd")) == before
    readiness.end(child)


def test_who_talks_too_much_is_not_listened_to(sender):
    loop, child, _, told = listening(os.getpid())
    for _ in range(_MOST):
        assert loop.action is not None
        sender.send(b"STATUS=still here")
        loop.action()
    assert loop.action is None and not child.ready and not told
    with pytest.raises(OSError, match=r"refused|reset|not connected"):
        sender.send(b"READY=1")
