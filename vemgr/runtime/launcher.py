# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon's side of the conversation with the keeper."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from vemgr.core.errors import BadValue, ExecFailed, StartFailed, SystemFailure, Unreachable, VemgrError
from vemgr.core.plan import HostDevice, Plan, View
from vemgr.runtime.link import Link

log = logging.getLogger(__name__)

# execve(2): the program itself, or what it says it is interpreted by, is to blame.
_BAD_PROGRAM = (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ELIBBAD)
_BRIDGE_FULL = "a bridge has no more than 1023 ports; give some VEs another network (vemgr.toml(5))"
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126
_ATTACHES = 3  # the version of the keeper's protocol with which consoles came
_LISTENS = 5  # the one that listens to inits
_COVERS = 6  # and the one that knows of lxcfs, devices of the host and changed capabilities
_CONNECTS = 7  # and the one that takes a VE's network after its plan


@dataclass(frozen=True)
class Child:
    """A child of the keeper: the init of a VE, or a command in it (`kind` "exec", or "main" of an ephemeral VE).

    `ready`: whether the VE is up, as far as its init can say that."""

    kind: str
    ve: str
    pid: int
    start_time: int
    status: int | None
    ready: bool = True

    @staticmethod
    def of(message: dict[str, Any]) -> Child:
        return Child(message["kind"], message["ve"], message["pid"], message["start_time"], message["status"],
                     message.get("ready", True))


class KeeperIdentity(NamedTuple):
    """Tells one keeper from the next: its pid alone may be given out again. `version`: of the protocol."""

    pid: int
    start_time: int
    version: int


_RETURN = 3.0  # seconds

Reply = tuple[dict[str, Any], list[int]]


@dataclass
class _Pending:
    replies: asyncio.Queue[Reply] = field(default_factory=asyncio.Queue)


class Launcher:
    """One connection to the keeper. `on_exit` is called for every child that ends, `on_lost` when the keeper does,
    `on_ready` for an init that is up, where that comes later than its start.

    `keeper` is known after `children` has asked it.
    """

    def __init__(self, path: str, on_exit: Callable[[Child], None], on_lost: Callable[[], None],
                 on_ready: Callable[[Child], None]) -> None:
        self._link = Link(path, self._on_message, self._on_link_lost)
        self._on_exit = on_exit
        self._on_lost = on_lost
        self._on_ready = on_ready
        self._pending: dict[int, _Pending] = {}
        self._aborted: set[int] = set()  # and not answered since
        self._numbers = itertools.count(1)
        self.keeper = KeeperIdentity(0, 0, 0)
        self._present = asyncio.Event()
        self._present.set()

    @property
    def connected(self) -> bool:
        return self._link.connected

    async def connect(self) -> None:
        """Raises `Unreachable` when no keeper listens. An earlier connection is given up: its keeper may have ended
        before it was asked anything, and its reader would spin on the hang-up."""
        self.close()
        self._link.connect()

    def resume(self) -> None:
        """What the loss of an earlier connection has left to be done is done: requests may come again."""
        self._present.set()

    async def returned(self) -> None:
        """Wait while a lost connection is taken up again, which is over in a moment where the service manager starts a
        keeper anew. Where it takes longer, a request says what is wrong."""
        if not self._present.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._present.wait(), _RETURN)

    def close(self) -> None:
        self._link.close()
        self._aborted.clear()
        for pending in self._pending.values():
            pending.replies.put_nowait(({"event": "lost"}, []))

    def _on_link_lost(self) -> None:
        self._present.clear()
        self.close()
        self._on_lost()

    def _on_message(self, message: dict[str, Any], fds: list[int]) -> None:
        event, number = message.get("event"), message.get("id", 0)
        if event == "exited":
            self._on_exit(Child.of(message))
        elif event == "ready":
            self._on_ready(Child.of(message))
        elif number in self._pending:
            self._pending[number].replies.put_nowait((message, fds))
        else:
            _close(fds)
            if number in self._aborted:
                self._aborted.discard(number)
            elif event not in ("started", "cloned"):  # of a request that was given up
                log.warning("the keeper says, to no request: %s", {**message, "children": ...})

    def _send(self, message: dict[str, Any], fds: list[int] | None = None) -> None:
        self._link.send(message, fds or [])

    @contextlib.contextmanager
    def _request(self) -> Iterator[tuple[int, asyncio.Queue[Reply]]]:
        number = next(self._numbers)
        pending = self._pending[number] = _Pending()
        try:
            yield number, pending.replies
        finally:
            del self._pending[number]
            while not pending.replies.empty():
                _close(pending.replies.get_nowait()[1])

    async def _answer(self, replies: asyncio.Queue[Reply]) -> Reply:
        """Raises `Unreachable`, and `SystemFailure` for an answer that could not be received."""
        message, fds = await replies.get()
        if message.get("event") == "lost":
            raise Unreachable("the keeper ended while it was at work")
        if message.get("damaged") == errno.EMFILE:
            raise SystemFailure("the daemon has no descriptor left", remedy="raise LimitNOFILE of vemgr.service")
        if message.get("damaged"):
            raise SystemFailure(f"the keeper's answer cannot be received: {os.strerror(message['damaged'])}",
                                errno=message["damaged"])
        return message, fds

    async def _ask(self, call: str, **values: Any) -> dict[str, Any]:
        """A request with one answer that no failure is expected of."""
        with self._request() as (number, replies):
            self._send({"id": number, "call": call, **values})
            return _succeeded((await self._answer(replies))[0])

    async def start(self, plan: Plan, cgroup_fd: int, filter_fd: int,
                    connect: Callable[[], Awaitable[tuple[str, str]]]) -> Child:
        """Start a VE. `connect`: what is left to do on the host, done while the keeper makes namespaces and mounts; it
        returns the messages of `Network`. Before it has, nothing of the VE's own runs. Raises `StartFailed` naming the
        operation of the plan."""
        if self.keeper.version < _LISTENS:
            plan = plan.without_notify()
        if self.keeper.version < _COVERS:
            plan = plan.without(View)
            if any(isinstance(operation, HostDevice) for operation in plan.operations):
                raise _too_old("give devices to VEs")
        later = self.keeper.version >= _CONNECTS
        if not later:
            plan = plan.with_network(*await connect())
        with self._request() as (number, replies):
            self._send({"id": number, "call": "start", "plan": plan.to_json()}, [cgroup_fd, filter_fd])
            try:
                if later:
                    links, inside = await connect()
                    self._send({"id": next(self._numbers), "call": "network", "start": number, "links": links,
                                "inside": inside})
                message, _ = await self._answer(replies)
            except BaseException:
                with contextlib.suppress(VemgrError):
                    self._send({"id": next(self._numbers), "call": "abort", "start": number})
                    self._aborted.add(number)
                raise
            if message["event"] == "failed":
                raise _start_failure(plan.name, message)
            return Child("init", plan.name, message["pid"], message["start_time"], None, message.get("ready", True))

    async def exec(self, ve: str, command: dict[str, Any], cgroup_fd: int, filter_fd: int, status_fd: int,
                   stdio: list[int]) -> int:
        """Run a command in a VE; returns its pid. Its wait status is written to `status_fd` as a native int.

        Raises `BadValue`, `ExecFailed`, `Unreachable`.
        """
        if "capabilities" in command and self.keeper.version < _COVERS:
            raise _too_old("bound a command to other capabilities than the usual ones")
        for key in command["env"]:
            if not key or "=" in key:
                raise BadValue("env", key, "not a name for a variable")
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
                message = _succeeded((await self._answer(replies))[0])
                if message["event"] == "listed":
                    self.keeper = KeeperIdentity(message["pid"], message.get("start_time", 0),
                                                 message.get("version", 1))
                    return self.keeper.pid, children
                children += [Child.of(child) for child in message["children"]]

    def taken(self, child: Child) -> None:
        """Tell the keeper that it may forget an ended child."""
        with contextlib.suppress(VemgrError):
            self._send({"id": next(self._numbers), "call": "taken", "pid": child.pid,
                        "start_time": child.start_time})

    async def attach(self, ve: str, channel: int, *, writes: bool, force: bool) -> str:
        """Hand a client's socket to the console of a VE, which need not run; returns why it was not taken, or ""."""
        if self.keeper.version < _ATTACHES:
            raise _too_old("attach anybody to a console")
        with self._request() as (number, replies):
            self._send({"id": number, "call": "attach", "ve": ve, "writes": writes, "force": force}, [channel])
            return str(_succeeded((await self._answer(replies))[0])["refusal"])

    def forget(self, ve: str) -> None:
        """Tell the keeper that a VE is no more, for who waits for its console."""
        if self.keeper.version >= _ATTACHES:
            with contextlib.suppress(VemgrError):
                self._send({"id": next(self._numbers), "call": "forget", "ve": ve})

    async def shutdown(self) -> bool:
        """End the keeper; False when something still runs under it."""
        return bool((await self._ask("shutdown"))["ending"])


def _too_old(to_do: str) -> SystemFailure:
    return SystemFailure(f"the keeper is older than this daemon and cannot {to_do}",
                         remedy="restart vemgr-keeper when its VEs may stop")


def _succeeded(message: dict[str, Any]) -> dict[str, Any]:
    if message["event"] == "failed":
        raise SystemFailure(f"the keeper cannot {message['operation']}: {message['error']}", errno=message["errno"])
    return message


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _start_failure(ve: str, message: dict[str, Any]) -> VemgrError:
    place = f" ({message['path']})" if message["path"] else ""
    if message["operation"] == "exec init":
        remedy = "give another with --init" if message["errno"] in _BAD_PROGRAM else ""
        return StartFailed(f"VE {ve} cannot start: its init cannot be run: {message['error'].strip()}",
                           remedy=remedy, operation="exec init", errno=message["errno"])
    full = message["operation"] == "network" and message["errno"] == errno.EXFULL
    return StartFailed(f"VE {ve} cannot start: {message['operation']}: {message['error']}{place}",
                       remedy=_BRIDGE_FULL if full else "", operation=message["operation"],
                       errno=message["errno"], path=message["path"])


def _exec_failure(ve: str, message: dict[str, Any]) -> VemgrError:
    executing = message["operation"] == "exec"
    what, step = (message["path"], "") if executing else ("a command", f"{message['operation']}: ")
    failure = ExecFailed(f"cannot run {what} in VE {ve}: {step}{message['error']}",
                         operation=message["operation"], errno=message["errno"])
    not_found = executing and message["errno"] == errno.ENOENT
    failure.facts["status"] = str(_NOT_FOUND if not_found else _NOT_EXECUTABLE)
    return failure
