# SPDX-License-Identifier: GPL-2.0-or-later
"""Somebody who is attached to a console, at the other end of a socket (`core.console` says what goes over it)."""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import termios
import time
from collections.abc import Callable

from vemgr.core.console import DATA, LOST, MOST_DATA
from vemgr.keeper.loop import Loop

_BEHIND = 65536  # bytes of the kernel's memory under way, at which a client is behind
# So long the VE waits for a client that is behind, as for any slow terminal. Then the client loses text instead, until
# it has caught up: it may be stopped, or its network may be gone.
_PATIENCE = 2.0  # seconds


class Client:
    """`on_message` gets what a client that writes sends, and tells whether it may send more; `on_end` is called once.

    Nothing is queued here: what the socket does not take is lost, and the client is told how much that was.
    """

    def __init__(self, loop: Loop, channel: socket.socket, *, writes: bool, on_message: Callable[[bytes], bool],
                 on_end: Callable[[], None]) -> None:
        self.writes = writes
        self._loop = loop
        self._channel = channel
        self._on_message = on_message
        self._on_end = on_end
        self._lost = 0  # bytes
        self._behind_since = 0.0  # monotonic seconds
        self._open = True
        self._listening = False
        channel.setblocking(False)
        self.listen()

    def listen(self) -> None:
        if self._open and not self._listening:
            self._listening = True
            self._loop.watch(self._channel, self._read)

    def _unlisten(self) -> None:
        if self._listening:
            self._listening = False
            self._loop.unwatch(self._channel)

    def _read(self) -> None:
        try:
            message = self._channel.recv(MOST_DATA + 1)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self._close()
        elif self.writes and not self._on_message(message):
            self._unlisten()

    def look(self) -> None:
        """See whether it has gone, while it is not listened to."""
        if not self._listening:
            self.has_left()

    def has_left(self) -> bool:
        """Whether it has closed its end, before the loop comes to that; then what it still has typed is taken."""
        poll = select.poll()
        poll.register(self._channel, 0)  # the end of a connection is always reported
        while self._open and poll.poll(0):
            if self._listening:
                self._read()
            else:
                self._close()
        return not self._open

    def holds_up(self) -> bool:
        """Whether the VE should wait for it."""
        (under_way,) = struct.unpack("i", fcntl.ioctl(self._channel, termios.TIOCOUTQ, b"\0" * 4))
        if under_way < _BEHIND:
            self._behind_since = 0.0
            return False
        now = time.monotonic()
        self._behind_since = self._behind_since or now
        return now - self._behind_since < _PATIENCE

    def print(self, data: bytes) -> None:
        for position in range(0, len(data), MOST_DATA):
            part = data[position:position + MOST_DATA]
            if self._lost and self._send(LOST + str(self._lost).encode()):
                self._lost = 0
            if self._lost or not self._send(DATA + part):
                self._lost += len(part)

    def tell(self, kind: bytes, data: bytes = b"") -> None:
        if not self._send(kind + data):
            self._close()  # it has not been reading; the end of the stream tells it enough

    def leave(self, kind: bytes, data: bytes) -> None:
        self.tell(kind, data)
        self._close()

    def _send(self, message: bytes) -> bool:
        if not self._open:
            return True
        try:
            self._channel.send(message, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError:
            self._close()
        return True

    def _close(self) -> None:
        if self._open:
            self._open = False
            self._unlisten()
            self._channel.close()
            self._on_end()
