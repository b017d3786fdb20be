# SPDX-License-Identifier: GPL-2.0-or-later
"""What a service owes systemd: readiness and handed-over sockets, sd_notify(3) and sd_listen_fds(3)."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> None:
    """Tell the service manager `state`, e.g. "READY=1"; does nothing where there is none."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
        connection.connect(address)
        connection.sendall(state.encode())


def notify_ready() -> None:
    notify("READY=1")


def listening_socket() -> socket.socket | None:
    """The socket that systemd opened for us (socket activation), if it did."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    os.set_inheritable(3, False)
    return socket.socket(fileno=3)
