# SPDX-License-Identifier: GPL-2.0-or-later
"""A VE's links to networks, and the ports of the host that lead to it: as values, and as the text that says so."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_address

from vemgr.core.errors import BadValue

#: The network that a VE has unless it says otherwise, and the word for having none.
DEFAULT_NETWORK, NO_NETWORK = "bridge", "none"
#: The host end's name has one character for the number of the link.
MOST_LINKS = 8
_NETWORK = re.compile(r"[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_PUBLICATION = re.compile(
    r"(?:(?P<address>\[[^\]]*\]|[^\[\]:]+):)?(?P<port>\d{1,5}):(?P<inside>\d{1,5})(?:/(?P<protocol>\w+))?", re.ASCII)
PROTOCOLS = ("tcp", "udp")


@dataclass(frozen=True)
class Link:
    """One link, or the wish for one: "" is what vemgr is to choose. `address6` is an IPv6 address.

    The MAC stays "" where it follows from the address.
    """

    network: str = DEFAULT_NETWORK
    address: str = ""
    address6: str = ""
    mac: str = ""

    def __str__(self) -> str:
        options = [f"address={self.address}", f"address={self.address6}", f"mac={self.mac}"]
        given = [option for option in options if not option.endswith("=")]
        return self.network + (f":{','.join(given)}" if given else "")

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.address, self.address6)))


@dataclass(frozen=True)
class Publication:
    """Port `port` of the host, on `address` or "" for all, leads to port `inside` of the VE."""

    port: int
    inside: int
    protocol: str = "tcp"
    address: str = ""

    def __str__(self) -> str:
        shown = f"[{self.address}]:" if ":" in self.address else f"{self.address}:" if self.address else ""
        return f"{shown}{self.port}:{self.inside}" + (f"/{self.protocol}" if self.protocol != "tcp" else "")

    @property
    def everywhere(self) -> bool:
        """Whether it means all addresses of a family, or of both."""
        return not self.address or ip_address(self.address).is_unspecified

    @property
    def families(self) -> tuple[int, ...]:
        """The IP versions it is about."""
        return (ip_address(self.address).version,) if self.address else (4, 6)

    def clashes(self, other: Publication) -> bool:
        """Whether a packet could belong to both."""
        if (self.port, self.protocol) != (other.port, other.protocol):
            return False
        if not set(self.families) & set(other.families):
            return False
        return self.everywhere or other.everywhere or self.address == other.address


def parse_links(field: str, text: str) -> tuple[Link, ...]:
    """Links from text such as "bridge" or "lan:address=10.1.2.3,mac=02:00:00:00:00:05 dmz"; "none" is no link."""
    words = text.split()
    if words == [NO_NETWORK]:
        return ()
    if not words:
        raise BadValue(field, text, "no network is named", remedy=f"write '{NO_NETWORK}' for a VE without one")
    if len(words) > MOST_LINKS:
        raise BadValue(field, text, f"more than {MOST_LINKS} links")
    return tuple(_parse_link(field, word) for word in words)


def _parse_link(field: str, text: str) -> Link:
    network, colon, rest = text.partition(":")
    check_network_name(field, network)
    values = {"address": "", "address6": "", "mac": ""}
    for option in rest.split(",") if colon else ():
        key, equals, value = option.partition("=")
        if not equals or key not in ("address", "mac"):
            raise BadValue(field, text, f"'{option}' is no option of a link",
                           remedy=f"write it as {network}:address=10.1.2.3,mac=02:00:00:00:00:05")
        parsed = parse_mac(field, value) if key == "mac" else parse_address(field, value)
        name = "address6" if key == "address" and ":" in parsed else key
        if values[name]:
            raise BadValue(field, text, f"{key} is given twice",
                           remedy="a link has one address of each family, and one MAC address")
        values[name] = parsed
    return Link(network, **values)


def show_links(links: tuple[Link, ...]) -> str:
    return " ".join(map(str, links)) or NO_NETWORK


def check_network_name(field: str, name: str) -> str:
    if not _NETWORK.fullmatch(name) or name == NO_NETWORK:
        raise BadValue(field, name, "not the name of a network: 1 to 15 characters a-z, 0-9 and '-'",
                       remedy="'vemgr network list' shows those there are")
    return name


def parse_address(field: str, text: str) -> str:
    """An IPv4 or IPv6 address in its usual spelling."""
    try:
        if "%" in text:  # a scope names one of the host's links, and Python takes it for a part of the address
            raise AddressValueError
        return str(IPv6Address(text) if ":" in text else IPv4Address(text))
    except AddressValueError:
        raise BadValue(field, text, "not an address", remedy="write one like 10.1.2.3 or fd00::5") from None


def parse_mac(field: str, text: str) -> str:
    """A MAC address that a link can have: unicast and not zero, in lower case."""
    mac = text.lower().replace("-", ":")
    if not _MAC.fullmatch(mac):
        raise BadValue(field, text, "not a MAC address", remedy="write one like 02:00:00:00:00:05")
    if int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise BadValue(field, text, "a group or zero address, which no link can have",
                       remedy="write one like 02:00:00:00:00:05")
    return mac


def parse_publications(field: str, text: str) -> tuple[Publication, ...]:
    """Published ports from text such as "8080:80 192.0.2.1:53:53/udp [::]:443:443"."""
    found: list[Publication] = []
    for word in text.split():
        publication = _parse_publication(field, word)
        if any(publication.clashes(other) for other in found):
            raise BadValue(field, word, "the port is published twice")
        found.append(publication)
    return tuple(found)


def _parse_publication(field: str, text: str) -> Publication:
    match = _PUBLICATION.fullmatch(text)
    if match is None:
        raise BadValue(field, text, "not a published port", remedy="write it as 8080:80, 192.0.2.1:53:53/udp or "
                       "[::]:443:443, the host's port first")
    protocol = match["protocol"] or "tcp"
    if protocol not in PROTOCOLS:
        raise BadValue(field, text, f"'{protocol}' is neither tcp nor udp")
    ports = [int(match["port"]), int(match["inside"])]
    if not all(0 < port < 65536 for port in ports):
        raise BadValue(field, text, "a port is a number from 1 to 65535")
    address = parse_address(field, match["address"].strip("[]")) if match["address"] else ""
    if address and ip_address(address).is_multicast:
        raise BadValue(field, text, "a multicast address is nobody's own")
    if address == "::1":
        # IPv6 has no route_localnet: what is sent to ::1 never leaves the loopback interface.
        raise BadValue(field, text, "::1 cannot be forwarded to a VE", remedy="use 127.0.0.1 or an address of the host")
    return Publication(ports[0], ports[1], protocol, address)


def show_publications(publications: tuple[Publication, ...]) -> str:
    return " ".join(map(str, publications))
