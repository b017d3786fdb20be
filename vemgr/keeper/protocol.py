# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages between daemon, keeper and set-up processes: one JSON object a datagram, descriptors beside it."""

from __future__ import annotations

import array
import contextlib
import errno
import json
import os
import re
import socket
from collections.abc import Sequence
from typing import Any

# A keeper outlives updates of the daemon. The daemon learns this number with the list of children.
VERSION = 7

MESSAGE_BOUND = 200_000  # bytes of an encoded message; what both ends have room for, see `make_room`
_LONGEST_REASON = 1000  # characters
# Not in Python's socket module: SO_SNDBUF beyond net.core.wmem_max, for the privileged.
_SO_SNDBUFFORCE = 32
_FD = array.array("i")
_encoded = json.JSONEncoder(ensure_ascii=False).encode
# One for all messages: a new one of this size for each takes seven times as long as to receive it.
_buffer = memoryview(bytearray(MESSAGE_BOUND))
_ID = re.compile(rb'\{"id": (\d{1,18})[,}]')


def encode(message: dict[str, Any]) -> bytes:
    """Raises `OSError` EMSGSIZE for what would not fit into one datagram.

    Text goes as UTF-8; only control characters need an escape, of six bytes. Surrogates, Python's way to write bytes
    that are no UTF-8, pass.
    """
    data = _encoded(message).encode("utf-8", "surrogatepass")
    if len(data) > MESSAGE_BOUND:
        raise OSError(errno.EMSGSIZE, f"a message of {len(data)} bytes, {MESSAGE_BOUND} are allowed")
    return data


def make_room(channel: socket.socket) -> None:
    """A buffer that takes a message of the greatest length, whatever this host has made the default."""
    for option in (_SO_SNDBUFFORCE, socket.SO_SNDBUF):
        with contextlib.suppress(OSError):
            channel.setsockopt(socket.SOL_SOCKET, option, MESSAGE_BOUND)  # the kernel doubles it
            return


def channel_pair() -> tuple[socket.socket, socket.socket]:
    """The keeper's end, which does not block, and the end of a process that it is about to fork."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        make_room(end)
    ours.setblocking(False)
    return ours, theirs


def send(channel: socket.socket, message: dict[str, Any], fds: Sequence[int] | None = None) -> None:
    """For an end that may block, and for the first message on one that does not; else there is `Outgoing`."""
    socket.send_fds(channel, [encode(message)], list(fds or ()))


def receive(channel: socket.socket, most_fds: int = 8) -> tuple[dict[str, Any] | None, list[int]]:
    """One message and its descriptors; (None, []) at the end of the conversation.

    What could not be received whole comes without descriptors and with an errno under "damaged", and with as much of
    it as can be told, so that who has asked for something can be answered: EMFILE when we have no descriptor free
    (the kernel drops them), EMSGSIZE when it is longer than ours may be, EBADMSG when it is no JSON object.
    """
    size, ancillary, flags, _ = channel.recvmsg_into([_buffer], socket.CMSG_LEN(most_fds * _FD.itemsize),
                                                     socket.MSG_CMSG_CLOEXEC)
    fds = [fd for level, kind, data in ancillary if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
           for fd in array.array("i", data[:len(data) - len(data) % _FD.itemsize])]
    if not size:
        _close(fds)
        return None, []
    data = bytes(_buffer[:size])
    damage = errno.EMSGSIZE if flags & socket.MSG_TRUNC else errno.EMFILE if flags & socket.MSG_CTRUNC else 0
    message = _decode(data)
    if message is None:
        found = _ID.match(data)
        message = {"id": int(found[1]) if found else 0}
        damage = damage or errno.EBADMSG
    if damage:
        _close(fds)
        return {**message, "damaged": damage}, []
    return message, fds


def check_complete(message: dict[str, Any]) -> None:
    """Raise the `OSError` that has damaged a message, if one has."""
    code = message.get("damaged")
    if code:
        raise OSError(code, os.strerror(code))


def failure(operation: str, error: Exception) -> dict[str, Any]:
    """What a `failed` message tells of `error`."""
    if not isinstance(error, OSError):
        error = OSError(0, f"{type(error).__name__}: {error}"[:_LONGEST_REASON])
    path = error.filename or ""
    return {"operation": operation, "errno": error.errno or 0, "error": error.strerror or str(error),
            "path": os.fsdecode(path) if isinstance(path, bytes) else str(path)}


def _decode(data: bytes) -> dict[str, Any] | None:
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
