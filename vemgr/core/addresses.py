# SPDX-License-Identifier: GPL-2.0-or-later
"""Which IPv4 subnet the VEs live in, and who gets which address of it. Pure: what is taken is told, not found out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address

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


def parse_subnet6(text: str, field: str = "subnet6") -> IPv6Network:
    """`text` as an IPv6 prefix for VEs. Raises BadValue."""
    try:
        subnet = IPv6Network(text)
    except ValueError as error:
        raise BadValue(field, text, str(error), remedy="write it as fd12:3456:789a::/64") from None
    if not 48 <= subnet.prefixlen <= 120:
        raise BadValue(field, text, "not a prefix of 48 to 120 bits", remedy="use one of 64 bits")
    if subnet.is_multicast or subnet.is_link_local or subnet.is_loopback or subnet.is_unspecified:
        raise BadValue(field, text, "not a range for hosts", remedy="use a private range such as fd12:3456:789a::/64")
    return subnet


def private_subnet6(random: bytes) -> str:
    """A /64 of our own: RFC 4193, section 3.2, with the 40 bits of `random` as global id."""
    return str(IPv6Network((bytes((0xFD, *random[:5])) + bytes(10), 64)))


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
        """Raises BadValue if `subnet` ("a.b.c.d/n" or "x::/n") is none, or too small."""
        self.network = parse_subnet6(subnet) if ":" in subnet else parse_subnet(subnet)
        self._gateway = self.network.network_address + 1
        self.subnet, self.gateway, self.prefixlen = str(self.network), str(self._gateway), self.network.prefixlen

    @property
    def size(self) -> int:
        """How many VEs can have an address. IPv6 has no broadcast address."""
        return self.network.num_addresses - (3 if self.network.version == 4 else 2)

    def __contains__(self, address: str) -> bool:
        return ip_address(address) in self.network

    def allocate(self, taken: Iterable[str]) -> str:
        """The lowest address that is not in `taken`. Raises NotEnoughResources when all are."""
        used = {int(found) for found in map(ip_address, taken) if found.version == self.network.version}
        first = int(self._gateway) + 1
        for number in range(first, first + self.size):
            if number not in used:
                return str(type(self._gateway)(number))
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
            wanted = type(self._gateway)(address)
        except ValueError as error:
            raise BadValue(field, address, str(error), remedy=f"give an address of {self.subnet}") from None
        if wanted not in self.network:
            raise BadValue(field, address, f"not in the VEs' subnet {self.subnet}", remedy=self._range())
        reserved = {self.network.network_address: "it is the subnet's own address",
                    self._gateway: "it is the gateway's"}
        if wanted.version == 4:
            reserved[self.network.broadcast_address] = "it is the subnet's broadcast address"
        if wanted in reserved:
            raise BadValue(field, address, reserved[wanted], remedy=self._range())
        owner = taken.get(str(wanted))
        if owner is not None:
            raise AddressInUse(
                f"address {wanted} is taken by VE {owner}",
                remedy=f"choose another, for instance {self.allocate(taken)}" if self._room(taken) else "",
                address=wanted,
                ve=owner,
            )
        return str(wanted)

    def _range(self) -> str:
        last = self.network.broadcast_address - (1 if self.network.version == 4 else 0)
        return f"choose from {self._gateway + 1} to {last}"

    def _room(self, taken: Mapping[str, str]) -> bool:
        return len(taken) < self.size
