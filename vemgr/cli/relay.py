# SPDX-License-Identifier: GPL-2.0-or-later
"""Copying between the caller's terminal and a command in a VE: one loop, for pipes and for a terminal of the VE.

Nothing blocks in here, or one direction would wait for the other: a terminal takes no more input while nobody reads
its echo.
"""

from __future__ import annotations

import math
import os
import select
import termios
from collections.abc import Callable, Sequence

_CHUNK = 65536
_ROOM = 4096  # as much as a pipe that polls writable takes without blocking; the caller's descriptors may block
_GRACE = 100  # milliseconds in which what an ended command wrote has arrived
_MOST_AFTERWARDS = 1 << 20  # bytes that pipe or terminal can hold at that time; more is somebody else's
_TYPING_AGAIN = 200  # milliseconds between two looks whether the terminal is ours to read again
_END_OF_INPUT = b"\x04"  # Ctrl-D


class Flow:
    """Bytes on their way from `source` to `target`; one read of them is held at most, so neither side gets ahead.

    `typed`: the source is a terminal that others may be reading.
    `says_end`: the target is a terminal, which is told the end of input by a key.
    `at_end`: called once when no more will come out of it; `at_loss` before it if the target takes no more.
    """

    def __init__(self, source: int, target: int, *, typed: bool = False, says_end: bool = False,
                 at_end: Callable[[], object] | None = None, at_loss: Callable[[], object] | None = None) -> None:
        self.over = False
        self.left = math.inf  # bytes that may still be read
        self.held = b""
        self._source, self._target = source, target
        self._typed, self._says_end = typed, says_end
        self._at_end, self._at_loss = at_end, at_loss
        self._ended = False  # the source has
        self._last = b"\n"

    def wish(self) -> tuple[int, int] | None:
        """The descriptor and event to wait for; None while the terminal is not ours to read."""
        if self.held:
            return self._target, select.POLLOUT
        if self._typed and not _is_ours(self._source):
            return None
        return self._source, select.POLLIN

    def go_on(self, event: int) -> None:
        """Do what was wished for, now that `event` has come."""
        if not self.held:
            if not self._typed or _is_ours(self._source):  # it may have become another's while we waited
                self._read()
        elif event & select.POLLOUT:
            self._write()
        else:
            self._lose()  # nobody reads at the other end

    def finish(self) -> None:
        if not self.over:
            self.over, self.held = True, b""
            if self._at_end:
                self._at_end()

    def _read(self) -> None:
        try:
            self.held = os.read(self._source, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self.held = b""  # EIO: the last process has closed the terminal
        self.left -= len(self.held)
        self._ended = not self.held or self.left <= 0
        if self.held:
            self._last = self.held[-1:]
        elif self._says_end:
            # In the midst of a line the key hands over the line, and only the second one means the end.
            self.held = _END_OF_INPUT if self._last == b"\n" else _END_OF_INPUT * 2
        else:
            self.finish()

    def _write(self) -> None:
        try:
            self.held = self.held[os.write(self._target, self.held[:_ROOM]):]
        except BlockingIOError:
            return
        except OSError:
            self._lose()
            return
        if self._ended and not self.held:
            self.finish()

    def _lose(self) -> None:
        if self._at_loss:
            self._at_loss()
        self.finish()


def _is_ours(fd: int) -> bool:
    """Whether what is typed is meant for us: not while a shell has us in the background, nor while somebody reads key
    by key, as a pager behind us in a pipeline does."""
    try:
        return bool(termios.tcgetattr(fd)[3] & termios.ICANON) and os.tcgetpgrp(fd) == os.getpgrp()
    except (OSError, termios.error):
        return True  # not our controlling terminal: there is no foreground; or gone: reading will tell


def relay(inputs: Sequence[Flow], outputs: Sequence[Flow], status_fd: int, ended: Callable[[], None]) -> None:
    """Copy until `status_fd` tells that the command has ended, and bring out what is there by then. `ended` is called
    before that, as it may take long: a terminal can be stopped.

    Processes that the command has left behind may hold pipe or terminal for ever; they are not waited for.
    """
    while status_fd not in _turn([*inputs, *outputs], None, status_fd):
        pass
    if outputs:
        ended()
    for flow in inputs:
        flow.finish()
    for flow in outputs:
        flow.left = _MOST_AFTERWARDS
    while not all(flow.over for flow in outputs):
        # What we hold is owed, however long a terminal has been stopped or a pager is being read.
        if not _turn(outputs, None if any(flow.held for flow in outputs) else _GRACE):
            break
    for flow in outputs:
        flow.finish()


def _turn(flows: Sequence[Flow], patience: int | None, *others: int) -> set[int]:
    """Wait until something can be done, and do it. Returns the descriptors that were ready."""
    wishes = [(flow, flow.wish()) for flow in flows if not flow.over]
    events = dict.fromkeys(others, select.POLLIN)
    for _, wish in wishes:
        if wish is None:
            patience = _TYPING_AGAIN
        else:
            events[wish[0]] = events.get(wish[0], 0) | wish[1]
    poll = select.poll()
    for fd, mask in events.items():
        poll.register(fd, mask)
    ready = dict(poll.poll(patience))
    trouble = select.POLLERR | select.POLLHUP | select.POLLNVAL
    for flow, wish in wishes:
        if wish is not None and not flow.over and (event := ready.get(wish[0], 0) & (wish[1] | trouble)):
            flow.go_on(event)
    return set(ready)
