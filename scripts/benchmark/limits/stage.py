# SPDX-License-Identifier: GPL-2.0-or-later
"""VEs to put load in, and what the kernel counts of them."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import prctl

from benchmark.bench import BARE
from benchmark.instance import Instance
from benchmark.limits.world import World
from vemgr.api.client import Client
from vemgr.verify import load


class Stage:
    """`seconds`: how long each of `repeat` looks is. `many`: VEs where the number is what matters."""

    def __init__(self, vemgr: Instance, world: World, repeat: int, seconds: float, many: int) -> None:
        self.vemgr, self.world, self.repeat, self.seconds, self.many = vemgr, world, repeat, seconds, many
        self.base = Path(vemgr.host["cgroup"])
        self.controllers = frozenset(vemgr.host["controllers"])
        self._names = itertools.count(1)
        self._running: list[str] = []

    def ve(self, **settings: str) -> str:
        """A running VE with an init that does nothing."""
        name = f"l{next(self._names)}"
        texts = {key.replace("_", "-"): text for key, text in settings.items()}
        self.vemgr.call("Create", name=name, template=BARE, settings={"network": "none", **texts})
        self._running.append(name)
        self.vemgr.call("Start", name=name)
        return name

    def ves(self, count: int) -> list[str]:
        """Many running VEs without a setting, by four clients at once."""
        names = [f"l{next(self._names)}" for _ in range(count)]
        self._running += names
        self.vemgr.for_each(names, self._start)
        return names

    def _start(self, name: str, client: Client) -> None:
        self.vemgr.call("Create", client, name=name, template=BARE, settings={"network": "none"})
        self.vemgr.call("Start", client, name=name)

    def set(self, ve: str, **settings: str) -> None:
        self.vemgr.call("Set", name=ve, settings={key.replace("_", "-"): text for key, text in settings.items()})

    def clear(self) -> None:
        """Destroy the VEs that there are, also where making them has failed half-way."""
        made = {ve["name"] for ve in self.vemgr.call("List")["ves"]}
        gone, self._running = [name for name in self._running if name in made], []
        self.vemgr.for_each(gone, lambda name, client: self.vemgr.call("Destroy", client, name=name, force=True))

    @contextlib.contextmanager
    def beside(self, work: Callable[[], None]) -> Iterator[None]:
        """While the body runs, a process of the bench's own, in no VE, does `work`."""
        pid = os.fork()
        if pid == 0:
            try:
                prctl.set_pdeathsig(signal.SIGKILL)
                work()
            finally:
                os._exit(1)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    @contextlib.contextmanager
    def frozen(self, ves: Sequence[str]) -> Iterator[None]:
        for ve in ves:
            (self.base / ve / "cgroup.freeze").write_text("1")
        try:
            load.wait_until(lambda: all(self.table(ve, "cgroup.events")["frozen"] for ve in ves), 30)
            yield
        finally:
            for ve in ves:
                (self.base / ve / "cgroup.freeze").write_text("0")

    def group(self, ve: str) -> str:
        return str(self.base / ve)

    def number(self, ve: str, file: str) -> int:
        return int((self.base / ve / file).read_text())

    def table(self, ve: str, file: str) -> dict[str, int]:
        lines = (line.split() for line in (self.base / ve / file).read_text().splitlines())
        return {key: int(value) for key, value in lines}

    def used(self, ves: Sequence[str], seconds: float) -> list[float]:
        """CPUs that each got. `seconds` is made a whole number of the kernel's periods of 100 ms."""
        def look() -> tuple[float, list[int]]:
            return time.monotonic(), [self.table(ve, "cpu.stat")["usage_usec"] for ve in ves]

        began, before = look()
        time.sleep(round(seconds, 1))
        ended, after = look()
        return [(b - a) / 1e6 / (ended - began) for a, b in zip(before, after, strict=True)]
