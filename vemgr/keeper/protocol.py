# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages between daemon, keeper and set-up processes: one JSON object a datagram, descriptors beside it."""

from __future__ import annotations

import json
import os
import socket
from typing import Any

MESSAGE_BOUND = 200_000  # bytes; a SOCK_SEQPACKET datagram fits the default socket buffer (212,992)


def send(channel: socket.socket, message: dict[str, Any], fds: list[int] | None = None) -> None:
    socket.send_fds(channel, [json.dumps(message).encode()], fds or [])


def receive(channel: socket.socket, most_fds: int = 8) -> tuple[dict[str, Any] | None, list[int]]:
    """One message and its descriptors; (None, []) at the end of the conversation.

    A process that has no descriptor free gets fewer than were sent, which the kernel tells by MSG_CTRUNC: then it
    gets none, and the message says so under "truncated".
    """
    data, fds, flags, _ = socket.recv_fds(channel, MESSAGE_BOUND, most_fds, socket.MSG_CMSG_CLOEXEC)
    if flags & socket.MSG_CTRUNC and data:
        for fd in fds:
            os.close(fd)
        return {**json.loads(data), "truncated": True}, []
    return (json.loads(data) if data else None), fds
