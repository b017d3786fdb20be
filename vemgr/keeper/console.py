# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VE's init printed last: the reader of its console, kept by the keeper."""

from __future__ import annotations

import os

_KEPT = 8192  # bytes per VE: the last screenful or two, enough to see why an init failed


class ConsoleTail:
    """Drains the master of a console, so that a VE can never block on a full one, and keeps the tail of it.

    The slave is held open too: without any, reads of the master fail with EIO and polling it would spin.
    """

    def __init__(self, master: int, slave: int) -> None:
        self.master = master
        self._slave = slave
        self._text = bytearray()
        os.set_blocking(master, False)

    def drain(self) -> None:
        """Read what is there, bounded, so that one chatty VE does not hold up the keeper."""
        try:
            self._text += os.read(self.master, 65536)
        except OSError:
            return  # EAGAIN, or a terminal that the VE has hung up
        del self._text[:-_KEPT]

    def text(self) -> str:
        return self._text.decode(errors="replace").replace("\r\n", "\n")

    def close(self) -> None:
        os.close(self.master)
        os.close(self._slave)
