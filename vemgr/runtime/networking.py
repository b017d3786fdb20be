# SPDX-License-Identifier: GPL-2.0-or-later
"""The VEs' network as one thing: subnet, bridge, firewall table, names. Made when the first VE needs it."""

from __future__ import annotations

import asyncio
import json
import os

from vemgr.core.addresses import Pool, choose_subnet
from vemgr.core.host import HostConfig
from vemgr.kernel.durable import replace_file
from vemgr.kernel.firewall import Firewall, Rules
from vemgr.kernel.network import (
    BridgeNetwork,
    enable_forwarding,
    host_ifname,
    inside_messages,
    loopback_messages,
    mac_for,
    restore_forwarding,
)
from vemgr.kernel.sysctl import forwarding
from vemgr.runtime.resolver import resolv_conf_for
from vemgr.runtime.store import storage_errors

_RESOLV_CONF = "/etc/resolv.conf"
_UPSTREAM = "/run/systemd/resolve/resolv.conf"


class Networking:
    """`pool` is known once `choose` has run; `prepare` makes what VEs need on the host and is idempotent."""

    def __init__(self, config: HostConfig) -> None:
        self._config = config
        self._state = f"{config.state_dir}/network.json"
        self._forwarding = f"{config.run_dir}/ip_forward"
        self._bridge = BridgeNetwork(config.bridge)
        self._prepared = False
        self._opened = False
        self._changing = asyncio.Lock()  # two first VEs at once: one of them makes the network, the other waits
        self.pool: Pool | None = None
        self._mtu = 1500

    async def choose(self) -> Pool:
        """The VEs' subnet: as configured, as chosen before, or one that clashes with nothing on this host."""
        if self.pool is None:
            async with self._changing:
                return await self._choose()
        return self.pool

    async def _choose(self) -> Pool:
        if self.pool is None:
            subnet = self._config.subnet
            if subnet == "auto":
                subnet = self._remembered() or choose_subnet(await self._foreign())
            self.pool = Pool(subnet)
            with storage_errors("remember the subnet"):
                replace_file(self._state, json.dumps({"subnet": self.pool.subnet}))
        return self.pool

    async def _foreign(self) -> list[str]:
        await self._open()
        return await self._bridge.foreign_subnets()

    async def _open(self) -> None:
        if not self._opened:
            await self._bridge.open()
            self._opened = True

    def _remembered(self) -> str | None:
        try:
            with open(self._state, encoding="utf-8") as file:
                return str(json.load(file)["subnet"])
        except (OSError, ValueError, KeyError):
            return None

    async def prepare(self) -> None:
        """Bridge, forwarding and firewall. Again after a restart of the daemon; nothing of it costs a running VE."""
        async with self._changing:
            if not self._prepared:
                await self._prepare()

    async def _prepare(self) -> None:
        pool = await self._choose()
        await self._open()
        self._remember_forwarding()
        enable_forwarding()
        await self._bridge.ensure_bridge(pool.gateway, pool.prefixlen)
        _, resolver = self._resolver()
        Firewall(self._config.table).ensure(Rules(self._config.bridge, pool.subnet, pool.gateway, resolver))
        # Only now: the table drops what VEs themselves would send to the host's loopback.
        self._bridge.allow_loopback_redirect(resolver is not None)
        self._mtu = await self._bridge.uplink_mtu()
        self._prepared = True

    def _remember_forwarding(self) -> None:
        # The first value since boot is the host's own; later we only see what we wrote. Before it is changed: the next
        # daemon, if this one is killed in between, must not take ours for the host's.
        if not os.path.exists(self._forwarding):
            with storage_errors("remember net.ipv4.ip_forward"):
                replace_file(self._forwarding, str(forwarding()))

    async def connect(self, ve: str, netns_fd: int, address: str) -> list[bytes]:
        """Give a VE's network namespace its link; returns the messages that configure its inside."""
        assert self.pool is not None
        # The MAC follows the address: a VE that inherits an address finds no neighbour with a stale ARP entry.
        await self._bridge.attach(self._ifname(ve), netns_fd, mac_for(address, self._config.bridge), self._mtu)
        return inside_messages(address, self.pool.prefixlen, self.pool.gateway, self._mtu)

    def _ifname(self, ve: str) -> str:
        return host_ifname(ve, self._config.bridge)

    @staticmethod
    def loopback_only() -> list[bytes]:
        return loopback_messages()

    async def disconnect(self, ve: str) -> None:
        await self._open()
        await self._bridge.detach(self._ifname(ve))

    async def drop_stale(self, running: list[str]) -> list[str]:
        """Remove host ends that no running VE has; returns their names."""
        await self._open()
        wanted = {self._ifname(ve) for ve in running}
        stale = [link for link in await self._bridge.links() if link not in wanted]
        for link in stale:
            await self._bridge.detach(link)
        return stale

    def resolv_conf(self) -> str:
        return self._resolver()[0]

    def _resolver(self) -> tuple[str, str | None]:
        assert self.pool is not None
        return resolv_conf_for(_read(_RESOLV_CONF) or "", _read(_UPSTREAM), self.pool.gateway)

    async def take_back(self) -> None:
        """Remove bridge and table and give back net.ipv4.ip_forward, as if we had never been here."""
        await self._open()
        await self._bridge.remove_bridge()
        Firewall(self._config.table).remove()
        previous = _read(self._forwarding)
        if previous is not None:
            restore_forwarding(int(previous))
            os.unlink(self._forwarding)
        self._prepared = False

    def close(self) -> None:
        self._bridge.close()


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(65536)
    except OSError:
        return None
