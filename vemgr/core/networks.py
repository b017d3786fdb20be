# SPDX-License-Identifier: GPL-2.0-or-later
"""The networks of a host as its administrator describes them in vemgr.toml: the first one, and [network.NAME]."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from vemgr.core.addresses import parse_subnet, parse_subnet6
from vemgr.core.errors import BadParameter, BadValue
from vemgr.core.links import DEFAULT_NETWORK, check_network_name

AUTO, OFF = "auto", "off"
_BRIDGE = re.compile(r"[A-Za-z0-9_-]{1,15}")


class Mode(StrEnum):
    """What may pass between a network and the rest of the world.

    nat: VEs get out with the host's address, and only answers and published ports get in. routed: packets pass both
    ways unchanged, for subnets that the neighbours have a route to. isolated: nothing passes; VEs reach each other and
    the host.
    """

    NAT = "nat"
    ROUTED = "routed"
    ISOLATED = "isolated"


@dataclass(frozen=True)
class NetworkConfig:
    """`subnet`: IPv4, or "auto". `subnet6`: IPv6, "auto" for a private one (RFC 4193), or "off". `mode6`: the mode for
    IPv6, where it is another."""

    name: str = DEFAULT_NETWORK
    bridge: str = "vemgr0"
    subnet: str = AUTO
    subnet6: str = OFF
    mode: Mode = Mode.NAT
    mode6: Mode = Mode.NAT


KEYS = ("bridge", "subnet", "subnet6", "mode", "mode6")


def parse_network(name: str, values: Mapping[str, Any], where: str = "") -> NetworkConfig:
    """A network from the keys of vemgr.toml; `where` stands before a key in errors. Raises `BadParameter`,
    `BadValue`."""
    check_network_name("network", name)
    for key, value in values.items():
        if key not in KEYS:
            raise BadParameter(f"unknown key in vemgr.toml: {where}{key}", remedy=f"there are: {', '.join(KEYS)}")
        if not isinstance(value, str):
            raise BadValue(where + key, value, "not a text")
    mode = _mode(f"{where}mode", values.get("mode", Mode.NAT))
    mode6 = _mode(f"{where}mode6", values.get("mode6", mode))
    if (mode == Mode.ISOLATED) != (mode6 == Mode.ISOLATED):
        raise BadValue(f"{where}mode6", mode6, f"the mode for IPv4 is {mode}",
                       remedy="a network is isolated in both families or in none")
    network = NetworkConfig(name, **{**values, "mode": mode, "mode6": mode6})
    if not _BRIDGE.fullmatch(network.bridge):
        raise BadValue(f"{where}bridge", network.bridge, "not an interface name of at most 15 letters, digits, - and _",
                       remedy=f"name one with {where}bridge")
    if network.subnet != AUTO:
        parse_subnet(network.subnet, f"{where}subnet")
    if network.subnet6 not in (AUTO, OFF):
        parse_subnet6(network.subnet6, f"{where}subnet6")
    return network


def parse_networks(top: Mapping[str, Any], more: object) -> tuple[NetworkConfig, ...]:
    """The network that `top` describes, and those of the table [network]."""
    if not isinstance(more, Mapping) or not all(isinstance(values, Mapping) for values in more.values()):
        raise BadValue("network", more, "not a table of networks", remedy="write [network.NAME]")
    first = parse_network(DEFAULT_NETWORK, top)
    networks = [first]
    for name, values in more.items():
        if name == DEFAULT_NETWORK:
            raise BadValue("network", name, "this network is described by the keys outside of tables")
        networks.append(parse_network(name, {"bridge": f"{first.bridge}-{name}", **values}, f"network.{name}."))
    for key in ("bridge", "subnet"):
        _refuse_twice(networks, key)
    return tuple(networks)


def _refuse_twice(networks: list[NetworkConfig], key: str) -> None:
    seen: dict[str, str] = {}
    for network in networks:
        value = getattr(network, key)
        if value != AUTO and value in seen:
            raise BadValue(f"network.{network.name}.{key}", value, f"network {seen[value]} has it already")
        seen[value] = network.name


def _mode(key: str, text: str) -> Mode:
    try:
        return Mode(text)
    except ValueError:
        raise BadValue(key, text, "not a mode", remedy=f"choose from {', '.join(Mode)}") from None
