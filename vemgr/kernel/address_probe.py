# SPDX-License-Identifier: GPL-2.0-or-later
"""Asking whether somebody behind a port of a bridge has an address: an ARP probe (RFC 5227, section 2.1), or the
neighbour solicitation of duplicate address detection (RFC 4862, section 5.4).

The question goes out by the port alone, not to all VEs on the bridge, and the answer is seen there.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from vemgr.kernel import packet_filter
from vemgr.kernel.packet_filter import Instruction

ETH_P_ALL, ETH_P_ARP, ETH_P_IPV6 = 0x0003, 0x0806, 0x86DD
ARP_REQUEST, ICMPV6, ND_SOLICIT, ND_ADVERT = 1, 58, 135, 136
#: A host on a wire answers within a millisecond, one on a wireless link may sleep for a tenth of a second. RFC 5227
#: waits for seconds, since its hosts come up together with their switches; here the link has long been up.
PROBES, INTERVAL = 3, 0.1  # seconds

#: struct ethhdr: destination, source, type
_ETHERNET = struct.Struct("!6s6sH")
#: struct arphdr for IPv4 over Ethernet: types and sizes, operation, sender's MAC and IP, target's MAC and IP
_ARP = struct.Struct("!HHBBH6s4s6s4s")
#: struct ipv6hdr: version, payload length, next header, hop limit, source, destination
_IPV6 = struct.Struct("!IHBB16s16s")
#: Neighbour solicitation and advertisement: type, code, checksum, flags, target (RFC 4861, section 4.3)
_NEIGHBOUR = struct.Struct("!BBHI16s")
_SIZE = 128


@dataclass(frozen=True)
class Holder:
    """Who has an address: the MAC address that answered, and the name of the port that it is behind."""

    address: str
    mac: str
    port: str


async def find_holder(ports: Iterable[str], mac: str, addresses: Iterable[str]) -> Holder | None:
    """Who behind one of `ports` (interface names) has one of `addresses`. `mac`: what we ask from.

    Takes PROBES * INTERVAL seconds unless there is an answer. Raises OSError.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Future[Holder] = loop.create_future()
    own, asked = _packed(mac), [ip_address(address) for address in addresses]
    questions = [question(own, address) for address in asked]
    with contextlib.ExitStack() as stack:
        sockets = []
        for port in ports:
            with _nobody_there():
                listening = stack.enter_context(_listening(port))
                loop.add_reader(listening, _hear, listening, own, asked, found)
                stack.callback(loop.remove_reader, listening)
                sockets.append(listening)
        for _ in range(PROBES if sockets else 0):
            for listening in sockets:
                for frame in questions:
                    with _nobody_there():
                        listening.send(frame)
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(asyncio.shield(found), INTERVAL)
    return None


def _listening(port: str) -> socket.socket:
    # Of no protocol until the filter is there, so that nothing else is queued.
    listening = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
    try:
        packet_filter.attach(listening, _CLAIMS)
        listening.bind((port, ETH_P_ALL))
    except BaseException:
        listening.close()
        raise
    return listening


@contextlib.contextmanager
def _nobody_there() -> Iterator[None]:
    """A port that is down, has gone or takes nothing just now: nobody behind it can be asked."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENETDOWN, errno.ENXIO, errno.ENODEV, errno.ENOBUFS, errno.EAGAIN):
            raise


def _hear(listening: socket.socket, own: bytes, asked: Sequence[IPv4Address | IPv6Address],
          found: asyncio.Future[Holder]) -> None:
    try:
        frame, (port, _, direction, *_) = listening.recvfrom(_SIZE)
    except OSError:  # the port has gone down; the next question says the same
        return
    claimed = None if direction == socket.PACKET_OUTGOING else claim(frame)
    if claimed is None or claimed[1] == own or found.done():
        return
    for address in asked:
        if claimed[0] == address.packed:
            found.set_result(Holder(str(address), claimed[1].hex(":"), port))


def _packed(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def question(own: bytes, address: IPv4Address | IPv6Address) -> bytes:
    """The frame that asks for `address` without claiming one."""
    if isinstance(address, IPv4Address):
        return (_ETHERNET.pack(b"\xff" * 6, own, ETH_P_ARP)
                + _ARP.pack(1, 0x0800, 6, 4, ARP_REQUEST, own, bytes(4), bytes(6), address.packed))
    group = IPv6Address(b"\xff\x02" + bytes(9) + b"\x01\xff" + address.packed[-3:]).packed  # solicited-node
    body = _NEIGHBOUR.pack(ND_SOLICIT, 0, 0, 0, address.packed)
    checksum = _checksum(bytes(16) + group + struct.pack("!II", len(body), ICMPV6) + body)
    body = _NEIGHBOUR.pack(ND_SOLICIT, 0, checksum, 0, address.packed)
    return (_ETHERNET.pack(b"\x33\x33" + group[-4:], own, ETH_P_IPV6)
            + _IPV6.pack(6 << 28, len(body), ICMPV6, 255, bytes(16), group) + body)


def claim(frame: bytes) -> tuple[bytes, bytes] | None:
    """The address that a frame's sender says to have, or is about to take, and his MAC address."""
    if len(frame) < _ETHERNET.size:
        return None
    _, sender, kind = _ETHERNET.unpack_from(frame)
    if kind == ETH_P_ARP and len(frame) >= _ETHERNET.size + _ARP.size:
        _, _, _, _, operation, mac, source, _, target = _ARP.unpack_from(frame, _ETHERNET.size)
        if source != bytes(4):
            return source, mac
        return (target, mac) if operation == ARP_REQUEST else None
    at = _ETHERNET.size + _IPV6.size
    if kind == ETH_P_IPV6 and len(frame) >= at + _NEIGHBOUR.size:
        source = _IPV6.unpack_from(frame, _ETHERNET.size)[4]
        type_, _, _, _, target = _NEIGHBOUR.unpack_from(frame, at)
        if type_ == ND_ADVERT or (type_ == ND_SOLICIT and source == bytes(16)):
            return target, sender
        return source, sender
    return None


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


_CLAIMS: list[Instruction] = [
    (packet_filter.LOAD_WORD, 0, 0, packet_filter.AD_VLAN_TAGGED),
    (packet_filter.JUMP_EQUAL, 0, 9, 0),  # on another network than the bridge's
    (packet_filter.LOAD_HALF, 0, 0, 12),
    (packet_filter.JUMP_EQUAL, 6, 0, ETH_P_ARP),
    (packet_filter.JUMP_EQUAL, 0, 6, ETH_P_IPV6),
    (packet_filter.LOAD_BYTE, 0, 0, 20),
    (packet_filter.JUMP_EQUAL, 0, 4, ICMPV6),
    (packet_filter.LOAD_BYTE, 0, 0, 54),
    (packet_filter.JUMP_EQUAL, 1, 0, ND_SOLICIT),
    (packet_filter.JUMP_EQUAL, 0, 1, ND_ADVERT),
    (packet_filter.RETURN, 0, 0, packet_filter.PASS),
    (packet_filter.RETURN, 0, 0, packet_filter.DROP),
]
