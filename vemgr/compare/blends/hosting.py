# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that have VEs in them: the guests of `kvm-virtio`, but that they boot the system of `system.py`, have the
template as a second disk, and are up when their vemgr is.
"""

from __future__ import annotations

import base64
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vemgr.compare.blends import system
from vemgr.compare.blends.link import PATIENCE, Answer, Link
from vemgr.compare.commands import timed_out
from vemgr.compare.driver import Context, DriverFailed, Finished, Resources
from vemgr.compare.guests import network
from vemgr.compare.guests.domain import HOSTING, Definition
from vemgr.compare.guests.driver import Guest, GuestDriver
from vemgr.compare.journal import Entry
from vemgr.compare.noise import clock_objection

_LOG = "/run/vemgr/agent.log"
_WHAT = f"paravirtual devices (virtio) and {system.MEMORY >> 20} MiB more for its own system"


class HostingGuests(GuestDriver):
    """Makes them."""

    prefix = network.PREFIX_WITH_VES
    before = system.BEFORE

    def __init__(self, context: Context, name: str) -> None:
        super().__init__(context, name, _WHAT, HOSTING)
        self._template = Path()

    def probe(self) -> str:
        return super().probe() or system.missing()

    def prepare(self, root: Path, resources: Resources, directory: Path) -> None:
        super().prepare(root, resources, directory)
        self._template = self.image
        self.image = system.build(self.image.parent / "carrier", self.journal)

    def definition(self, name: str, resources: Resources) -> Definition:
        found = super().definition(name, replace(resources, memory=resources.memory + system.MEMORY))
        return replace(found, template=self._template, channel=found.port.with_suffix(".channel"),
                       subnet=self.bridge().subnet_behind(found.address))

    def _undo(self, entry: Entry) -> str | None:
        return system.undo(entry) if entry["kind"] == system.KIND else super()._undo(entry)


class HostingGuest:
    """One of them, with the agent in it; running. `up`: seconds from the request of its start until its vemgr took
    requests, by the host's clock. The agent comes after that: it measures, and is no part of what is measured."""

    def __init__(self, guests: HostingGuests, name: str, resources: Resources) -> None:
        self.guest: Guest = guests.start(name, resources)
        self.up = self.guest.up
        self._link: Link | None = None
        try:
            channel = socket.socket(socket.AF_UNIX)
            channel.connect(str(self.guest.channel))
            self._link = Link(channel, name)
            variables = [f"{key}={value}" for key, value in system.environment().items()]
            self.guest.spawn(["/bin/busybox", "sh", "-c", f'exec "$@" >{_LOG} 2>&1', "sh", "/bin/busybox", "env",
                              *variables, system.python(), "-m", "vemgr.compare.blends.agent"])
            self._link.await_agent(PATIENCE)
        except BaseException:
            self.stop()
            raise

    @property
    def gone(self) -> bool:
        return self._link is None or self._link.gone

    def ask(self, do: str, patience: float = PATIENCE, **facts: object) -> Answer:
        assert self._link
        return self._link.ask(do, patience, **facts)

    def stop(self) -> float:
        """As `Instance.stop`."""
        if self._link is not None:
            self._link.close()
        return self.guest.stop()


class GuestVE:
    """A VE in a guest; made running. `first_instruction` and `up` are of the guest's clock, from the request to the
    daemon in it; `disk`, `memory` and `disk_bytes` what the guest's kernel says."""

    def __init__(self, guest: HostingGuest, name: str, resources: Resources, template: str = "") -> None:
        self.name, self.guest = name, guest
        begin = time.monotonic()
        try:
            found = guest.ask("start", name=name, cpus=resources.cpus, memory=resources.memory, template=template)
        except TimeoutError as error:
            raise DriverFailed(f"{name}: {error}", instance=name) from None
        if why := clock_objection(found["up"], time.monotonic() - begin):
            guest.ask("stop", name=name)
            raise DriverFailed(f"{name}: {why}", instance=name)
        self.first_instruction: float | None = found["first"]
        self.up: float = found["up"]
        self.address: str | None = found["address"]
        self.disk: int | None = found["disk"]

    def run(self, argv: Sequence[str], *, timeout: float, input: bytes = b"") -> Finished:
        begin = time.monotonic()
        try:
            found = self.guest.ask("run", timeout + PATIENCE, name=self.name, argv=[*map(str, argv)], timeout=timeout,
                                   input=base64.b64encode(input).decode())
        except TimeoutError:
            raise timed_out(self.name, argv, timeout) from None
        seconds = time.monotonic() - begin
        return Finished(found["code"], base64.b64decode(found["stdout"]), base64.b64decode(found["stderr"]), seconds)

    def spawn(self, argv: Sequence[str]) -> CommandInGuest:
        return CommandInGuest(self.guest, self.guest.ask("spawn", name=self.name, argv=[*argv])["number"])

    def memory(self) -> int | None:
        found: int | None = self.guest.ask("look", name=self.name)["memory"]
        return found

    def disk_bytes(self) -> int | None:
        found: int | None = self.guest.ask("look", name=self.name)["disk"]
        return found

    def stop(self) -> float:
        begin = time.monotonic()
        seconds = float(self.guest.ask("stop", name=self.name)["seconds"])
        if why := clock_objection(seconds, time.monotonic() - begin):
            raise DriverFailed(f"{self.name}: {why}", instance=self.name)
        return seconds


class CommandInGuest:
    """A command that goes on."""

    def __init__(self, guest: HostingGuest, number: int) -> None:
        self._guest, self._number = guest, number

    def stop(self) -> None:
        self._guest.ask("end", number=self._number)
