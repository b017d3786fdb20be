# SPDX-License-Identifier: GPL-2.0-or-later
"""Input and output of a command whose process is not a child of ours."""

from __future__ import annotations

import os
import selectors
import time
from types import TracebackType

_CHUNK = 65536


class Pipes:
    """Three pipes. `theirs`: the command's ends; `exchange` closes them here."""

    def __init__(self) -> None:
        (stdin, self._into), (self._out, stdout), (self._err, stderr) = (os.pipe2(os.O_CLOEXEC) for _ in range(3))
        self.theirs = [stdin, stdout, stderr]
        self._open = {*self.theirs, self._into, self._out, self._err}

    def __enter__(self) -> Pipes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._close(*self._open)

    def _close(self, *fds: int) -> None:
        for fd in fds:
            self._open.discard(fd)
            os.close(fd)

    def exchange(self, status: int, data: bytes, deadline: float) -> tuple[bytes, bytes]:
        """Feed the command, read its two outputs to their ends. Raises `TimeoutError` at `deadline` (monotonic).

        A child that goes on with the outputs in hand keeps us no longer than the command itself: `status`, which is not
        read here, becomes readable when that ends.
        """
        self._close(*self.theirs)
        collected = {self._out: bytearray(), self._err: bytearray()}
        with selectors.DefaultSelector() as selector:
            for fd in (self._out, self._err, status):
                os.set_blocking(fd, False)
                selector.register(fd, selectors.EVENT_READ)
            os.set_blocking(self._into, False)
            selector.register(self._into, selectors.EVENT_WRITE)
            ended = False
            while selector.get_map():
                ready = selector.select(0 if ended else max(0.0, deadline - time.monotonic()))
                if not ready:
                    if ended:
                        break
                    raise TimeoutError
                for fd in (key.fd for key, _ in ready):
                    if fd == status:
                        ended = True
                    elif fd == self._into:
                        data = self._feed(data)
                    elif chunk := os.read(fd, _CHUNK):
                        collected[fd] += chunk
                        continue
                    if fd != self._into or not data:
                        selector.unregister(fd)
                        if fd == self._into:
                            self._close(fd)
        return bytes(collected[self._out]), bytes(collected[self._err])

    def _feed(self, data: bytes) -> bytes:
        """What is left of it; nothing when nobody reads any more."""
        try:
            return data[os.write(self._into, data[:_CHUNK]):] if data else b""
        except BrokenPipeError:
            return b""
