# SPDX-License-Identifier: GPL-2.0-or-later
"""The keeper's requests, and what it tells the daemon unasked."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
from base64 import b64decode
from collections.abc import Callable
from typing import Any

from vemgr.core.plan import Network, Plan
from vemgr.core.privileges import CAPABILITIES
from vemgr.keeper.births import Birth, Births
from vemgr.keeper.children import Child, Children, Process
from vemgr.keeper.connection import Connection
from vemgr.keeper.console import Consoles
from vemgr.keeper.console_log import ConsoleLogs
from vemgr.keeper.enter import Command, fork_command
from vemgr.keeper.loop import Loop
from vemgr.keeper.protocol import VERSION, check_complete, failure
from vemgr.keeper.readiness import Readiness
from vemgr.keeper.spawn import BirthProgram
from vemgr.keeper.spawner import Spawner
from vemgr.kernel.process import start_time

log = logging.getLogger("vemgr.keeper")

_PART = 500  # children in one message of a list
_STEPS = {"start": "fork the set-up process", "exec": "fork the entering process"}  # where a request fails at once
_LONGEST_WORD = 40  # of a request, in what is said about it
_FAREWELL = 2.0  # seconds for the daemon to read that we end


class Keeper:
    """Serves one daemon: whoever asked last. Others that connect only want to know whether we live."""

    def __init__(self, listener: socket.socket, loop: Loop, logs: ConsoleLogs) -> None:
        self._loop = loop
        self._listener = listener
        self._daemon: Connection | None = None
        self._spawner = Spawner()
        self._children = Children(loop, self._report)
        self._consoles = Consoles(loop, logs)
        self._readiness = Readiness(loop, self._tell_ready)
        self._births = Births(loop, self._children, self._consoles.begin, self._consoles.end,
                              self._readiness)
        self._started = start_time(os.getpid())
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        listener.setblocking(False)
        loop.watch(listener, self._on_connection)

    def on_sigchld(self) -> None:
        """Children that we know are reaped through their pidfds; this finds what nobody knows of."""
        self._spawner.notice_end()
        self._births.reap_strays()

    def _on_connection(self) -> None:
        try:
            channel, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:
            # No descriptor is left. One kept for this moment lets us turn the caller away, who would else be
            # reported again and again.
            os.close(self._spare)
            with contextlib.suppress(OSError):
                self._listener.accept()[0].close()
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            return
        Connection(self._loop, channel, self._on_request, self._on_end)

    def _on_end(self, connection: Connection) -> None:
        if connection is self._daemon:
            self._daemon = None
        self._births.give_up(connection)

    def _tell(self, message: dict[str, Any]) -> None:
        if self._daemon is not None:
            self._daemon.tell(message)

    def _on_request(self, connection: Connection, message: dict[str, Any], fds: list[int]) -> None:
        if connection is not self._daemon:
            previous, self._daemon = self._daemon, connection
            if previous is not None:
                previous.close()
        call = str(message.get("call", "request"))[:_LONGEST_WORD]
        try:
            check_complete(message)
            _REQUESTS[call](self, connection, message, fds)
        except Exception as error:  # whatever it is, the daemon waits for an answer
            if not isinstance(error, OSError):
                log.error("request %s", call, exc_info=error)
            number = message.get("id")
            connection.tell({"event": "failed", "id": number if isinstance(number, int) else 0,
                             **failure(_STEPS.get(call, call), error)})

    def _start(self, asker: Connection, message: dict[str, Any], fds: list[int]) -> None:
        plan = Plan.from_json(message["plan"])
        number = int(message["id"])
        program = BirthProgram(plan, _read_all(fds[1]))
        helper = Process(*program.begin(self._spawner, fds[0]))
        self._births.begin(Birth(asker, number, "init", plan.name, helper, program.channel, program))
        network = plan.operations[-1]
        if isinstance(network, Network) and network.inside:  # a daemon of before version 7 tells it at once
            self._births.connect(asker, number, b64decode(network.links), b64decode(network.inside))

    def _network(self, asker: Connection, message: dict[str, Any], _fds: list[int]) -> None:
        self._births.connect(asker, message["start"], b64decode(message["links"]), b64decode(message["inside"]))

    def _exec(self, asker: Connection, message: dict[str, Any], fds: list[int]) -> None:
        init = self._children.init_of(message["ve"])
        command = Command(tuple(message["argv"]), message["env"], message["cwd"], message["user"], message["tty"],
                          tuple(message.get("capabilities", CAPABILITIES)))
        number, kind = int(message["id"]), str(message["kind"])
        pid, pidfd, channel = fork_command(command, init.pidfd, fds[0], _read_all(fds[1]), fds[3:])
        birth = Birth(asker, number, kind, init.ve, Process(pid, pidfd), channel)
        birth.status_fd = fds.pop(2)  # ours from now on
        self._births.begin(birth)

    def _abort(self, asker: Connection, message: dict[str, Any], _fds: list[int]) -> None:
        self._births.abort(asker, message["start"])

    def _list(self, asker: Connection, message: dict[str, Any], _fds: list[int]) -> None:
        children = [child.describe() for child in self._children if child.settled]
        # Many VEs do not fit into one datagram.
        for position in range(0, len(children), _PART):
            asker.tell({"event": "part", "id": message["id"], "children": children[position:position + _PART]})
        # By these the daemon tells this keeper from another, and what it can be asked for.
        asker.tell({"event": "listed", "id": message["id"], "pid": os.getpid(), "start_time": self._started,
                    "version": VERSION})

    def _taken(self, _asker: Connection, message: dict[str, Any], _fds: list[int]) -> None:
        child = self._children.find(message["pid"], message.get("start_time"))
        if child is not None:
            self._children.take(child)

    def _attach(self, asker: Connection, message: dict[str, Any], fds: list[int]) -> None:
        channel = socket.socket(fileno=fds[0])
        fds.pop(0)  # ours from now on
        try:
            _check_kind(channel)
            refusal = self._consoles.attach(message["ve"], channel, writes=message["writes"], force=message["force"])
        except BaseException:
            channel.close()
            raise
        if refusal:
            channel.close()
        asker.tell({"event": "attached", "id": message["id"], "refusal": refusal})

    def _forget(self, _asker: Connection, message: dict[str, Any], _fds: list[int]) -> None:
        self._consoles.forget(message["ve"])

    def _shutdown(self, asker: Connection, message: dict[str, Any], _fds: list[int]) -> None:
        """End the keeper, unless something still lives in it."""
        ending = not self._births and not self._children.any_alive()
        asker.tell({"event": "shutdown", "id": message["id"], "ending": ending})
        if ending:
            self._loop.later(_FAREWELL if asker.waiting else 0.0, self._loop.stop)

    def _tell_ready(self, child: Child) -> None:
        if child.settled:  # else its start is answered with it
            self._tell({"event": "ready", **child.describe()})

    def _report(self, child: Child) -> None:
        """Tell the daemon and who waits for a command how a child has ended."""
        if child.kind == "init":
            self._consoles.end(child.ve, child.status or 0)
            self._readiness.end(child)
        if child.status_fd >= 0:
            with contextlib.suppress(OSError):
                os.write(child.status_fd, struct.pack("=i", child.status))
            child.close_status()
        self._tell({"event": "exited", **child.describe()})


_REQUESTS: dict[str, Callable[[Keeper, Connection, dict[str, Any], list[int]], None]] = {
    "start": Keeper._start, "network": Keeper._network, "abort": Keeper._abort, "exec": Keeper._exec,
    "list": Keeper._list, "taken": Keeper._taken, "attach": Keeper._attach, "forget": Keeper._forget,
    "shutdown": Keeper._shutdown,
}


def _check_kind(channel: socket.socket) -> None:
    """Raises `OSError` for what is no socket that keeps messages apart."""
    if channel.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) != socket.SOCK_SEQPACKET:
        raise OSError(91, "not a SOCK_SEQPACKET socket")


def _read_all(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)
