# SPDX-License-Identifier: GPL-2.0-or-later
"""The keeper: parent of every VE's init and of every command in a VE. Small, single-threaded, outlives the daemon.

It does what it is told over one SOCK_SEQPACKET connection, reaps its children and remembers how each ended until the
daemon has taken note. A daemon may die and come back at any moment; the keeper's own death ends its VEs, and a new
keeper starts with none (docs/adr/0003).
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import logging
import os
import selectors
import signal
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import prctl

from vemgr.core.plan import Plan
from vemgr.keeper.console import ConsoleTail
from vemgr.keeper.enter import Command, fork_command
from vemgr.keeper.protocol import receive, send
from vemgr.keeper.spawn import fork_setup
from vemgr.kernel.process import start_time
from vemgr.kernel.service import notify_ready

log = logging.getLogger("vemgr.keeper")


@dataclass
class Child:
    """An init or a command. `status`: as waitpid gives it, None while it runs. `pidfd`: of an init, else -1."""

    kind: str
    ve: str
    pid: int
    started: int
    pidfd: int = -1
    status_fd: int = -1
    status: int | None = None

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind, "ve": self.ve, "pid": self.pid, "start_time": self.started, "status": self.status}


@dataclass
class Birth:
    """A start or an exec in progress: the conversation `channel` with `process`, asked for by request `id`."""

    id: int
    ve: str
    channel: socket.socket
    kind: str
    process: int
    status_fd: int = -1
    pid: int = 0
    failure: dict[str, Any] | None = None
    started: bool = False
    going: bool = False


class Keeper:
    def __init__(self, listener: socket.socket) -> None:
        self._selector = selectors.DefaultSelector()
        self._listener = listener
        self._daemon: socket.socket | None = None
        self._children: dict[int, Child] = {}
        self._births: dict[int, Birth] = {}
        self._consoles: dict[int, ConsoleTail] = {}  # by the pid of the init
        self._unclaimed: dict[int, int] = {}  # reaped before the message that names them was read
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._running = True

    def serve(self) -> None:
        waker, wakee = socket.socketpair()
        for end in (waker, wakee):
            end.setblocking(False)
        signal.set_wakeup_fd(wakee.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._watch(waker, lambda: self._on_signal(waker))
        self._watch(self._listener, self._on_connection)
        gc.freeze()  # children share our pages until a collector run would touch them all
        while self._running:
            for key, _ in self._selector.select():
                try:
                    key.data()
                except Exception:  # a defect here must not end every VE
                    log.exception("unexpected failure")

    def _watch(self, thing: socket.socket | int, action: Callable[[], None]) -> None:
        self._selector.register(thing, selectors.EVENT_READ, action)

    def _on_signal(self, waker: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            waker.recv(4096)
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                self._on_death(pid, status)

    def _on_death(self, pid: int, status: int) -> None:
        child = self._children.get(pid)
        if child is None:
            # A set-up or entering process, or one whose birth message has not been read yet.
            if self._births:
                self._unclaimed[pid] = status
            return
        child.status = status
        if not any(birth.pid == pid for birth in self._births.values()):
            self._report(child)

    def _report(self, child: Child) -> None:
        """Tell the daemon and who waits for a command how a child has ended."""
        if child.status_fd >= 0:
            with contextlib.suppress(OSError):
                os.write(child.status_fd, struct.pack("=i", child.status))
            os.close(child.status_fd)
            child.status_fd = -1
        if child.pidfd >= 0:
            os.close(child.pidfd)
            child.pidfd = -1
        self._tell({"event": "exited", **child.describe()})

    def _on_connection(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            # No descriptor is left. One kept for this moment lets us turn the caller away, who would else be
            # reported again and again.
            os.close(self._spare)
            with contextlib.suppress(OSError):
                self._listener.accept()[0].close()
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            return
        connection.setblocking(False)
        self._watch(connection, lambda: self._on_request(connection))

    def _forget(self, connection: socket.socket) -> None:
        if connection is self._daemon:
            self._drop_daemon()
        else:
            self._selector.unregister(connection)
            connection.close()

    def _drop_daemon(self) -> None:
        """The daemon is gone. Starts that still wait for its network are given up, all else goes on."""
        if self._daemon is None:
            return
        self._selector.unregister(self._daemon)
        self._daemon.close()
        self._daemon = None
        for birth in list(self._births.values()):
            if birth.kind == "init" and not birth.going:
                self._end_birth(birth)

    def _tell(self, message: dict[str, Any], fds: list[int] | None = None) -> None:
        if self._daemon is None:
            return
        try:
            send(self._daemon, message, fds)
        except OSError:
            self._drop_daemon()  # it asks for the list when it is back

    def _on_request(self, connection: socket.socket) -> None:
        try:
            message, fds = receive(connection)
        except BlockingIOError:
            return
        except OSError:
            message, fds = None, []
        if message is None:
            self._forget(connection)
            return
        if connection is not self._daemon:
            # Who asks is the daemon; who only connects wants to know whether we live.
            self._drop_daemon()
            self._daemon = connection
        try:
            _check_complete(message)
            _REQUESTS[message["call"]](self, message, fds)
        except Exception as error:  # whatever it is, the daemon waits for an answer
            self._tell({"event": "failed", "id": message["id"], **_failure(message["call"], error)})
        finally:
            for fd in fds:
                os.close(fd)

    def _start(self, message: dict[str, Any], fds: list[int]) -> None:
        plan = Plan.from_json(message["plan"])
        process, channel = fork_setup(plan, fds[0], _read_all(fds[1]))
        self._begin(Birth(message["id"], plan.name, channel, "init", process))

    def _exec(self, message: dict[str, Any], fds: list[int]) -> None:
        init = self._init_of(message["ve"])
        command = Command(tuple(message["argv"]), message["env"], message["cwd"], message["user"], message["tty"])
        process, channel = fork_command(command, init.pidfd, fds[0], _read_all(fds[1]), fds[3:])
        status_fd = fds.pop(2)  # ours from now on
        self._begin(Birth(message["id"], init.ve, channel, message["kind"], process, status_fd))

    def _init_of(self, ve: str) -> Child:
        for child in self._children.values():
            if child.ve == ve and child.kind == "init" and child.status is None:
                return child
        raise ProcessLookupError(3, "the VE has no running init", ve)

    def _begin(self, birth: Birth) -> None:
        self._births[birth.id] = birth
        self._watch(birth.channel, lambda: self._on_birth(birth))

    def _on_birth(self, birth: Birth) -> None:
        try:
            message, fds = receive(birth.channel)
        except OSError:
            message, fds = None, []
        if message is None:
            self._end_birth(birth)
            return
        try:
            _check_complete(message)
            self._on_birth_event(birth, message, fds)
        except Exception as error:  # out of descriptors, most likely; the daemon waits for an answer
            birth.failure = _failure("set up", error)
            self._end_birth(birth)
        finally:
            for fd in fds:
                os.close(fd)

    def _on_birth_event(self, birth: Birth, message: dict[str, Any], fds: list[int]) -> None:
        event = message["event"]
        if event == "cloned":
            self._adopt(birth, message["pid"], os.dup(fds[0]))
            self._tell({"event": "cloned", "id": birth.id, "pid": birth.pid,
                        "start_time": self._children[birth.pid].started}, fds)
        elif event == "entered":
            self._adopt(birth, message["pid"], -1)
        elif event == "console":
            self._keep_console(birth.pid, *fds)
            fds.clear()
        elif event == "started":
            birth.started = True
        else:
            birth.failure = message

    def _adopt(self, birth: Birth, pid: int, pidfd: int) -> None:
        birth.pid = pid
        try:
            started = start_time(pid)
        except ProcessLookupError:
            started = 0  # gone and reaped already: `_unclaimed` has its status
        except OSError:
            if pidfd >= 0:
                os.close(pidfd)
            raise
        self._children[pid] = Child(birth.kind, birth.ve, pid, started, pidfd, birth.status_fd)
        birth.status_fd = -1

    def _end_birth(self, birth: Birth) -> None:
        """The conversation is over: tell the daemon how it went, and forget a child that came to nothing."""
        self._selector.unregister(birth.channel)
        birth.channel.close()
        del self._births[birth.id]
        well = birth.failure is None and (birth.started or (birth.kind != "init" and birth.pid))
        if not well and birth.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(birth.pid, signal.SIGKILL)
            failed = self._children.pop(birth.pid, None)
            self._close_console(birth.pid)
            for fd in (failed.pidfd, failed.status_fd) if failed else ():
                if fd >= 0:
                    os.close(fd)
        if birth.status_fd >= 0:
            os.close(birth.status_fd)
        if well:
            self._tell({"event": "started", "id": birth.id, "pid": birth.pid,
                        "start_time": self._children[birth.pid].started})
        else:
            self._tell({**(birth.failure or self._silence(birth)), "event": "failed", "id": birth.id})
        child = self._children.get(birth.pid)
        if child is not None:
            child.status = self._unclaimed.pop(child.pid, child.status)
            if child.status is not None:
                self._report(child)
        if not self._births:
            self._unclaimed.clear()

    def _silence(self, birth: Birth) -> dict[str, Any]:
        """The failure of a process that could not report one itself."""
        status = self._unclaimed.get(birth.process)
        if status is None:
            with contextlib.suppress(ChildProcessError):
                os.kill(birth.process, signal.SIGKILL)
                status = os.waitpid(birth.process, 0)[1]
        code = os.waitstatus_to_exitcode(status or 0)
        why = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        hint = "; it counts against the VE's memory limit, which may be too small" if code == -signal.SIGKILL else ""
        return {"operation": "set up", "errno": 0, "error": f"the set-up process {why}{hint}", "path": ""}

    def _keep_console(self, init: int, master: int, slave: int) -> None:
        tail = self._consoles[init] = ConsoleTail(master, slave)
        self._watch(master, tail.drain)

    def _close_console(self, init: int) -> None:
        tail = self._consoles.pop(init, None)
        if tail is not None:
            self._selector.unregister(tail.master)
            tail.close()

    def _go(self, message: dict[str, Any], _fds: list[int]) -> None:
        birth = self._births.get(message["start"])
        if birth is not None:  # otherwise it has failed meanwhile, and the daemon is being told
            birth.going = True
            send(birth.channel, {"messages": message["messages"]})

    def _abort(self, message: dict[str, Any], _fds: list[int]) -> None:
        birth = self._births.get(message["start"])
        if birth is not None:
            self._end_birth(birth)

    def _list(self, message: dict[str, Any], _fds: list[int]) -> None:
        born = {birth.pid for birth in self._births.values()}
        children = [child.describe() for child in self._children.values() if child.pid not in born]
        # Many VEs do not fit into one datagram.
        for position in range(0, len(children), 500):
            self._tell({"event": "part", "id": message["id"], "children": children[position:position + 500]})
        self._tell({"event": "listed", "id": message["id"], "pid": os.getpid()})

    def _taken(self, message: dict[str, Any], _fds: list[int]) -> None:
        child = self._children.get(message["pid"])
        if child is not None and child.status is not None:
            del self._children[child.pid]
            self._close_console(child.pid)

    def _console(self, message: dict[str, Any], _fds: list[int]) -> None:
        tail = self._consoles.get(message["pid"])
        self._tell({"event": "console", "id": message["id"], "text": tail.text() if tail else ""})

    def _shutdown(self, message: dict[str, Any], _fds: list[int]) -> None:
        """End the keeper, unless something still lives in it."""
        self._running = bool(self._births) or any(child.status is None for child in self._children.values())
        self._tell({"event": "shutdown", "id": message["id"], "ending": not self._running})


_REQUESTS: dict[str, Callable[[Keeper, dict[str, Any], list[int]], None]] = {
    "start": Keeper._start, "go": Keeper._go, "abort": Keeper._abort, "exec": Keeper._exec, "list": Keeper._list,
    "taken": Keeper._taken, "console": Keeper._console, "shutdown": Keeper._shutdown,
}


def _check_complete(message: dict[str, Any]) -> None:
    if message.get("truncated"):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def _failure(operation: str, error: Exception) -> dict[str, Any]:
    if not isinstance(error, OSError):
        log.error("unexpected failure", exc_info=error)
        error = OSError(0, f"{type(error).__name__}: {error}")
    return {"operation": operation, "errno": error.errno or 0, "error": error.strerror or str(error),
            "path": str(error.filename or "")}


def _read_all(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="vemgr-keeper", description="Parent of the VEs; started with the daemon.")
    parser.add_argument("--run-dir", default="/run/vemgr", help="where the socket keeper.sock is made")
    options = parser.parse_args()
    os.makedirs(options.run_dir, mode=0o700, exist_ok=True)
    path = f"{options.run_dir}/keeper.sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    _be_the_only_one(path)
    os.umask(0o177)
    listener.bind(path)
    os.umask(0o022)
    listener.listen(8)
    os.makedirs(f"{options.run_dir}/stage", mode=0o700, exist_ok=True)
    prctl.set_name("vemgr-keeper")
    notify_ready()
    Keeper(listener).serve()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _be_the_only_one(path: str) -> None:
    """Take over the path of a dead keeper; raise `OSError` EADDRINUSE where one lives."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise OSError(98, "a keeper runs already", path)


if __name__ == "__main__":
    main()
