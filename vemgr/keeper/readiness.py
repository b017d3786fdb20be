# SPDX-License-Identifier: GPL-2.0-or-later
"""What inits say of themselves (sd_notify(3)): that they are up.

The sockets are in the VEs' trees, where anybody inside may write to them: only what process 1 says counts, and who
talks too much is not listened to any more.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable

from vemgr.keeper.children import Child
from vemgr.keeper.loop import Loop

_READY = b"READY=1"
_LONGEST = 4096  # bytes of a message that are read; it is as long as its sender likes
_MOST = 2000  # messages before the one that counts; systemd sends one for each unit that is slow
_CREDENTIALS = struct.Struct("=iII")  # struct ucred


class Readiness:
    """`on_ready` is called once for each init that says so."""

    def __init__(self, loop: Loop, on_ready: Callable[[Child], None]) -> None:
        self._loop = loop
        self._on_ready = on_ready
        self._sockets: dict[Child, tuple[socket.socket, list[int]]] = {}

    def listen(self, child: Child, fd: int) -> None:
        """`child` is an init that is not up yet; takes over `fd`. Raises `OSError`."""
        notify = socket.socket(fileno=fd)
        try:
            self._loop.watch(notify, lambda: self._read(child))
        except OSError:
            notify.close()
            raise
        child.ready = False
        self._sockets[child] = notify, [0]

    def end(self, child: Child) -> None:
        """`child` has ended, or need not be listened to any more."""
        found = self._sockets.pop(child, None)
        if found is not None:
            self._loop.unwatch(found[0])
            found[0].close()

    def _read(self, child: Child) -> None:
        notify, count = self._sockets[child]
        try:
            content, ancillary, _, _ = notify.recvmsg(_LONGEST, socket.CMSG_SPACE(_CREDENTIALS.size) + 1024,
                                                      socket.MSG_CMSG_CLOEXEC)
        except OSError:
            return
        sender = 0
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and len(data) >= _CREDENTIALS.size:
                sender = _CREDENTIALS.unpack_from(data)[0]
            elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                _close(data)
        count[0] += 1
        if sender == child.pid and _READY in content.split(b"\n"):
            self.end(child)
            child.ready = True
            self._on_ready(child)
        elif count[0] >= _MOST:
            self.end(child)


def _close(data: bytes) -> None:
    """Descriptors come along if the sender likes: systemd's, or such as to make us run out of them."""
    for (fd,) in struct.iter_unpack("=i", data[:len(data) - len(data) % 4]):
        os.close(fd)
