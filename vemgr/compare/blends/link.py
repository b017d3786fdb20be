# SPDX-License-Identifier: GPL-2.0-or-later
"""The conversation with the agent that starts VEs in a guest and runs commands in them (`agent.py`), over a port of
virtio's: lines of JSON, where bytes are in base64.

    {"id": 1, "do": "run", "name": "web1", "argv": ["sh"], "timeout": 60, "input": ""}
    {"id": 1, "code": 0, "stdout": "", "stderr": ""}, or {"id": 1, "failed": "VE web1 ...", "late": false}

Answers come in any order: several VEs of one guest work at once. The agent's first line is `{"id": 0}`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import socket
import threading
from typing import Any

from vemgr.compare.driver import DriverFailed

Answer = dict[str, Any]
PATIENCE = 180.0  # seconds for an answer that takes the guest no work, as in `serial.py`


class Link:
    """The host's end. `ask` may be called by several threads at once."""

    def __init__(self, connection: socket.socket, name: str) -> None:
        self._socket, self._name = connection, name
        self._socket.settimeout(PATIENCE)
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._waiting: dict[int, queue.SimpleQueue[Answer | None]] = {0: queue.SimpleQueue()}
        self._gone = False
        self._reader = threading.Thread(target=self._read, daemon=True, name=f"agent of {name}")
        self._reader.start()

    @property
    def gone(self) -> bool:
        return self._gone

    def await_agent(self, seconds: float) -> None:
        """Raises `DriverFailed`."""
        self._answer(0, seconds)

    def ask(self, do: str, patience: float = PATIENCE, **facts: Any) -> Answer:
        """Raises `DriverFailed`, `TimeoutError` when the agent says that it was a command that did not end in time."""
        number = next(self._numbers)
        with self._lock:
            if self._gone:
                raise self._lost()
            self._waiting[number] = queue.SimpleQueue()
            try:
                self._socket.sendall(json.dumps({"id": number, "do": do, **facts}).encode() + b"\n")
            except OSError as error:
                self._lose()
                raise self._lost() from error
        found = self._answer(number, patience)
        if "failed" in found:
            if found["late"]:
                raise TimeoutError(found["failed"])
            raise DriverFailed(f"in guest {self._name}: {found['failed']}", instance=self._name)
        return found

    def close(self) -> None:
        with self._lock:
            self._gone = True
        with contextlib.suppress(OSError):  # the guest has gone
            self._socket.shutdown(socket.SHUT_RDWR)  # closing alone would not wake the reader up
        self._reader.join()
        self._socket.close()

    def _answer(self, number: int, patience: float) -> Answer:
        try:
            found = self._waiting[number].get(timeout=patience)
        except queue.Empty:
            with self._lock:
                self._lose()  # whatever else it was asked: another guest takes its place
            raise DriverFailed(f"guest {self._name} does not answer", instance=self._name) from None
        finally:
            self._waiting.pop(number, None)
        if found is None:
            raise self._lost()
        return found

    def _lost(self) -> DriverFailed:
        return DriverFailed(f"guest {self._name} has gone", instance=self._name)

    def _read(self) -> None:
        data = bytearray()
        while chunk := self._receive():
            data += chunk
            *lines, rest = data.split(b"\n")
            data = bytearray(rest)
            for line in lines:
                answer = json.loads(line)
                # Nobody may be waiting any more.
                if waiting := self._waiting.get(answer["id"]):
                    waiting.put(answer)
        with self._lock:
            self._lose()

    def _lose(self) -> None:
        """With the lock held."""
        self._gone = True
        for waiting in [*self._waiting.values()]:  # whoever is woken takes itself out
            waiting.put(None)

    def _receive(self) -> bytes:
        """Nothing when the guest has gone."""
        while True:
            try:
                return self._socket.recv(1 << 20)
            except TimeoutError:
                continue  # a guest may have nothing to say for hours
            except OSError:
                return b""
