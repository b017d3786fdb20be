# SPDX-License-Identifier: GPL-2.0-or-later
"""One connection to the keeper's socket."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

from vemgr.keeper.loop import Loop
from vemgr.keeper.outgoing import GoneError, Outgoing, QueueFullError
from vemgr.keeper.protocol import make_room, receive

log = logging.getLogger("vemgr.keeper")

# A daemon that is stopped or busy finds everything when it reads again. One that never does must not take our memory:
# beyond this it is dropped, and asks for the list of children when it is back. Room for 100,000 ends of commands.
QUEUE_BOUND = 64 << 20


class Connection:
    """Calls `on_message` with the connection, a message and its descriptors, which are closed afterwards, and `on_end`
    once when there is no other side any more."""

    def __init__(self, loop: Loop, channel: socket.socket,
                 on_message: Callable[[Connection, dict[str, Any], list[int]], None],
                 on_end: Callable[[Connection], None]) -> None:
        self._loop = loop
        self._channel = channel
        self._on_message = on_message
        self._on_end = on_end
        self._outgoing = Outgoing(channel, QUEUE_BOUND)
        self.open = True
        channel.setblocking(False)
        make_room(channel)
        loop.watch(channel, self._read)

    def _read(self) -> None:
        try:
            message, fds = receive(self._channel)
        except BlockingIOError:
            return
        except OSError:
            message, fds = None, []
        if message is None:
            self.close()
            return
        try:
            self._on_message(self, message, fds)
        finally:
            for fd in fds:
                os.close(fd)

    def tell(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send now or as soon as the other side reads. Raises `OSError` when this message cannot be taken: EMSGSIZE,
        EMFILE."""
        if not self.open:
            return
        try:
            waiting = len(self._outgoing) > 0
            if not self._outgoing.put(message, fds) and not waiting:
                self._loop.on_writable(self._channel, self._flush)
        except QueueFullError:
            log.error("the daemon does not read what it is told: its connection is closed")
            self.close()
        except GoneError:
            self.close()

    def _flush(self) -> None:
        with contextlib.suppress(GoneError):
            if self._outgoing.flush():
                self._loop.on_writable(self._channel, None)
            return
        self.close()

    @property
    def waiting(self) -> bool:
        """Whether something is still to be sent."""
        return self.open and len(self._outgoing) > 0

    def close(self) -> None:
        if self.open:
            self.open = False
            self._loop.unwatch(self._channel)
            self._outgoing.close()
            self._channel.close()
            self._on_end(self)
