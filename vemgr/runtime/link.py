# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon's socket to the keeper: whole messages in both directions, none lost."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Sequence
from typing import Any

from vemgr.core.errors import BadValue, SystemFailure, Unreachable
from vemgr.keeper.outgoing import GoneError, Outgoing, QueueFullError
from vemgr.keeper.protocol import MESSAGE_BOUND, make_room, receive

_QUEUE_BOUND = 64 << 20  # bytes of requests that a keeper has not read; it reads all the time
_SUBJECTS = {"exec": "command", "start": "plan"}  # what a request is about, for who reads its refusal
_REMEDY = "systemctl start vemgr-keeper"


class Link:
    """`on_message` gets each message and owns its descriptors; `on_lost` is called when the keeper is gone."""

    def __init__(self, path: str, on_message: Callable[[dict[str, Any], list[int]], None],
                 on_lost: Callable[[], None]) -> None:
        self._path = path
        self._on_message = on_message
        self._on_lost = on_lost
        self._socket: socket.socket | None = None
        self._outgoing: Outgoing | None = None

    @property
    def connected(self) -> bool:
        return self._socket is not None

    def connect(self) -> None:
        """Raises `Unreachable` when no keeper listens."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            connection.connect(self._path)
        except OSError as error:
            connection.close()
            raise Unreachable(f"the keeper does not answer on {self._path}: {error.strerror}",
                              remedy=f"{_REMEDY}, or any vemgr command where there is no systemd",
                              path=self._path) from error
        connection.setblocking(False)
        make_room(connection)
        self._socket = connection
        self._outgoing = Outgoing(connection, _QUEUE_BOUND)
        asyncio.get_running_loop().add_reader(connection, self._read)

    def close(self) -> None:
        if self._socket is None or self._outgoing is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)
        loop.remove_writer(self._socket)
        self._outgoing.close()
        self._socket.close()
        self._socket = self._outgoing = None

    def _lost(self) -> None:
        if self._socket is not None:
            self.close()
            self._on_lost()

    def _read(self) -> None:
        if self._socket is None:
            return
        try:
            message, fds = receive(self._socket)
        except BlockingIOError:
            return
        except OSError:
            message, fds = None, []
        if message is None:
            self._lost()
        else:
            self._on_message(message, fds)

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send now, or as soon as the keeper reads; the caller may close `fds` at once.

        Raises `BadValue` when the message is too long, `SystemFailure` when no descriptor is left, `Unreachable`.
        """
        if self._socket is None or self._outgoing is None:
            raise Unreachable("the keeper is not running", remedy=_REMEDY)
        try:
            if not self._outgoing.put(message, fds):
                asyncio.get_running_loop().add_writer(self._socket, self._write)
        except GoneError as error:
            # What it has sent before its end is still to be read; that tells us of the end too.
            raise Unreachable("the keeper ends") from error
        except QueueFullError as error:
            raise Unreachable("the keeper does not take requests") from error
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                what = _SUBJECTS.get(message["call"], message["call"])
                raise BadValue(what, "...", f"longer than {MESSAGE_BOUND} bytes, with what is needed to pass it on",
                               remedy="write it to a file or pass it on standard input") from error
            raise SystemFailure(f"the keeper cannot be asked: {error.strerror}", errno=error.errno) from error

    def _write(self) -> None:
        if self._socket is None or self._outgoing is None:
            return
        try:
            if self._outgoing.flush():
                asyncio.get_running_loop().remove_writer(self._socket)
        except GoneError:
            asyncio.get_running_loop().remove_writer(self._socket)  # reading tells of the end
