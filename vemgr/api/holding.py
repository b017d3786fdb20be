# SPDX-License-Identifier: GPL-2.0-or-later
"""What a client of a long call (Push, Clone, Export, ...) gives the daemon to know it by."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def held() -> Iterator[int]:
    """A descriptor for the daemon, which gives up what it does for us when we end, and asks at last whether we still
    want it."""
    ours, theirs = socket.socketpair()

    def confirm() -> None:
        with contextlib.suppress(OSError):
            if ours.recv(1):
                ours.send(b"y")

    with ours, theirs:
        thread = threading.Thread(target=confirm, daemon=True)
        thread.start()
        try:
            yield theirs.fileno()
        finally:
            ours.shutdown(socket.SHUT_RDWR)  # wakes the thread
            thread.join()
