# SPDX-License-Identifier: GPL-2.0-or-later
"""Which IPv4 subnet the VEs live in, and who gets which address of it. Pure: what is taken is told, not found out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import AddressValueError, IPv4Address, IPv4Network

from vemgr.core.errors import AddressInUse, BadValue, NotEnoughResources

#: Subnets to choose from when the administrator names none: 4,093 VEs each, and the last two smaller for hosts where
#: nearly everything is routed somewhere. Kept clear of what others take by default: docker 172.17-31 and
#: 192.168.0-240/20, podman 10.88 and upwards, lxc 10.0.3, libvirt 192.168.122, kubernetes' 10.32, 10.42, 10.43, 10.96
#: and 10.244, openvpn 10.8, the clouds' 10.0-10.2 and 10.128. A clash on this very host is checked besides; these
#: avoid the one that would come later, or that is only visible from further away.
CANDIDATES = (
    "10.77.0.0/20",
    "10.71.16.0/20",
    "10.83.32.0/20",
    "10.67.48.0/20",
    "172.16.208.0/20",
    "172.16.176.0/20",
    "192.168.247.0/24",
    "192.168.253.0/24",
)


def parse_subnet(text: str, field: str = "subnet") -> IPv4Network:
    """`text` as a subnet that can hold a gateway and at least one VE. Raises BadValue."""
    try:
        subnet = IPv4Network(text)
    except ValueError as error:
        raise BadValue(field, text, str(error), remedy=f"write it as {CANDIDATES[0]}") from None
    if "/" not in text or subnet.prefixlen > 29:
        raise BadValue(field, text, "too small for VEs", remedy="use a prefix of 29 bits or fewer")
    if subnet.is_multicast or subnet.is_loopback or subnet.is_link_local or subnet.is_unspecified:
        raise BadValue(field, text, "not a range for hosts", remedy=f"use a private range such as {CANDIDATES[0]}")
    return subnet


def choose_subnet(foreign: Iterable[str], candidates: Iterable[str] = CANDIDATES) -> str:
    """The first candidate that overlaps none of the `foreign` subnets ("a.b.c.d/n", host bits allowed).

    Raises NotEnoughResources if there is none.
    """
    taken = [IPv4Network(text, strict=False) for text in foreign]
    tried = [parse_subnet(text) for text in candidates]
    for subnet in tried:
        if not any(subnet.overlaps(other) for other in taken):
            return str(subnet)
    raise NotEnoughResources(
        "no subnet is free for VEs: each candidate overlaps an address or a route of this host",
        remedy="name one with subnet",
        candidates=", ".join(map(str, tried)),
        foreign=", ".join(sorted(map(str, taken))),
    )


class Pool:
    """The addresses of one subnet. The first host is the gateway (the host's end of the bridge), the rest are VEs'."""

    def __init__(self, subnet: str) -> None:
        """Raises BadValue if `subnet` ("a.b.c.d/n") is none, or too small."""
        self.network = parse_subnet(subnet)
        self._gateway = self.network.network_address + 1

    @property
    def subnet(self) -> str:
        return str(self.network)

    @property
    def gateway(self) -> str:
        return str(self._gateway)

    @property
    def prefixlen(self) -> int:
        return self.network.prefixlen

    @property
    def size(self) -> int:
        """How many VEs can have an address."""
        return self.network.num_addresses - 3

    def allocate(self, taken: Iterable[str]) -> str:
        """The lowest address that is not in `taken`. Raises NotEnoughResources when all are."""
        used = {int(IPv4Address(address)) for address in taken}
        first = int(self._gateway) + 1
        for number in range(first, first + self.size):
            if number not in used:
                return str(IPv4Address(number))
        raise NotEnoughResources(
            f"all {self.size} addresses of {self.subnet} are taken",
            remedy="destroy VEs that are not needed, or set a larger subnet",
            subnet=self.subnet,
        )

    def check(self, address: str, taken: Mapping[str, str], field: str = "address") -> str:
        """`address` in its usual spelling, if a VE may have it; `taken` maps addresses to the VEs that have them.

        Raises BadValue if it is no address or no VE's to have, AddressInUse if a VE has it.
        """
        try:
            wanted = IPv4Address(address)
        except AddressValueError as error:
            raise BadValue(field, address, str(error), remedy=f"give an address of {self.subnet}") from None
        if wanted not in self.network:
            raise BadValue(field, address, f"not in the VEs' subnet {self.subnet}", remedy=self._range())
        reserved = {
            self.network.network_address: "it is the subnet's own address",
            self.network.broadcast_address: "it is the subnet's broadcast address",
            self._gateway: "it is the gateway's",
        }
        if wanted in reserved:
            raise BadValue(field, address, reserved[wanted], remedy=self._range())
        for other, owner in taken.items():
            if IPv4Address(other) == wanted:
                raise AddressInUse(
                    f"address {wanted} is taken by VE {owner}",
                    remedy=f"choose another, for instance {self.allocate(taken)}" if self._room(taken) else "",
                    address=wanted,
                    ve=owner,
                )
        return str(wanted)

    def _range(self) -> str:
        return f"choose from {self._gateway + 1} to {self.network.broadcast_address - 1}"

    def _room(self, taken: Mapping[str, str]) -> bool:
        return len(taken) < self.size
