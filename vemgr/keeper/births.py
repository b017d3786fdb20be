# SPDX-License-Identifier: GPL-2.0-or-later
"""Starts and execs in progress: the keeper's conversation with the process that carries one out.

Each has a bounded time. A VE's root can hold up a command on its way in (SIGSTOP, a frozen cgroup), so an exec that has
not begun after `EXEC_BOUND` seconds is killed and has failed. A start may take as long as the daemon needs for its
network; the part before and the part after, which are ours, have `SETUP_BOUND` seconds each.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
from collections.abc import Callable, Sequence
from typing import Any

from vemgr.keeper.children import Child, Children, Process
from vemgr.keeper.connection import Connection
from vemgr.keeper.loop import Loop, Timer
from vemgr.keeper.messages import BATCH_BOUND
from vemgr.keeper.protocol import check_complete, failure, receive
from vemgr.keeper.readiness import Readiness
from vemgr.keeper.spawn import BirthProgram

EXEC_BOUND = 30.0  # seconds
SETUP_BOUND = 60.0
_TASKS = {"cloned": "adopt its init", "entered": "adopt the command", "console": "keep its console",
          "notify": "listen to its init"}  # by event
_ENDED = (errno.EPIPE, errno.ECONNRESET)
_REST = 0.01  # seconds between two lots of strays
_END_BOUND = 5.0  # for the end of a killed process to come; one in an uninterruptible wait may take for ever


class Birth:
    """`kind`: "init", or a command's. `asker` gets the answers, by the number `id` of its request."""

    def __init__(self, asker: Connection, id_: int, kind: str, ve: str, helper: Process,
                 channel: socket.socket, program: BirthProgram | None = None) -> None:
        self.asker = asker
        self.id = id_
        self.kind = kind
        self.ve = ve
        self.helper = helper
        self.channel = channel
        self.program = program
        self.status_fd = -1
        self.child: Child | None = None
        self.failure: dict[str, Any] | None = None
        self.started = False
        self.ending = False  # the conversation is over, the status of `helper` is still to come
        self.timer: Timer | None = None

    @property
    def well(self) -> bool:
        """A command needs no word that it has started: exec closes the conversation."""
        return self.failure is None and self.child is not None and (self.started or self.kind != "init")

    def tell(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        self.asker.tell({**message, "id": self.id}, fds)


class Births:
    """`keep_console` takes over the descriptors of a VE's console, `end_console` gets the wait status of a failure;
    `readiness` listens to inits that say when they are up."""

    def __init__(self, loop: Loop, children: Children, keep_console: Callable[[str, int, int], None],
                 end_console: Callable[[str, int], None], readiness: Readiness) -> None:
        self._loop = loop
        self._children = children
        self._keep_console = keep_console
        self._end_console = end_console
        self._readiness = readiness
        # An id is unique within a connection only: each daemon begins to count at 1.
        self._births: dict[tuple[Connection, int], Birth] = {}
        self._resting = False

    def __len__(self) -> int:
        return len(self._births)

    def begin(self, birth: Birth) -> None:
        """Raises `OSError` when it cannot be watched; then it is over, and killed."""
        try:
            self._loop.watch(birth.channel, lambda: self._read(birth))
            try:
                self._children.watch(birth.helper, lambda: self._helper_ended(birth))
            except OSError:
                self._loop.unwatch(birth.channel)
                raise
        except OSError:
            birth.helper.abandon()
            birth.channel.close()
            if birth.status_fd >= 0:
                os.close(birth.status_fd)
            raise
        self._births[birth.asker, birth.id] = birth
        self._bound(birth, SETUP_BOUND if birth.kind == "init" else EXEC_BOUND)

    def give_up(self, asker: Connection) -> None:
        """`asker` is gone: its starts come to nothing, or are over by now, so that the next daemon finds each VE either
        running or not. Commands go on."""
        for birth in list(self._births.values()):
            if birth.asker is asker and birth.kind == "init":
                self._finish(birth)

    def abort(self, asker: Connection, id_: int) -> None:
        birth = self._births.get((asker, id_))
        if birth is not None:
            birth.failure = failure("set up", InterruptedError(4, "it was given up"))
            self._finish(birth)

    def connect(self, asker: Connection, id_: int, links: bytes, inside: bytes) -> None:
        """All that the host has to do for a VE is done: its network may be made, and then it may go. Batches of
        rtnetlink messages, to be sent outside and inside of it. Nothing for a start that is over."""
        birth = self._births.get((asker, id_))
        if birth is None or birth.ending:
            return
        self._bound(birth, SETUP_BOUND)
        try:
            for batch in (links, inside):
                if len(batch) > BATCH_BOUND:
                    raise OSError(errno.EMSGSIZE, f"{len(batch)} bytes of messages, {BATCH_BOUND} are allowed")
                birth.channel.send(batch)
        except OSError as error:
            if error.errno not in _ENDED:  # of that the end of the conversation tells more
                birth.failure = birth.failure or failure("network", error)
                self._finish(birth)

    def _bound(self, birth: Birth, seconds: float) -> None:
        self._unbound(birth)
        birth.timer = self._loop.later(seconds, lambda: self._late(birth, seconds))

    def _unbound(self, birth: Birth) -> None:
        if birth.timer is not None:
            birth.timer.cancel()
            birth.timer = None

    def _late(self, birth: Birth, seconds: float) -> None:
        late = TimeoutError(110, f"it has not begun within {seconds:.0f} s, and was killed")
        birth.failure = birth.failure or failure("set up", late)
        self._finish(birth)

    def _read(self, birth: Birth) -> None:
        try:
            message, fds = birth.program.receive() if birth.program else receive(birth.channel)
        except BlockingIOError:
            return
        except OSError:
            message, fds = None, []
        if message is None:
            self._conversation_ended(birth)
            return
        try:
            check_complete(message)
            self._on_event(birth, message, fds)
        except Exception as error:  # out of descriptors, most likely; the daemon waits for an answer
            birth.failure = failure(_TASKS.get(str(message.get("event")), "set up"), error)
            self._finish(birth)
        finally:
            for fd in fds:
                os.close(fd)

    def _on_event(self, birth: Birth, message: dict[str, Any], fds: list[int]) -> None:
        event = message["event"]
        if event in ("cloned", "entered"):
            self._adopt(birth, message["pid"], fds)
        elif event == "console" and birth.child is not None:
            master, slave = fds
            self._keep_console(birth.ve, master, slave)
            fds.clear()
        elif event == "notify" and birth.child is not None:
            self._readiness.listen(birth.child, fds.pop())
        elif event == "going":
            birth.started = True
        else:
            # Several processes work at it: the first that fails knows why, the others only miss it.
            birth.failure = birth.failure or {key: message[key] for key in ("operation", "errno", "error", "path")}

    def _adopt(self, birth: Birth, pid: int, fds: list[int]) -> None:
        if birth.child is not None:
            raise ValueError("a second process for one birth")
        child = birth.child = self._children.adopt(birth.kind, birth.ve, pid, fds[0])
        child.status_fd, birth.status_fd = birth.status_fd, -1

    def _conversation_ended(self, birth: Birth) -> None:
        if birth.well or birth.failure is not None or birth.helper.status is not None:
            self._finish(birth)
            return
        # It could not say why. Its status will: its descriptors are closed before it can be reaped.
        birth.ending = True
        self._loop.unwatch(birth.channel)
        birth.helper.kill()
        self._unbound(birth)
        birth.timer = self._loop.later(_END_BOUND, lambda: self._finish(birth))

    def _helper_ended(self, birth: Birth) -> None:
        if birth.ending:
            self._finish(birth)

    def _finish(self, birth: Birth) -> None:
        """It is over: tell the daemon how it went, and kill what came to nothing."""
        if self._births.pop((birth.asker, birth.id), None) is None:
            return
        self._unbound(birth)
        if not birth.ending:
            self._loop.unwatch(birth.channel)
        birth.channel.close()
        if birth.status_fd >= 0:
            os.close(birth.status_fd)
        child = birth.child
        if child is not None and birth.well:
            ready = {"ready": child.ready} if child.kind == "init" else {}
            birth.tell({"event": "started", "pid": child.pid, "start_time": child.started, **ready})
            self._children.settle(child)
        else:
            birth.helper.kill()
            if child is not None:
                self._children.discard(child)
                self._readiness.end(child)
                if child.kind == "init":
                    self._end_console(child.ve, signal.SIGKILL)
            birth.tell({**(birth.failure or _silence(birth.helper.status)), "event": "failed"})
        self.reap_strays()

    def reap_strays(self) -> None:
        """A part of them, then the others of the loop have their turn."""
        if self._births or self._resting:
            return
        with contextlib.suppress(OSError):
            self._resting = self._children.reap_strays()
        if self._resting:
            self._loop.later(_REST, self._rested)

    def _rested(self) -> None:
        self._resting = False
        self.reap_strays()


def _silence(status: int | None) -> dict[str, Any]:
    """The failure of a process that could not report one itself."""
    if status is None:
        return failure("set up", TimeoutError(110, "the set-up process was killed but does not end"))
    code = os.waitstatus_to_exitcode(status)
    why = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
    hint = "; it counts against the VE's memory limit, which may be too small" if code == -9 else ""
    return failure("set up", OSError(0, f"the set-up process {why}{hint}"))
