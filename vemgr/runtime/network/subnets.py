# SPDX-License-Identifier: GPL-2.0-or-later
"""Which subnets the networks have, and which addresses of them a VE gets."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vemgr.core.addresses import Pool, choose_subnet, private_subnet6
from vemgr.core.errors import AddressInUse, BadValue
from vemgr.core.links import Link
from vemgr.core.networks import AUTO, OFF, NetworkConfig
from vemgr.kernel.durable import replace_file
from vemgr.kernel.veth import mac_for
from vemgr.runtime.store import storage_errors


@dataclass
class Taken:
    """What VEs have or will have: address or MAC to the VE's name."""

    addresses: dict[str, str] = field(default_factory=dict)
    macs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Subnets:
    """The pools of one network; `pool6` is None without IPv6."""

    config: NetworkConfig
    pool: Pool
    pool6: Pool | None

    def mac_of(self, link: Link) -> str:
        """A link's own, or one that follows from its address: a VE that inherits the address finds no neighbour with
        a stale ARP entry."""
        return link.mac or mac_for(link.address, self.config.bridge)

    def fits(self, wish: Link, link: Link) -> bool:
        """Whether `link` is what `wish` asks for, and the network still has such addresses."""
        return (
            wish.network == link.network and wish.mac == link.mac
            and wish.address in ("", link.address) and wish.address6 in ("", link.address6)
            and bool(link.address) and link.address in self.pool
            and (link.address6 in self.pool6 if self.pool6 and link.address6 else not self.pool6 and not link.address6)
        )

    def choose(self, wish: Link, before: Link | None, taken: Taken) -> Link:
        """The link that `wish` asks for; what is left to us stays as it was `before`, if it can.

        Raises `BadValue`, `AddressInUse`, `NotEnoughResources`.
        """
        address = self._address(self.pool, wish.address, before.address if before else "", taken.addresses)
        address6 = ""
        if self.pool6 is not None:
            address6 = self._address(self.pool6, wish.address6, before.address6 if before else "", taken.addresses)
        elif wish.address6:
            raise BadValue("address", wish.address6, f"network {self.config.name} has no IPv6",
                           remedy="set its subnet6 in vemgr.toml")
        link = Link(wish.network, address, address6, wish.mac)
        self._check_mac(self.mac_of(link), taken.macs)
        return link

    @staticmethod
    def _address(pool: Pool, wish: str, before: str, taken: Mapping[str, str]) -> str:
        if wish:
            return pool.check(wish, taken)
        if before and before in pool and before not in taken:
            return before
        return pool.allocate(taken)

    def _check_mac(self, mac: str, taken: Mapping[str, str]) -> None:
        if mac == mac_for(self.config.bridge, "bridge"):
            raise BadValue("mac", mac, f"it is that of bridge {self.config.bridge}")
        if mac in taken:
            raise AddressInUse(f"MAC address {mac} is taken by VE {taken[mac]}", remedy="choose another", mac=mac,
                               ve=taken[mac])


def choose_subnets(configs: Sequence[NetworkConfig], path: str, foreign: Iterable[str]) -> dict[str, Subnets]:
    """As configured, as chosen before and remembered in the file `path`, or such that clash with nothing."""
    before = _remembered(path)
    claimed = [*foreign, *(config.subnet for config in configs if config.subnet != AUTO),
               *(known["subnet"] for known in before.values() if "subnet" in known)]
    found: dict[str, Subnets] = {}
    for config in configs:
        known = before.get(config.name, {})
        subnet = config.subnet
        if subnet == AUTO:
            subnet = known.get("subnet") or choose_subnet(claimed)
            claimed.append(subnet)
        subnet6 = config.subnet6
        if subnet6 == AUTO:
            subnet6 = known.get("subnet6") or private_subnet6(os.urandom(5))
        pool6 = None if subnet6 == OFF else Pool(subnet6)
        found[config.name] = Subnets(config, Pool(subnet), pool6)
        before[config.name] = {**known, "subnet": subnet, **({} if pool6 is None else {"subnet6": subnet6})}
    with storage_errors("remember the subnets"):
        replace_file(path, json.dumps(before))
    return found


def known_subnets(configs: Sequence[NetworkConfig], path: str) -> bool:
    """Whether none has to be chosen, for which one has to look at the whole host."""
    before = _remembered(path)
    return all(config.subnet != AUTO or "subnet" in before.get(config.name, {}) for config in configs)


def _remembered(path: str) -> dict[str, dict[str, str]]:
    try:
        with open(path, encoding="utf-8") as file:
            found: dict[str, Any] = json.load(file)
            if "subnet" in found:  # of vemgr 0.1, which knew one network
                return {"bridge": {"subnet": str(found["subnet"])}}
            return {str(name): {str(key): str(value) for key, value in known.items()} for name, known in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
