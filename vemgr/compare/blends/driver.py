# SPDX-License-Identifier: GPL-2.0-or-later
"""The drivers of VEs in guests: `ve-in-guest`, each in a guest of its own, and `ves-in-guest`, all in one.

In a guest of its own an instance has both layers once more: its start is the guest's, by the host's clock, until the
vemgr in it takes requests, and then the VE's, by the guest's clock. In the other case the guest is there before the
first of them, from `prepare` on: a start is that of a VE in a guest that runs, and so is a stop.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

from vemgr.compare.blends import system
from vemgr.compare.blends.hosting import CommandInGuest, GuestVE, HostingGuest, HostingGuests
from vemgr.compare.driver import Context, DriverFailed, Finished, Instance, Resources
from vemgr.compare.memory import available

_MOST = 9  # consolidation's eight, and the one that short works share
_SHARE = 0.75  # of the memory that the host has available, for one guest


class _Driver:
    """What both have in common."""

    name: str

    def __init__(self, context: Context) -> None:
        self._guests = HostingGuests(context, self.name)
        self._disk: int | None = None

    def probe(self) -> str:
        return self._guests.probe()

    def prepare(self, root: Path, resources: Resources, directory: Path) -> None:
        self._guests.prepare(root, resources, directory)

    def disk_bytes(self) -> int | None:
        return self._disk

    def clean(self) -> list[str]:
        return self._guests.clean()


class VEInGuestDriver(_Driver):
    name = "ve-in-guest"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._instances: list[VEInGuest] = []

    @property
    def label(self) -> str:
        return f"VE in its own {self._guests.label}"

    def systems_below(self, count: int) -> int:
        return count

    def start(self, name: str, resources: Resources) -> VEInGuest:
        instance = VEInGuest(self._guests, name, resources, self._instances.remove)
        self._instances.append(instance)
        self._disk = instance.disk_bytes()
        return instance

    def close(self) -> None:
        for instance in [*self._instances]:
            with contextlib.suppress(DriverFailed):
                instance.stop()
        self._guests.close()


class VEInGuest:
    """A VE and its guest; made running."""

    def __init__(self, guests: HostingGuests, name: str, resources: Resources,
                 forget: Callable[[VEInGuest], None]) -> None:
        self.name, self._forget, self._stopped = name, forget, False
        self._guest = HostingGuest(guests, name, resources)
        try:
            self._ve = ve = GuestVE(self._guest, name, resources)
        except BaseException:
            self._guest.stop()
            raise
        self.first_instruction = None if ve.first_instruction is None else self._guest.up + ve.first_instruction
        self.up = self._guest.up + ve.up
        self.address = ve.address

    def run(self, argv: Sequence[str], *, timeout: float, input: bytes = b"") -> Finished:
        return self._ve.run(argv, timeout=timeout, input=input)

    def spawn(self, argv: Sequence[str]) -> CommandInGuest:
        return self._ve.spawn(argv)

    def memory(self) -> int | None:
        """PSS of the guest's QEMU: of the guest's system, and of the VE."""
        return self._guest.guest.memory()

    def disk_bytes(self) -> int:
        """What the guest has written, the VE's layer in it."""
        return self._guest.guest.disk_bytes()

    def stop(self) -> float:
        """Of the VE by the guest's clock, then of the guest. Raises `DriverFailed` when the guest has gone or does not
        answer; it is ended in any case."""
        if self._stopped:
            return 0.0
        self._stopped = True
        try:
            seconds = self._ve.stop()  # an end of the guest alone would be half of what is measured
        finally:
            of_guest = self._guest.stop()
            self._forget(self)
        return seconds + of_guest


class VEsInGuestDriver(_Driver):
    name = "ves-in-guest"
    warm = "a guest that runs already"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._instances: list[VEAmongOthers] = []
        self._guest: HostingGuest | None = None

    @property
    def label(self) -> str:
        return f"VEs started in one running {self._guests.label}"

    def systems_below(self, count: int) -> int:
        del count
        return 1

    def prepare(self, root: Path, resources: Resources, directory: Path) -> None:
        super().prepare(root, resources, directory)
        self._running(resources)

    def start(self, name: str, resources: Resources) -> VEAmongOthers:
        return self.start_from("", name, resources)

    def start_from(self, template: str, name: str, resources: Resources) -> VEAmongOthers:
        instance = VEAmongOthers(self._running(resources), name, resources, template, self._instances.remove)
        self._instances.append(instance)
        self._disk = instance.disk
        return instance

    def _running(self, resources: Resources) -> HostingGuest:
        """The guest; another one when it has gone."""
        if self._guest is not None and self._guest.gone:
            self._guest.stop()
            self._guest = None
        if self._guest is None:
            memory = min(_MOST * resources.memory, int(available() * _SHARE) - system.MEMORY)
            if memory < resources.memory:
                raise DriverFailed(f"the host has not the memory for a guest with VEs in it: "
                                   f"{available() >> 20} MiB are available")
            # As many CPUs as the VEs of the host can use.
            self._guest = HostingGuest(self._guests, f"cmp-{secrets.token_hex(3)}",
                                       Resources(len(os.sched_getaffinity(0)), memory))
        return self._guest

    def template_of(self, instance: Instance, name: str) -> int:
        assert isinstance(instance, VEAmongOthers)
        return instance.become_template(name)

    def remove_template(self, name: str) -> None:
        if self._guest is not None and not self._guest.gone:
            self._guest.ask("remove-template", template=name)

    def close(self) -> None:
        """The VEs go with the guest."""
        self._instances.clear()
        if self._guest is not None:
            self._guest.stop()
            self._guest = None
        self._guests.close()


class VEAmongOthers(GuestVE):
    """One of the VEs of a guest; made running. Its memory is that of its cgroup as the guest's kernel counts it: what
    the guest itself takes comes on top, once for all of them."""

    def __init__(self, guest: HostingGuest, name: str, resources: Resources, template: str,
                 forget: Callable[[VEAmongOthers], None]) -> None:
        super().__init__(guest, name, resources, template)
        self._forget, self._stopped = forget, False

    def become_template(self, name: str) -> int:
        self._end()
        return int(self.guest.ask("make-template", name=self.name, template=name)["disk"])

    def stop(self) -> float:
        if self._stopped:
            return 0.0
        self._end()
        return super().stop()

    def _end(self) -> None:
        self._stopped = True
        self._forget(self)
