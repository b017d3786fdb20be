# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VE's init printed last: the reader of its console, kept by the keeper."""

from __future__ import annotations

import os

_KEPT = 8192  # bytes per VE: the last screenful or two, enough to see why an init failed


class ConsoleTail:
    """Drains the master of a console, so that a VE can never block on a full one, and keeps the tail of it."""

    def __init__(self, master: int) -> None:
        self.fd = master
        self.closed = False
        self._text = bytearray()
        os.set_blocking(master, False)

    def drain(self) -> bool:
        """Read what is there, bounded, so that one chatty VE does not hold up the keeper; False at the end."""
        try:
            data = os.read(self.fd, 65536)
        except BlockingIOError:
            return True
        except OSError:
            # EIO: nobody has the terminal open. It may be opened again, but then polling would spin until it is.
            return False
        self._text += data
        del self._text[:-_KEPT]
        return bool(data)

    def text(self) -> str:
        return self._text.decode(errors="replace").replace("\r\n", "\n")

    def close(self) -> None:
        if not self.closed:
            os.close(self.fd)
            self.closed = True
