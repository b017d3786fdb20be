# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands in a guest without a network or an agent of the guest's own: a conversation over its second serial port.

Requests are lines, `put FILE SIZE` is followed by that many bytes, and what comes back is lines, too:

    ready, first NANOSECONDS    the runner, process 1 have begun
    put FILE SIZE -> ok         appends to a file of the runner's
    run ID -> end ID CODE OUT ERR, and then so many bytes of output and of errors
    spawn ID -> ok
    kill SIGNAL MARK -> killed COUNT
    off                         the guest powers off

A command is a script for the runner's shell. `run` and `spawn` take it from the file ID, its input from ID.in.
"""

from __future__ import annotations

import shlex
import socket
import time
from collections.abc import Sequence

from vemgr.compare import marked
from vemgr.compare.commands import ENVIRONMENT, new_mark, timed_out
from vemgr.compare.driver import DriverFailed, Finished

# The guest's terminal holds 64 KiB that nobody has read yet, and drops what is more.
_CHUNK = 16384
_PATIENCE = 180.0  # seconds for an answer that takes the guest no work, which eight emulated ones share two CPUs for
_GRACE = 5.0


class Port:
    """The host's end of a guest's port. Raises `DriverFailed` when the guest has gone."""

    def __init__(self, connection: socket.socket, name: str) -> None:
        self._socket, self._name = connection, name
        self._data = bytearray()

    def send(self, data: bytes) -> None:
        try:
            self._socket.settimeout(_PATIENCE)
            self._socket.sendall(data)
        except OSError as error:
            raise self._gone() from error

    def line(self, deadline: float) -> list[str]:
        """The next line's words. Raises `TimeoutError`."""
        while (end := self._data.find(b"\n")) < 0:
            self._receive(deadline)
        text = self._data[:end].decode(errors="replace")
        del self._data[: end + 1]
        return text.split()

    def bytes(self, count: int, deadline: float) -> bytes:
        while len(self._data) < count:
            self._receive(deadline)
        found = bytes(self._data[:count])
        del self._data[:count]
        return found

    def close(self) -> None:
        self._socket.close()

    def _receive(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)
        try:
            chunk = self._socket.recv(65536)
        except TimeoutError:
            raise
        except OSError as error:
            raise self._gone() from error
        if not chunk:
            raise self._gone()
        self._data += chunk

    def _gone(self) -> DriverFailed:
        return DriverFailed(f"guest {self._name} has gone", instance=self._name)


class Runner:
    """Runs commands in a guest."""

    def __init__(self, port: Port, name: str) -> None:
        self._port, self._name = port, name
        self._ids = 0
        # What else came while an answer was awaited.
        self._ends: dict[str, Finished] = {}

    def run(self, argv: Sequence[str], *, timeout: float, input: bytes = b"") -> Finished:
        begin = time.monotonic()
        mark = new_mark()
        identifier = self._command(argv, mark, input)
        self._port.send(f"run {identifier}\n".encode())
        try:
            done = self._end(identifier, begin + timeout)
        except BaseException as error:
            # Ctrl-C may have come in the middle of an answer, after which the conversation is lost.
            if isinstance(error, TimeoutError):
                self._kill("KILL", mark, identifier)
                self._end(identifier, time.monotonic() + _PATIENCE)
                raise timed_out(self._name, argv, timeout) from None
            raise
        return Finished(done.code, done.stdout, done.stderr, time.monotonic() - begin)

    def spawn(self, argv: Sequence[str]) -> SpawnedInGuest:
        mark = new_mark()
        identifier = self._command(argv, mark, b"")
        self._ask(f"spawn {identifier}", "ok")
        return SpawnedInGuest(self, mark, identifier)

    def end(self, mark: str, identifier: str) -> None:
        """Ask, after a while kill, until nobody bears the mark or is of the session."""
        deadline = time.monotonic() + _GRACE
        signal = "TERM"
        while self._kill(signal, mark, identifier):
            time.sleep(0.05)
            signal = "KILL" if time.monotonic() > deadline else "0"

    def power_off(self) -> None:
        self._port.send(b"off\n")

    def _command(self, argv: Sequence[str], mark: str, data: bytes) -> str:
        self._ids += 1
        identifier = f"c{self._ids}"
        self._put(identifier, f"echo $$ >$0.sid\n{script(argv, mark)}".encode("utf-8", "surrogateescape"))
        self._put(f"{identifier}.in", data)
        return identifier

    def _put(self, name: str, data: bytes) -> None:
        for start in range(0, len(data), _CHUNK):
            chunk = data[start:start + _CHUNK]
            self._port.send(f"put {name} {len(chunk)}\n".encode() + chunk)
            self._await("ok")

    def _kill(self, signal: str, mark: str, identifier: str) -> int:
        return int(self._ask(f"kill {signal} {mark} {identifier}", "killed")[0])

    def _ask(self, request: str, answer: str) -> list[str]:
        self._port.send(f"{request}\n".encode())
        return self._await(answer)

    def _await(self, answer: str) -> list[str]:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                word, *rest = self._port.line(deadline) or [""]
            except TimeoutError:
                raise DriverFailed(f"guest {self._name} does not answer", instance=self._name) from None
            if word == answer:
                return rest
            if word == "end":
                self._take_end(rest, deadline)

    def _end(self, identifier: str, deadline: float) -> Finished:
        while identifier not in self._ends:
            word, *rest = self._port.line(deadline) or [""]
            if word == "end":
                # An answer that has begun comes to its end.
                self._take_end(rest, time.monotonic() + _PATIENCE)
        return self._ends.pop(identifier)

    def _take_end(self, words: Sequence[str], deadline: float) -> None:
        identifier, code, out, err = words
        self._ends[identifier] = Finished(int(code), self._port.bytes(int(out), deadline),
                                          self._port.bytes(int(err), deadline), 0.0)


class SpawnedInGuest:
    """A command that goes on."""

    def __init__(self, runner: Runner, mark: str, identifier: str) -> None:
        self._runner, self._mark, self._identifier = runner, mark, identifier

    def stop(self) -> None:
        self._runner.end(self._mark, self._identifier)


def script(argv: Sequence[str], mark: str) -> str:
    """For the runner's shell: the command, in the tree of process 1."""
    variables = ENVIRONMENT | {marked.VARIABLE: mark}
    words = ["/bin/busybox", "env", "-i", *(f"{key}={value}" for key, value in variables.items()),
             "/bin/busybox", "chroot", "/proc/1/root", *argv]
    return f"exec {shlex.join(words)}\n"
