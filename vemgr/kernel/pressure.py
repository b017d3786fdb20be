# SPDX-License-Identifier: GPL-2.0-or-later
"""Pressure stall information of a cgroup (Documentation/accounting/psi.rst): how long its tasks have waited for a
resource, and being woken when they do."""

from __future__ import annotations

import contextlib
import os
import select

# Without CAP_SYS_RESOURCE a window has to be a multiple of two seconds.
_WINDOW = 2_000_000  # microseconds
_STALL = 100_000


class Trigger:
    """Becomes readable when some task of the cgroup has stalled for 100 ms within two seconds. `path`: such as
    .../memory.pressure. Raises `OSError`: there is no such file, or the kernel has no triggers."""

    def __init__(self, path: str) -> None:
        with contextlib.ExitStack() as undo:
            fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            undo.callback(os.close, fd)
            os.write(fd, f"some {_STALL} {_WINDOW}\0".encode())
            # The file is readable all the time, and an event loop asks for nothing else: what it gets is an epoll
            # instance that waits for the event alone.
            self._epoll = undo.enter_context(select.epoll())
            self._epoll.register(fd, select.EPOLLPRI)
            self._undo = undo.pop_all()

    def fileno(self) -> int:
        return self._epoll.fileno()

    def take(self) -> bool:
        """Take the event, for the next to be noticed; whether there can be any more: the cgroup may have gone."""
        # The look of the event loop has taken EPOLLPRI already; this one tells the kernel that it may wake us again.
        return not any(event & select.EPOLLERR for _, event in self._epoll.poll(0))

    def close(self) -> None:
        self._undo.close()


def stalled(text: str) -> int:
    """Microseconds for which some task has stalled so far, from the text of a .pressure file."""
    return int(text[text.index("total=") + 6:].split(None, 1)[0])


def average(text: str) -> float:
    """Per cent of the last ten seconds in which some task has stalled."""
    return float(text[text.index("avg10=") + 6:].split(None, 1)[0])
