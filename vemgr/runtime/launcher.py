# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon's side of the conversation with the keeper."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import itertools
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from vemgr.core.errors import ExecFailed, StartFailed, SystemFailure, Unreachable, VemgrError
from vemgr.core.plan import Plan
from vemgr.keeper.protocol import receive, send

_NOT_FOUND, _NOT_EXECUTABLE = 127, 126


@dataclass(frozen=True)
class Child:
    """A child of the keeper: the init of a VE, or a command in it (`kind` "exec", or "main" of an ephemeral VE)."""

    kind: str
    ve: str
    pid: int
    start_time: int
    status: int | None

    @staticmethod
    def of(message: dict[str, Any]) -> Child:
        return Child(message["kind"], message["ve"], message["pid"], message["start_time"], message["status"])


@dataclass
class _Pending:
    replies: asyncio.Queue[tuple[dict[str, Any], list[int]]] = field(default_factory=asyncio.Queue)


@dataclass(frozen=True)
class Birth:
    """A VE whose namespaces exist and whose set-up waits for its network. Close `pidfd` and `netns_fd`."""

    request: int
    pid: int
    start_time: int
    pidfd: int
    netns_fd: int

    def close(self) -> None:
        os.close(self.pidfd)
        os.close(self.netns_fd)


class Launcher:
    """One connection to the keeper. `on_exit` is called for every child that ends, `on_lost` when the keeper does."""

    def __init__(self, path: str, on_exit: Callable[[Child], None], on_lost: Callable[[], None]) -> None:
        self._path = path
        self._on_exit = on_exit
        self._on_lost = on_lost
        self._socket: socket.socket | None = None
        self._pending: dict[int, _Pending] = {}
        self._numbers = itertools.count(1)

    @property
    def connected(self) -> bool:
        return self._socket is not None

    async def connect(self) -> None:
        """Raises `Unreachable` when no keeper listens. An earlier connection is given up: its keeper may have ended
        before it was asked anything, and its reader would spin on the hang-up."""
        self.close()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            connection.connect(self._path)
        except OSError as error:
            connection.close()
            raise Unreachable(f"the keeper does not answer on {self._path}: {error.strerror}",
                              remedy="systemctl start vemgr-keeper, or any vemgr command where there is no systemd",
                              path=self._path) from error
        connection.setblocking(False)
        self._socket = connection
        asyncio.get_running_loop().add_reader(connection, self._on_readable)

    def close(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        lost: tuple[dict[str, Any], list[int]] = ({"event": "lost"}, [])
        for pending in self._pending.values():
            pending.replies.put_nowait(lost)

    def _on_readable(self) -> None:
        assert self._socket is not None
        try:
            message, fds = receive(self._socket)
        except BlockingIOError:
            return
        except OSError:
            message, fds = None, []
        if message is None:
            self.close()
            self._on_lost()
            return
        if message["event"] == "exited":
            self._on_exit(Child.of(message))
            return
        pending = self._pending.get(message["id"])
        if pending is not None:
            pending.replies.put_nowait((message, fds))
        else:
            for fd in fds:
                os.close(fd)

    def _send(self, message: dict[str, Any], fds: list[int] | None = None) -> None:
        if self._socket is None:
            raise Unreachable("the keeper is not running", remedy="systemctl start vemgr-keeper")
        try:
            send(self._socket, message, fds)
        except OSError as error:
            raise Unreachable(f"the keeper does not take requests: {error.strerror}") from error

    @contextlib.contextmanager
    def _request(self) -> Iterator[tuple[int, asyncio.Queue[tuple[dict[str, Any], list[int]]]]]:
        number = next(self._numbers)
        pending = self._pending[number] = _Pending()
        try:
            yield number, pending.replies
        finally:
            del self._pending[number]

    async def _answer(self, replies: asyncio.Queue[tuple[dict[str, Any], list[int]]]) -> tuple[dict[str, Any], Any]:
        message, fds = await replies.get()
        if message["event"] == "lost":
            raise Unreachable("the keeper ended while it was at work")
        return message, fds

    async def start(self, plan: Plan, cgroup_fd: int, filter_fd: int,
                    configure: Callable[[Birth], Any]) -> Child:
        """Start a VE: its namespaces, then `await configure(birth)`, which returns netlink messages for the inside,
        then the rest. Raises `StartFailed` naming the operation of the plan, or what `configure` raises."""
        with self._request() as (number, replies):
            self._send({"id": number, "call": "start", "plan": plan.to_json()}, [cgroup_fd, filter_fd])
            message, fds = await self._answer(replies)
            if message["event"] == "failed":
                raise _start_failure(plan.name, message)
            if message.get("truncated"):
                self._send({"id": next(self._numbers), "call": "abort", "start": number})
                raise SystemFailure(f"VE {plan.name} cannot start: the daemon has no descriptor left",
                                    remedy="raise LimitNOFILE of vemgr.service", ve=plan.name)
            birth = Birth(number, message["pid"], message["start_time"], *fds)
            try:
                messages = await configure(birth)
                self._send({"id": next(self._numbers), "call": "go", "start": number,
                            "messages": [base64.b64encode(m).decode() for m in messages]})
                message, _ = await self._answer(replies)
            except BaseException:
                with contextlib.suppress(Unreachable):
                    self._send({"id": next(self._numbers), "call": "abort", "start": number})
                raise
            finally:
                birth.close()
            if message["event"] == "failed":
                raise _start_failure(plan.name, message)
            return Child("init", plan.name, birth.pid, birth.start_time, None)

    async def exec(self, ve: str, command: dict[str, Any], cgroup_fd: int, filter_fd: int, status_fd: int,
                   stdio: list[int]) -> int:
        """Run a command in a VE; returns its pid. Its wait status is written to `status_fd` as a native int."""
        with self._request() as (number, replies):
            self._send({"id": number, "call": "exec", "ve": ve, **command}, [cgroup_fd, filter_fd, status_fd, *stdio])
            message, _ = await self._answer(replies)
            if message["event"] == "failed":
                raise _exec_failure(ve, message)
            return int(message["pid"])

    async def children(self) -> tuple[int, list[Child]]:
        """The keeper's pid and all its children, also those that have ended and were not `taken`."""
        children: list[Child] = []
        with self._request() as (number, replies):
            self._send({"id": number, "call": "list"})
            while True:
                message, _ = await self._answer(replies)
                if message["event"] == "listed":
                    return message["pid"], children
                children += [Child.of(child) for child in message["children"]]

    def taken(self, child: Child) -> None:
        """Tell the keeper that it may forget an ended child."""
        with contextlib.suppress(Unreachable):
            self._send({"id": next(self._numbers), "call": "taken", "pid": child.pid})

    async def console(self, init: int) -> str:
        """The last 8 KiB of what a VE's init, named by its pid, printed on its console."""
        with self._request() as (number, replies):
            self._send({"id": number, "call": "console", "pid": init})
            message, _ = await self._answer(replies)
            return str(message["text"])

    async def shutdown(self) -> bool:
        """End the keeper; False when something still runs under it."""
        with self._request() as (number, replies):
            self._send({"id": number, "call": "shutdown"})
            message, _ = await self._answer(replies)
            return bool(message["ending"])


def _start_failure(ve: str, message: dict[str, Any]) -> VemgrError:
    place = f" ({message['path']})" if message["path"] else ""
    if message["operation"] == "exec init":
        return StartFailed(f"VE {ve} cannot start: its init cannot be run: {message['error'].strip()}",
                           remedy="give another with --init", operation="exec init", errno=message["errno"])
    return StartFailed(f"VE {ve} cannot start: {message['operation']}: {message['error']}{place}",
                       operation=message["operation"], errno=message["errno"], path=message["path"])


def _exec_failure(ve: str, message: dict[str, Any]) -> VemgrError:
    what = message["path"] or message["operation"]
    failure = ExecFailed(f"cannot run {what} in VE {ve}: {message['error']}",
                         operation=message["operation"], errno=message["errno"])
    not_found = message["operation"] == "exec" and message["errno"] == errno.ENOENT
    failure.facts["status"] = str(_NOT_FOUND if not_found else _NOT_EXECUTABLE)
    return failure
