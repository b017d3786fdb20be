# SPDX-License-Identifier: GPL-2.0-or-later
"""A blocking client of the API in the standard library alone: the command line's start-up time depends on it.

Varlink over a unix socket is JSON objects, each ended by a zero byte (varlink.org/Method-Call); descriptors travel
beside them as SCM_RIGHTS and are named in the JSON by their position.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from typing import Any

from vemgr.core.errors import PermissionDenied, Unreachable, VemgrError

INTERFACE = "org.vemgr.Manager"
_MOST_DESCRIPTORS = 16
ENDED = "the daemon ended while it was at work"


class RemoteError(VemgrError):
    """An error of the daemon, with its own identifier and exit code."""

    def __init__(self, name: str, parameters: dict[str, Any]) -> None:
        short = name.removeprefix(f"{INTERFACE}.")
        super().__init__(str(parameters.get("message", name if short == name else short)),
                         remedy=str(parameters.get("remedy", "")), **parameters.get("facts", {}))
        self._identifier = short
        self.code = int(parameters.get("exitCode", 3))

    @property
    def identifier(self) -> str:
        return self._identifier


def exit_code_of(error: VemgrError) -> int:
    return error.code if isinstance(error, RemoteError) else error.exit_code


def result_of(reply: bytes) -> dict[str, Any]:
    """The parameters of a reply, without the zero byte at its end. Raises `RemoteError` for one that is an error."""
    found = json.loads(reply)
    if "error" in found:
        raise RemoteError(found["error"], found.get("parameters") or {})
    parameters: dict[str, Any] = found.get("parameters") or {}
    return parameters


def lost(why: str) -> Unreachable:
    """The failure of a call that has been sent and not answered."""
    return Unreachable(f"the connection to the daemon was lost: {why}",
                       remedy="look whether what you asked for has happened, and try again")


class Client:
    """One connection. Raises `Unreachable` or `PermissionDenied` when made, `RemoteError` for the daemon's errors.

    `timeout`: seconds after which a daemon that says nothing does not answer.
    """

    def __init__(self, path: str, timeout: float | None = None) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(path)
        except PermissionError:
            self._socket.close()
            raise PermissionDenied(f"only root may use {path}", remedy="run vemgr with sudo", path=path) from None
        except OSError as error:
            self._socket.close()
            raise Unreachable(f"the vemgr daemon does not answer on {path}: {error.strerror}",
                              remedy="systemctl start vemgr", path=path) from error

    def call(self, method: str, parameters: dict[str, Any] | None = None,
             fds: list[int] | None = None) -> dict[str, Any]:
        """The reply's parameters. Descriptors in the reply are found under "descriptors"."""
        message = json.dumps({"method": f"{INTERFACE}.{method}", "parameters": parameters or {}}).encode() + b"\0"
        try:
            if fds:
                sent = socket.send_fds(self._socket, [message], fds)
                message = message[sent:]
            if message:  # sending nothing to a daemon that has answered and gone would fail
                self._socket.sendall(message)
            data, received = self._receive()
        except OSError as error:
            raise lost(str(error.strerror)) from error
        try:
            answer = result_of(data)
        except RemoteError:
            for fd in received:
                os.close(fd)
            raise
        if received:
            answer["descriptors"] = received
        return answer

    def stream(self, method: str, parameters: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The parameters of each reply to a call that takes many (varlink's "more"), as they come."""
        call = {"method": f"{INTERFACE}.{method}", "parameters": parameters, "more": True}
        data = bytearray()
        try:
            self._socket.sendall(json.dumps(call).encode() + b"\0")
            while True:
                while (end := data.find(0)) < 0:
                    chunk = self._socket.recv(65536)
                    if not chunk:
                        raise ConnectionResetError(104, ENDED)
                    data += chunk
                reply = bytes(data[:end])
                del data[: end + 1]
                yield result_of(reply)
                if not json.loads(reply).get("continues"):
                    return
        except OSError as error:
            raise lost(str(error.strerror)) from error

    def _receive(self) -> tuple[bytes, list[int]]:
        data = bytearray()
        received: list[int] = []
        while not data.endswith(b"\0"):
            chunk, fds, _, _ = socket.recv_fds(self._socket, 65536, _MOST_DESCRIPTORS)
            if not chunk:
                raise ConnectionResetError(104, ENDED)
            data += chunk
            received += fds
        return bytes(data[:-1]), received

    def await_end(self) -> None:
        """Wait until the daemon has gone, which ends the connection."""
        with contextlib.suppress(ConnectionResetError):
            while self._socket.recv(4096):
                pass

    def close(self) -> None:
        self._socket.close()
