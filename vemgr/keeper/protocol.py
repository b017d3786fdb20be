# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages between daemon, keeper and set-up processes: one JSON object a datagram, descriptors beside it."""

from __future__ import annotations

import json
import socket
from typing import Any

MESSAGE_BOUND = 200_000  # bytes; a SOCK_SEQPACKET datagram fits the default socket buffer (212,992)


def send(channel: socket.socket, message: dict[str, Any], fds: list[int] | None = None) -> None:
    socket.send_fds(channel, [json.dumps(message).encode()], fds or [])


def receive(channel: socket.socket, most_fds: int = 8) -> tuple[dict[str, Any] | None, list[int]]:
    """One message and its descriptors; (None, []) at the end of the conversation."""
    data, fds, _, _ = socket.recv_fds(channel, MESSAGE_BOUND, most_fds, socket.MSG_CMSG_CLOEXEC)
    return (json.loads(data) if data else None), fds
