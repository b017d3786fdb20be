# SPDX-License-Identifier: GPL-2.0-or-later
"""What is still to be sent on a socket that does not block: nothing is lost when its buffer is full."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from vemgr.keeper.protocol import encode

_OVERHEAD = 512  # bytes that a queued message costs beside its text
_FULL = frozenset({errno.EAGAIN})
_NO_MEMORY = frozenset({errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS})
_NAP = 0.005  # seconds
_GONE = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ECONNREFUSED, errno.ENOTCONN})


class QueueFullError(Exception):
    """The other side has not been reading for so long that the queue has reached its bound."""


class GoneError(Exception):
    """There is no other side any more."""


class Outgoing:
    """Messages to one socket, in order. Descriptors of a message that has to wait are duplicated, so that the caller
    may close its own at once, and closed when it is sent."""

    def __init__(self, channel: socket.socket, bound: int) -> None:
        self._channel = channel
        self._bound = bound
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._size = 0

    def put(self, message: dict[str, Any], fds: Sequence[int] = ()) -> bool:
        """Send, or queue: then call `flush` when the socket is writable. Returns whether nothing is left.

        Raises `GoneError`, `QueueFullError`, and `OSError` EMSGSIZE or EMFILE when this message cannot be taken.
        """
        data = encode(message)
        if not self._queue and self._send(data, fds):
            return True
        size = len(data) + _OVERHEAD
        if self._size + size > self._bound:
            raise QueueFullError
        self._queue.append((data, _duplicates(fds)))
        self._size += size
        return False

    def flush(self) -> bool:
        """Send as much as the socket takes; whether nothing is left. Raises `GoneError`."""
        while self._queue:
            data, fds = self._queue[0]
            if not self._send(data, fds):
                return False
            self._queue.popleft()
            self._size -= len(data) + _OVERHEAD
            for fd in fds:
                os.close(fd)
        return True

    def _send(self, data: bytes, fds: Sequence[int]) -> bool:
        try:
            socket.send_fds(self._channel, [data], list(fds))
        except OSError as error:
            if error.errno in _GONE:
                raise GoneError from error
            if error.errno in _NO_MEMORY:
                time.sleep(_NAP)  # the socket is writable all the same: without a nap we would spin
            elif error.errno not in _FULL:
                raise
            return False
        return True

    def close(self) -> None:
        for _, fds in self._queue:
            for fd in fds:
                os.close(fd)
        self._queue.clear()
        self._size = 0

    def __len__(self) -> int:
        return len(self._queue)


def _duplicates(fds: Sequence[int]) -> list[int]:
    copies: list[int] = []
    try:
        for fd in fds:
            copies.append(os.dup(fd))
    except OSError:
        for copy in copies:
            os.close(copy)
        raise
    return copies
