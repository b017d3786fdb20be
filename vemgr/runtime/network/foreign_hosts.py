# SPDX-License-Identifier: GPL-2.0-or-later
"""Seeing to it that a VE takes no address that a host has which is none of our VEs.

Such hosts are there only where an administrator has put another port on a bridge of ours. Without one nothing is asked,
and a start does not wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable

from vemgr.core.errors import AddressInUse, SystemFailure
from vemgr.core.links import Link
from vemgr.kernel.address_probe import Holder, find_holder
from vemgr.kernel.network import BridgeNetwork
from vemgr.kernel.port_watch import PortWatch
from vemgr.runtime.store import storage_errors

log = logging.getLogger(__name__)


class ForeignHosts:
    """`prefix`: what the names of VEs' ports begin with."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._watch: PortWatch | None = None

    def begin(self) -> None:
        """Learn which ports there are, so that no start has to. Raises `SystemFailure`."""
        with storage_errors("watch the ports of bridges"):
            self._watched()

    async def check(self, ve: str, links: Iterable[tuple[Link, BridgeNetwork]]) -> None:
        """Raises `AddressInUse` when somebody answers to an address of these links. Takes 0.3 s where there are foreign
        ports with a carrier, else microseconds."""
        try:
            ports = [(link, bridge, self._watched().foreign(bridge.bridge)) for link, bridge in links]
            asking = [_find(link, bridge, names) for link, bridge, names in ports if names]
            found = await asyncio.gather(*asking) if asking else []
        except OSError as error:
            raise SystemFailure(f"VE {ve}: cannot ask if its addresses are free: {error.strerror}",
                                errno=error.errno) from error
        for bridge, holder in found:
            if holder is not None:
                raise AddressInUse(
                    f"address {holder.address} of VE {ve} is in use by {holder.mac}, behind port {holder.port} of "
                    f"bridge {bridge}", remedy="give the VE another one, or take it from that host",
                    ve=ve, address=holder.address, mac=holder.mac, interface=holder.port)

    def _watched(self) -> PortWatch:
        if self._watch is None:
            watch = PortWatch(self._prefix)
            try:
                asyncio.get_running_loop().add_reader(watch, self._on_news, watch)
            except OSError:
                watch.close()
                raise
            self._watch = watch
        return self._watch

    def _on_news(self, watch: PortWatch) -> None:
        try:
            watch.read()
        except OSError as error:  # the next start asks anew
            log.warning("what ports bridges have is not known any more: %s", error.strerror)
            self.close()

    def close(self) -> None:
        if self._watch is not None:
            with contextlib.suppress(RuntimeError):  # the event loop may have ended first
                asyncio.get_running_loop().remove_reader(self._watch)
            self._watch.close()
            self._watch = None


async def _find(link: Link, bridge: BridgeNetwork, ports: list[str]) -> tuple[str, Holder | None]:
    return bridge.bridge, await find_holder(ports, bridge.mac, link.addresses)
