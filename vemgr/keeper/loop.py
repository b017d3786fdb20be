# SPDX-License-Identifier: GPL-2.0-or-later
"""The keeper's event loop: descriptors and timers. (asyncio would cost the keeper, and each fork of it, 10 MB.)"""

from __future__ import annotations

import heapq
import itertools
import logging
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger("vemgr.keeper")

Action = Callable[[], None]


@dataclass
class _Watch:
    readable: Action
    writable: Action | None = None


@dataclass
class Timer:
    """Runs its action once, unless cancelled before."""

    action: Action | None

    def cancel(self) -> None:
        self.action = None


class Loop:
    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()
        self._running = True

    def watch(self, thing: socket.socket | int, readable: Action) -> None:
        self._selector.register(thing, selectors.EVENT_READ, _Watch(readable))

    def on_writable(self, thing: socket.socket | int, action: Action | None) -> None:
        """From now on, or with None no longer, call `action` when `thing`, which is watched, can be written to."""
        watch = self._selector.get_key(thing).data
        watch.writable = action
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if action else 0)
        self._selector.modify(thing, events, watch)

    def unwatch(self, thing: socket.socket | int) -> None:
        """Before it is closed: a process just forked may hold it too, and the kernel would go on reporting it."""
        self._selector.unregister(thing)

    def later(self, seconds: float, action: Action) -> Timer:
        timer = Timer(action)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._numbers), timer))
        return timer

    def stop(self) -> None:
        self._running = False

    def run(self) -> None:
        while self._running:
            self.step()

    def close(self) -> None:
        self._selector.close()

    def step(self, longest: float | None = None) -> None:
        """Wait for something, at most `longest` seconds, and do what has become due."""
        for key, events in self._selector.select(self._patience(longest)):
            # An action before this one may have ended the watch, or begun another on the same number.
            watch = key.data
            if events & selectors.EVENT_READ and self._is_current(key):
                _call(watch.readable)
            if events & selectors.EVENT_WRITE and watch.writable is not None and self._is_current(key):
                _call(watch.writable)
        while self._timers and self._timers[0][0] <= time.monotonic():
            timer = heapq.heappop(self._timers)[2]
            if timer.action is not None:
                _call(timer.action)

    def _is_current(self, key: selectors.SelectorKey) -> bool:
        current = self._selector.get_map().get(key.fd)
        return current is not None and current.data is key.data

    def _patience(self, longest: float | None) -> float | None:
        while self._timers and self._timers[0][2].action is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return longest
        due = max(0.0, self._timers[0][0] - time.monotonic())
        return due if longest is None else min(due, longest)


def _call(action: Action) -> None:
    try:
        action()
    except Exception:  # a defect here must not end every VE
        log.exception("unexpected failure")
