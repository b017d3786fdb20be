# SPDX-License-Identifier: GPL-2.0-or-later
"""A TCP stream between the host and a VE, to see how fast the VE's link lets it be."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator

from vemgr.kernel.namespaces import CLONE_NEWNET, setns
from vemgr.verify import load

_PATIENCE = 10.0  # seconds
_SLOW_START = 1.5  # seconds until TCP has found the rate
_FRAME, _CONTENT = 1514, 1448  # bytes of a full frame, which rates count, and of TCP's content in it
CHUNK = 1 << 14  # bytes that are sent and read at a time


def measure(group: str, pid: int, address: str, *, incoming: bool, seconds: float) -> float:
    """Bit/s of whole frames to the VE (`incoming`) or from it. The VE's end is a process of ours in its cgroup and
    network namespace. Raises `OSError`."""
    with _listening(pid, address) as listener:
        port = listener.getsockname()[1]
        with load.loaded(group, _sender(listener) if not incoming else _taker(listener)):
            ours = socket.create_connection((address, port), timeout=_PATIENCE)
            with ours:
                return (_told if incoming else _taken)(ours, seconds) * _FRAME / _CONTENT * 8


@contextlib.contextmanager
def _listening(pid: int, address: str) -> Iterator[socket.socket]:
    """A socket belongs to the network namespace that it was made in."""
    home, theirs = (os.open(f"/proc/{which}/ns/net", os.O_RDONLY | os.O_CLOEXEC) for which in ("self", pid))
    try:
        setns(theirs, CLONE_NEWNET)
        try:
            listener = socket.create_server((address, 0))
        finally:
            setns(home, CLONE_NEWNET)
    finally:
        os.close(theirs)
        os.close(home)
    with listener:
        yield listener


def _sender(listener: socket.socket) -> Callable[[], None]:
    def work() -> None:
        peer, _ = listener.accept()
        while True:
            peer.sendall(bytes(CHUNK))
    return work


def _taker(listener: socket.socket) -> Callable[[], None]:
    """Tells the other end how much it has had so far: what was sent may still wait on the way."""
    def work() -> None:
        peer, _ = listener.accept()
        total, told = 0, 0.0
        while data := peer.recv(CHUNK):
            total += len(data)
            if time.monotonic() - told > 0.02:
                told = time.monotonic()
                peer.send(total.to_bytes(8, "little"))
    return work


def _taken(ours: socket.socket, seconds: float) -> float:
    """Bytes a second that arrive here."""
    def take(until: float) -> int:
        total = 0
        while time.monotonic() < until:
            total += len(ours.recv(CHUNK))
        return total

    take(time.monotonic() + _SLOW_START)
    began = time.monotonic()
    total = take(began + seconds)
    return total / (time.monotonic() - began)


def _told(ours: socket.socket, seconds: float) -> float:
    """Bytes a second that arrive there, by what is told of it."""
    ours.setblocking(False)
    looks: list[tuple[float, int]] = []
    rest, began = b"", time.monotonic()
    while (now := time.monotonic()) < began + _SLOW_START + seconds:
        with contextlib.suppress(BlockingIOError):
            ours.send(bytes(CHUNK))
        with contextlib.suppress(BlockingIOError):
            rest += ours.recv(CHUNK)
        while len(rest) >= 8:
            looks.append((now, int.from_bytes(rest[:8], "little")))
            rest = rest[8:]
        time.sleep(0.001)
    counted = [look for look in looks if look[0] >= began + _SLOW_START]
    if len(counted) < 2:
        raise TimeoutError(110, "nothing arrives")
    return (counted[-1][1] - counted[0][1]) / (counted[-1][0] - counted[0][0])
