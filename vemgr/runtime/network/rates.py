# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps VEs' links to the rates that were asked for. A VE without a rate costs nothing here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence

from vemgr.core.errors import NotEnforceable, SystemFailure
from vemgr.core.rates import Rate
from vemgr.kernel import shaping
from vemgr.kernel.link_counters import link_counters
from vemgr.kernel.qdiscs import TC_H_ROOT, Drops

log = logging.getLogger(__name__)


class Rates:
    """`prefix`: what the names of our host ends begin with."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._able: bool | None = None  # None: not tried yet
        self._detours: dict[str, tuple[str, ...]] = {}  # ifb devices by VE
        self._going: dict[str, asyncio.Task[None]] = {}  # and those that are being deleted

    async def check(self) -> None:
        """Raises `NotEnforceable` where this kernel cannot."""
        if self._able:
            return
        try:
            await asyncio.to_thread(shaping.probe, f"{self._prefix}probe0")
        except OSError as error:
            raise NotEnforceable("network-rate", f"the kernel refuses tbf, ifb, ingress, u32 or mirred: "
                                 f"{error.strerror}", "modprobe sch_tbf ifb sch_ingress cls_u32 act_mirred") from error
        self._able = True

    async def apply(self, ve: str, ports: Sequence[str], rate: Rate) -> None:
        """Raises `SystemFailure`."""
        if ve in self._going:
            await self._going[ve]
        if rate.outgoing is not None:
            self._detours[ve] = tuple(shaping.detour(port) for port in ports)
        try:
            for port in ports:
                await asyncio.to_thread(shaping.shape, port, rate.incoming, rate.outgoing)
        except OSError as error:
            raise SystemFailure(f"the network rate of VE {ve} cannot be set: {error.strerror or error}",
                                errno=error.errno) from error
        if rate.outgoing is None:
            self._detours.pop(ve, None)

    def released(self, ve: str) -> None:
        """Its links go with its namespace; what its traffic was led through goes in the background."""
        names = self._detours.pop(ve, None)
        if names:
            self._going[ve] = asyncio.get_running_loop().create_task(self._remove(ve, names))

    async def _remove(self, ve: str, names: Collection[str]) -> None:
        try:
            await asyncio.to_thread(shaping.remove, list(names))
        except OSError as error:
            log.error("VE %s: %s cannot be deleted: %s", ve, " ".join(names), error.strerror)
        finally:
            self._going.pop(ve, None)

    async def adopt(self, ports: dict[str, tuple[str, ...]]) -> None:
        """After a restart of the daemon: what VEs that run have is theirs, and the rest goes."""
        there = set(shaping.detours(self._prefix))
        for ve, names in ports.items():
            own = tuple(name for name in map(shaping.detour, names) if name in there)
            if own:
                self._detours[ve] = own
                there.difference_update(own)
        if there:
            await self._remove("", there)

    async def take_back(self) -> None:
        """All of them, when vemgr goes."""
        await asyncio.gather(*self._going.values())
        left = shaping.detours(self._prefix)
        if left:
            await self._remove("", left)

    @staticmethod
    def traffic(ports: Sequence[str]) -> dict[str, int]:
        """Bytes to a VE and from it since its start, over all of its links."""
        try:
            found = link_counters()
        except OSError:
            return {}
        figures = [found[port] for port in ports if port in found]
        return {"network.in": sum(link.sent for link in figures), "network.out": sum(link.received for link in figures)}

    @staticmethod
    def dropped(ports: Sequence[str], drops: Drops) -> tuple[int, int]:
        """Packets to a VE and from it that came faster than its rate for too long."""
        return (sum(drops.get((port, TC_H_ROOT), 0) for port in ports),
                sum(drops.get((shaping.detour(port), TC_H_ROOT), 0) for port in ports))
