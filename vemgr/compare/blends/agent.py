# SPDX-License-Identifier: GPL-2.0-or-later
"""What starts VEs in a guest and runs commands in them, as the host tells it: the driver `ve`, at work in there.

So a VE in a guest is made, used and timed by the same code as one on the host, over a connection to the daemon that is
open before the clock runs. The times are of the guest's clock. The host's half and the lines are in `link.py`.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vemgr.compare.blends.system import CONFIG, TEMPLATE
from vemgr.compare.driver import CommandTimedOut, Context, Resources
from vemgr.compare.guests.domain import CHANNEL
from vemgr.compare.ve import VE, SpawnedInVE, VEDriver
from vemgr.core.errors import VemgrError

_PORTS = Path("/sys/class/virtio-ports")
_DIRECTORY = Path("/var/lib/vemgr/compare")


class Agent:
    """`write`: takes a whole line."""

    def __init__(self, driver: VEDriver, write: Callable[[bytes], None]) -> None:
        self._driver, self._write = driver, write
        self._lock = threading.Lock()
        self._ves: dict[str, VE] = {}
        self._spawned: dict[int, SpawnedInVE] = {}
        self._numbers = itertools.count(1)
        self._verbs: dict[str, Callable[..., dict[str, Any]]] = {
            "start": self._start, "run": self._run, "spawn": self._spawn, "end": self._end, "look": self._look,
            "stop": self._stop, "make-template": self._make_template, "remove-template": self._remove_template}

    def say(self, answer: dict[str, Any]) -> None:
        line = json.dumps(answer).encode() + b"\n"
        with self._lock:
            self._write(line)

    def take(self, line: bytes) -> None:
        """Do what it asks for, and answer, in a thread of its own."""
        threading.Thread(target=self._do, kwargs=json.loads(line), daemon=True).start()

    def _do(self, *, id: int, do: str, **facts: Any) -> None:
        try:
            answer = self._verbs[do](**facts)
        except CommandTimedOut as error:
            answer = {"failed": str(error), "late": True}
        except Exception as error:  # whatever it is, somebody waits for an answer
            answer = {"failed": str(error) if isinstance(error, VemgrError) else repr(error), "late": False}
        self.say({"id": id, **answer})

    def _start(self, name: str, cpus: int, memory: int, template: str = "") -> dict[str, Any]:
        ve = self._driver.start_from(template or self._driver.template, name, Resources(cpus, memory))
        self._ves[name] = ve
        return {"first": ve.first_instruction, "up": ve.up, "address": ve.address, "disk": ve.disk}

    def _run(self, name: str, argv: list[str], timeout: float, input: str) -> dict[str, Any]:
        done = self._ves[name].run(argv, timeout=timeout, input=base64.b64decode(input))
        return {"code": done.code, "stdout": base64.b64encode(done.stdout).decode(),
                "stderr": base64.b64encode(done.stderr).decode()}

    def _spawn(self, name: str, argv: list[str]) -> dict[str, Any]:
        number = next(self._numbers)
        self._spawned[number] = self._ves[name].spawn(argv)
        return {"number": number}

    def _end(self, number: int) -> dict[str, Any]:
        self._spawned[number].stop()
        return {}

    def _look(self, name: str) -> dict[str, Any]:
        ve = self._ves[name]
        return {"memory": ve.memory(), "disk": ve.disk_bytes()}

    def _stop(self, name: str) -> dict[str, Any]:
        return {"seconds": self._ves.pop(name).stop()}

    def _make_template(self, name: str, template: str) -> dict[str, Any]:
        return {"disk": self._driver.template_of(self._ves.pop(name), template)}

    def _remove_template(self, template: str) -> dict[str, Any]:
        self._driver.remove_template(template)
        return {}


def _port() -> int:
    """The port that the host listens at."""
    for each in _PORTS.iterdir():
        if (each / "name").read_text().strip() == CHANNEL:
            return os.open(f"/dev/{each.name}", os.O_RDWR | os.O_CLOEXEC)
    raise FileNotFoundError(f"{CHANNEL} is not among {_PORTS}")


def serve(port: int) -> None:
    """Until the host has gone."""
    def write(data: bytes) -> None:
        while data:
            data = data[os.write(port, data):]

    driver = VEDriver(Context(_DIRECTORY, CONFIG, TEMPLATE))
    driver.prepare(Path(), Resources(0, 0), Path())
    agent = Agent(driver, write)
    agent.say({"id": 0})
    with open(port, "rb", closefd=False) as lines:
        for line in lines:
            agent.take(line)


if __name__ == "__main__":
    serve(_port())
