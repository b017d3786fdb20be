# SPDX-License-Identifier: GPL-2.0-or-later
"""The keeper's children: how they are named for good, signalled and reaped.

A process is reaped only here and only through its pidfd. Until then its pid cannot be given to another, so a birth's
message can name a process that has already ended, and no status has to be kept for a pid that nobody knows.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

from vemgr.keeper.loop import Loop
from vemgr.kernel.process import start_time

_TRACED = 0.25  # seconds between two looks at who has ended and is traced
_MOST_STRAYS = 100


class Process:
    """A child of the keeper. `status`: as waitpid gives it, None while it runs. Owns `pidfd` until it is reaped."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.status: int | None = None

    def kill(self) -> None:
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def abandon(self) -> None:
        """Kill what cannot be watched; it is reaped with those that nobody knows of."""
        self.kill()
        os.close(self.pidfd)
        self.pidfd = -1


class Child(Process):
    """An init or a command. `settled`: its birth has succeeded, and the daemon knows of it. `ready`: whether it is up,
    as far as it can say that. Has a pidfd of its own.

    Raises `OSError`."""

    def __init__(self, kind: str, ve: str, pid: int, pidfd: int) -> None:
        self.started = start_time(pid)
        super().__init__(pid, os.dup(pidfd))
        self.kind = kind
        self.ve = ve
        self.status_fd = -1
        self.settled = False
        self.ready = True

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind, "ve": self.ve, "pid": self.pid, "start_time": self.started, "status": self.status,
                "ready": self.ready}

    def close_status(self) -> None:
        if self.status_fd >= 0:
            os.close(self.status_fd)
            self.status_fd = -1


class Children:
    """`on_end` is called for every settled child that has ended."""

    def __init__(self, loop: Loop, on_end: Callable[[Child], None]) -> None:
        self._loop = loop
        self._on_end = on_end
        # By pid and start time: an ended child, whose pid may have another by now, stays until the daemon took note.
        self._children: dict[tuple[int, int], Child] = {}
        self._watched: dict[int, tuple[Process, Callable[[], None]]] = {}
        self._traced: set[Process] = set()  # of these; they have ended, but belong to who traces them, until he waits

    def __iter__(self) -> Iterator[Child]:
        return iter(self._children.values())

    def watch(self, process: Process, on_end: Callable[[], None]) -> None:
        """Reap `process` when it ends, then call `on_end`. Raises `OSError`."""
        self._loop.watch(process.pidfd, lambda: self._reap(process))
        self._watched[process.pid] = process, on_end

    def _reap(self, process: Process) -> None:
        if process.pidfd < 0:
            return
        try:
            info = os.waitid(os.P_PIDFD, process.pidfd, os.WEXITED | os.WNOHANG)
            if info is None:
                self._look_again(process)
                return
            process.status = _wait_status(info.si_code, info.si_status)
        except ChildProcessError:
            process.status = 0  # not ours: nobody else reaps, so a message was wrong
        if process not in self._traced:
            self._loop.unwatch(process.pidfd)
        self._traced.discard(process)
        os.close(process.pidfd)
        process.pidfd = -1
        self._watched.pop(process.pid)[1]()

    def _look_again(self, process: Process) -> None:
        """A VE's root may trace a command that has entered, and never wait for its end (ptrace(2)): the pidfd says for
        good that there is one, and we would do nothing else but find that it is not ours yet."""
        if process not in self._traced:
            self._loop.unwatch(process.pidfd)
            self._traced.add(process)
        self._loop.later(_TRACED, lambda: self._reap(process))

    def reap_strays(self) -> bool:
        """Reap what belongs to nobody: a child of a set-up that died before it could name it, and what a command in a
        VE makes with CLONE_PARENT. Only while no birth is in progress, or a message that is under way may name it.

        At most `_MOST_STRAYS` at once, as a VE may make them faster than we reap; returns whether there may be more."""
        with contextlib.suppress(ChildProcessError):
            for _ in range(_MOST_STRAYS):
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if info is None:
                    return False
                known = self._watched.get(info.si_pid)
                if known is not None:
                    self._reap(known[0])
                else:
                    os.waitpid(info.si_pid, os.WNOHANG)
            return True
        return False

    def adopt(self, kind: str, ve: str, pid: int, pidfd: int) -> Child:
        """Take in a process that a birth has named; `pidfd` stays the caller's. Raises `OSError`; then a child of ours
        has been killed, since it would run and nobody would know."""
        if pid in self._watched:
            raise OSError(17, "the process is known already", str(pid))
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # ECHILD unless it is ours
        try:
            child = self._watched_child(kind, ve, pid, pidfd)
        except OSError:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            raise
        self._children[pid, child.started] = child
        return child

    def _watched_child(self, kind: str, ve: str, pid: int, pidfd: int) -> Child:
        child = Child(kind, ve, pid, pidfd)
        try:
            self.watch(child, lambda: self._ended(child))
        except OSError:
            os.close(child.pidfd)
            raise
        return child

    def _ended(self, child: Child) -> None:
        if child.settled:
            self._on_end(child)

    def settle(self, child: Child) -> None:
        """Its birth is over, and well. It may have ended meanwhile."""
        child.settled = True
        if child.status is not None:
            self._on_end(child)

    def discard(self, child: Child) -> None:
        """Its birth has come to nothing: kill and forget it. It still is reaped."""
        child.kill()
        child.close_status()
        self._children.pop((child.pid, child.started), None)

    def find(self, pid: int, started: int | None) -> Child | None:
        """By start time too, where the daemon tells it."""
        if started:
            return self._children.get((pid, started))
        return next((child for child in self if child.pid == pid), None)

    def init_of(self, ve: str) -> Child:
        """Raises `ProcessLookupError`."""
        for child in self:
            if child.ve == ve and child.kind == "init" and child.settled and child.status is None:
                return child
        raise ProcessLookupError(3, "the VE has no running init", ve)

    def take(self, child: Child) -> bool:
        """Forget an ended child; whether it was one."""
        return child.status is not None and self._children.pop((child.pid, child.started), None) is not None

    def any_alive(self) -> bool:
        return any(child.status is None for child in self)


def _wait_status(code: int, status: int) -> int:
    """The result of waitid as the wait status that waitpid gives and the API has."""
    if code == os.CLD_EXITED:
        return status << 8
    return status | (0x80 if code == os.CLD_DUMPED else 0)
