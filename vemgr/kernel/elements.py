# SPDX-License-Identifier: GPL-2.0-or-later
"""A VE's elements in the sets and maps of vemgr's tables, as text for nft(8) and as bytes for netlink.

A start adds them and an end takes them away by one small transaction, without libnftables, which would fetch and
parse what is there: some 50 microseconds instead of milliseconds.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vemgr.core.links import Publication
from vemgr.kernel.netlink import attribute, message, text
from vemgr.kernel.veth import link_local

# linux/netfilter/nfnetlink.h, nf_tables.h
NFNL_SUBSYS_NFTABLES = 10
NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 16, 17
NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM = 12, 14
NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_ELEMENTS = 1, 2, 3
NFTA_LIST_ELEM = 1
NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_DATA = 1, 2
NFTA_DATA_VALUE = 1
NLA_F_NESTED = 0x8000
NLM_F_CREATE = 0x400
_FAMILIES = {"inet": 1, "bridge": 7}
_PROTOCOLS = {"tcp": 6, "udp": 17}
#: struct nfgenmsg: family, version, resource id in network byte order
_NFGEN = struct.Struct("!BBH")


@dataclass(frozen=True)
class Element:
    """One element: parts of its key, and of its value in a map, each as text and as bytes."""

    family: str
    set: str
    key: tuple[tuple[str, bytes], ...]
    value: tuple[tuple[str, bytes], ...] = ()

    def __str__(self) -> str:
        key, value = (" . ".join(shown for shown, _ in parts) for parts in (self.key, self.value))
        return f"{key} : {value}" if value else key

    def encode(self) -> bytes:
        """NFTA_LIST_ELEM, with each part of a concatenation in registers of 32 bits."""
        found = b""
        for kind, parts in ((NFTA_SET_ELEM_KEY, self.key), (NFTA_SET_ELEM_DATA, self.value)):
            if parts:
                value = b"".join(data + bytes(-len(data) % 4) for _, data in parts)
                found += attribute(kind | NLA_F_NESTED, attribute(NFTA_DATA_VALUE, value))
        return attribute(NFTA_LIST_ELEM | NLA_F_NESTED, found)


def own_elements(port: str, mac: str, addresses: Iterable[str]) -> list[Element]:
    """What lets a VE's port send from these addresses, and with IPv6 from the link-local one."""
    sender = ((f'"{port}"', port.encode().ljust(16, b"\0")), (mac, bytes.fromhex(mac.replace(":", ""))))
    found = []
    for address in addresses:
        if ":" not in address:
            found.append(Element("bridge", "own4", (*sender, _ip(address))))
            continue
        for own in (address, link_local(mac)):
            shown, packed = _ip(own)
            found.append(Element("bridge", "own6", (*sender, (shown, packed))))
            found.append(Element("bridge", "target6", (*sender, (f"0x{packed.hex()}", packed))))
    return found


def published_elements(publication: Publication, address: str, address6: str) -> list[Element]:
    """What leads a port of the host to a VE with these addresses; none for a family that either does not have."""
    found = []
    for version, inside in ((4, address), (6, address6)):
        if not inside or version not in publication.families:
            continue
        key = (_protocol(publication.protocol), _port(publication.port))
        value = (_ip(inside), _port(publication.inside))
        if publication.everywhere:
            found.append(Element("inet", f"any{version}", key, value))
        else:
            found.append(Element("inet", f"at{version}", (_ip(publication.address), *key), value))
    return found


def share_elements(classid: int, addresses: Iterable[str]) -> list[Element]:
    """What gives packets from these addresses their class on the uplink (`kernel.uplink`)."""
    return [Element("inet", "share6" if ":" in address else "share4", (_ip(address),), (_class(classid),))
            for address in addresses]


def common_share_elements(classid: int, bridges: Iterable[str]) -> list[Element]:
    """The same for all that comes from these bridges."""
    return [Element("inet", "share", ((f'"{bridge}"', bridge.encode().ljust(16, b"\0")),), (_class(classid),))
            for bridge in bridges]


def additions(table: str, elements: Sequence[Element]) -> list[bytes]:
    """The messages of a transaction that adds them; those that are there already stay."""
    return _transaction(NFT_MSG_NEWSETELEM, table, elements, NLM_F_CREATE)


def removals(table: str, elements: Sequence[Element]) -> list[bytes]:
    """The messages of a transaction that takes them away; the kernel refuses it (ENOENT) if one is not there."""
    return _transaction(NFT_MSG_DELSETELEM, table, elements, 0)


def _transaction(kind: int, table: str, elements: Sequence[Element], flags: int) -> list[bytes]:
    by_set: dict[tuple[str, str], bytes] = {}
    for element in elements:
        key = (element.family, element.set)
        by_set[key] = by_set.get(key, b"") + element.encode()
    messages = [
        message(NFNL_SUBSYS_NFTABLES << 8 | kind, b"".join((
            _NFGEN.pack(_FAMILIES[family], 0, 0),
            text(NFTA_SET_ELEM_LIST_TABLE, table), text(NFTA_SET_ELEM_LIST_SET, name),
            attribute(NFTA_SET_ELEM_LIST_ELEMENTS | NLA_F_NESTED, encoded),
        )), flags)
        for (family, name), encoded in by_set.items()
    ]
    begin, end = (message(bound, _NFGEN.pack(0, 0, NFNL_SUBSYS_NFTABLES))
                  for bound in (NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END))
    return [begin, *messages, end]


def _ip(address: str) -> tuple[str, bytes]:
    return address, socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def _port(number: int) -> tuple[str, bytes]:
    return str(number), struct.pack("!H", number)


def _class(classid: int) -> tuple[str, bytes]:
    return f"{classid >> 16:x}:{classid & 0xFFFF:x}", struct.pack("=I", classid)


def _protocol(name: str) -> tuple[str, bytes]:
    return name, bytes((_PROTOCOLS[name],))
