# SPDX-License-Identifier: GPL-2.0-or-later
"""A terminal that shows pictures, one after the other, and is as it was before when that ends, however it ends."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import termios
import tty
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any

# The alternate screen of xterm, which others know as well, and the cursor.
_ENTER, _LEAVE = b"\x1b[?1049h\x1b[?25l\x1b[H\x1b[2J", b"\x1b[0m\x1b[?25h\x1b[?1049l"
_TOP, _TO_LINE_END, _TO_END = "\x1b[H", "\x1b[K", "\x1b[J"
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class EndedBySignal(BaseException):
    """As KeyboardInterrupt, no `except Exception` is in its way."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Screen:
    """Standard input and output, which must be a terminal. A signal that would end us is raised as `EndedBySignal`
    wherever we are, also while we wait for the daemon."""

    def __init__(self) -> None:
        self._before: list[Any] = []
        self._handlers: dict[int, Any] = {}
        self._wakeup, self._woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def __enter__(self) -> Screen:
        self._before = termios.tcgetattr(0)
        for signum in _ENDING:
            self._handlers[signum] = signal.signal(signum, _end)
        self._handlers[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._stop)
        self._handlers[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, lambda *_: self._wake())
        try:
            self._take()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for signum in self._handlers:
            signal.signal(signum, signal.SIG_IGN)  # a second one must not keep us from this
        self._give_back()
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        os.close(self._wakeup)
        os.close(self._woken)

    def _take(self) -> None:
        tty.setcbreak(0, termios.TCSADRAIN)
        _write(_ENTER)

    def _give_back(self) -> None:
        with contextlib.suppress(OSError, termios.error):  # it may have been closed
            _write(_LEAVE)
            termios.tcsetattr(0, termios.TCSADRAIN, self._before)

    def _stop(self, _signum: int, _frame: FrameType | None) -> None:
        """Ctrl-Z: the shell gets its terminal as it was, and we take it again when we go on."""
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._before = termios.tcgetattr(0)
        self._take()
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._woken, b"x")

    def size(self) -> tuple[int, int]:
        """Columns and lines."""
        found = os.get_terminal_size(1)
        return found.columns or 80, found.lines or 24

    def show(self, lines: Sequence[str]) -> None:
        _, height = self.size()
        text = "\r\n".join(f"{line}{_TO_LINE_END}" for line in lines[:height])
        _write((_TOP + text + _TO_END).encode(errors="replace"))

    def key(self, seconds: float) -> str:
        """A key that was typed, or "" after so many seconds or when the picture is to be drawn anew. A terminal that
        has hung up is a "q"."""
        ready, _, _ = select.select([0, self._wakeup], [], [], max(0.0, seconds))
        if self._wakeup in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wakeup, 4096)
        if 0 in ready:
            try:
                return os.read(0, 1).decode("ascii", "replace") or "q"
            except OSError:
                return "q"
        return ""


def _end(signum: int, _frame: FrameType | None) -> None:
    raise EndedBySignal(signum)


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data):]
