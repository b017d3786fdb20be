# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VE's init printed last: the reader of its console, kept by the keeper."""

from __future__ import annotations

import os

from vemgr.keeper.loop import Loop, Timer

_KEPT = 8192  # bytes per VE: the last screenful or two, enough to see why an init failed
# What a VE prints is read on the keeper's time, which no limit of the VE counts. So each console is read no more often
# and no more at once than this: whoever prints more waits in write(2), as on any terminal. 1.3 MB/s is a lot of boot
# messages, and costs the keeper under 1 % of a CPU.
_PAUSE = 0.05  # seconds
_BUDGET = 65536  # bytes


class ConsoleTail:
    """Drains the master of a console, so that a VE never stays blocked on a full one, and keeps the tail of it.

    The slave is held open too: without any, reads of the master fail with EIO and polling it would spin.
    """

    def __init__(self, loop: Loop, master: int, slave: int) -> None:
        self._loop = loop
        self._master = master
        self._slave = slave
        self._text = bytearray()
        self._timer: Timer | None = None
        os.set_blocking(master, False)
        loop.watch(master, self._on_readable)

    def _on_readable(self) -> None:
        self._drain()
        # Reading after each few bytes would let a VE keep us busy with single characters.
        self._loop.unwatch(self._master)
        self._timer = self._loop.later(_PAUSE, self._resume)

    def _resume(self) -> None:
        self._timer = None
        self._loop.watch(self._master, self._on_readable)

    def _drain(self) -> None:
        left = _BUDGET
        while left > 0:
            try:
                data = os.read(self._master, left)
            except OSError:
                break  # EAGAIN, or a terminal that the VE has hung up
            if not data:
                break
            left -= len(data)
            self._text += data
        del self._text[:-_KEPT]

    def text(self) -> str:
        self._drain()
        return self._text.decode(errors="replace").replace("\r\n", "\n")

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        else:
            self._loop.unwatch(self._master)
        os.close(self._master)
        os.close(self._slave)
