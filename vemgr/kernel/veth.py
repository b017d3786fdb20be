# SPDX-License-Identifier: GPL-2.0-or-later
"""A VE's link: what it is called, the request that gives birth to it, and the messages for its inside.

The pair is born in place, by one RTM_NEWLINK that names bridge, target namespace, addresses and state: 0.5-1 ms,
against 16 ms for a peer that is created here and moved there. The messages are put together by hand: pyroute2 takes
some 100 microseconds for each.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Address, IPv6Interface

from vemgr.core.plan import NETNS_FD
from vemgr.kernel.netlink import attribute, message, number, text

# linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/veth.h
NLM_F_EXCL, NLM_F_CREATE = 0x200, 0x400
RTM_NEWLINK, RTM_DELLINK, RTM_SETLINK, RTM_NEWADDR, RTM_NEWROUTE = 16, 17, 19, 20, 24
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_LINKINFO, IFLA_AF_SPEC, IFLA_NET_NS_FD = 1, 3, 4, 10, 18, 26, 28
IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES = 31, 32
IFLA_INFO_KIND, IFLA_INFO_DATA = 1, 2
VETH_INFO_PEER = 1
IFLA_BR_GROUP_FWD_MASK, IFLA_BR_MULTI_BOOLOPT, BR_BOOLOPT_NO_LL_LEARN = 9, 46, 0
IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE = 8, 1
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST = 1, 2, 4
IFA_F_NODAD = 0x02
RTA_OIF, RTA_GATEWAY = 4, 5
RT_TABLE_MAIN, RTPROT_BOOT, RTN_UNICAST = 254, 3, 1
IFF_UP = 1

#: struct ifinfomsg: family, type, index, flags, change
IFINFO = struct.Struct("=BxHiII")
#: struct ifaddrmsg: family, prefixlen, flags, scope, index
IFADDR = struct.Struct("=BBBBi")
#: struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
RTMSG = struct.Struct("=BBBBBBBBI")

LOOPBACK_INDEX = 1
#: Chosen at birth, so that the messages for the VE's inside are known before the link exists: 32 is eth0, 33 eth1.
#: Not 2: where the ip_gre, sit or ip6_tunnel modules are loaded, each new namespace gets their fallback devices, which
#: take the low ones.
INSIDE_INDEX = 32
_OF_OTHERS = ("veth", "vene")
#: Host ends take a random index from here on, 24 bits of room: far above the kernel's own, which count up from 1.
HOST_INDEX_BASE = 1 << 24


@dataclass(frozen=True)
class End:
    """The end of a link in a VE: eth`link`. `address` and `address6` with prefix length; "" is none.

    `gateway` and `gateway6` are of its default route, "" for none by this link. `ipv6`: whether the host has IPv6, so
    that a link without an IPv6 address has to be told to stay without.
    """

    mac: str
    address: str
    address6: str = ""
    gateway: str = ""
    gateway6: str = ""
    mtu: int = 1500
    link: int = 0
    ipv6: bool = True

    @property
    def index(self) -> int:
        return INSIDE_INDEX + self.link


@functools.lru_cache(maxsize=8)
def port_prefix(instance: str = "") -> str:
    """What the names of the host ends of one instance of vemgr begin with: "ve" and three characters.

    The rules against spoofed addresses know a VE's port by it, so that those of others are not theirs to judge: not
    "veth..." of docker, LXC and podman, nor "venet0" of OpenVZ.
    """
    candidates = ("ve" + _letters(instance + "/" * again, 3) for again in itertools.count())
    return next(candidate for candidate in candidates if not candidate.startswith(_OF_OTHERS))


@functools.lru_cache(maxsize=1024)
def host_ifname(ve_name: str, instance: str = "", link: int = 0) -> str:
    """The host end's name for a VE's link: 15 characters, always the same for the same name and instance of vemgr.

    A hash, since an interface name has at most 15 characters and a VE's up to 63.
    """
    return f"{port_prefix(instance)}{_letters(ve_name, 9)}{link}"


def _letters(name: str, count: int) -> str:
    """`count` characters of 32 kinds that tell one name from another."""
    hashed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return "".join("abcdefghijkmnpqrstuvwxyz23456789"[hashed >> 5 * position & 31] for position in range(count))


def mac_for(ve_name: str, salt: str) -> str:
    """A stable, locally administered unicast MAC address for a VE; another `salt` gives another."""
    digest = hashlib.sha256(f"{salt}/{ve_name}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))


def link_local(mac: str) -> str:
    """The IPv6 link-local address that follows from a MAC address: RFC 4291, appendix A."""
    first, *rest = bytes.fromhex(mac.replace(":", ""))
    return str(IPv6Address(bytes((0xFE, 0x80, *bytes(6), first ^ 2, *rest[:2], 0xFF, 0xFE, *rest[2:]))))


def loopback_messages() -> list[bytes]:
    """For a VE without a network: its loopback, up. To be sent by `vemgr.kernel.netlink.send_batch`."""
    return [_link_up(LOOPBACK_INDEX)]


def inside_messages(ends: Sequence[End]) -> list[bytes]:
    """What sets up the inside of a VE whose links were made by `birth`: loopback, addresses, up, routes."""
    messages = loopback_messages()
    for end in ends:
        if end.ipv6:
            messages.append(_without_automatic_address(end.index))
        messages += [_address4(end), _link_up(end.index)]
        if end.gateway:
            messages.append(_default_route(end.index, socket.AF_INET, end.gateway))
        if end.address6:
            messages += [_address6(end.index, f"{link_local(end.mac)}/64"), _address6(end.index, end.address6)]
        if end.gateway6:
            messages.append(_default_route(end.index, socket.AF_INET6, end.gateway6))
    return messages


def birth(host_ifname: str, *, host_index: int, bridge_index: int, end: End) -> bytes:
    """The request for a veth pair: the host end a port of the bridge and up, the peer `end` in the namespace that the
    sender has as descriptor `NETNS_FD`, with its name, MAC address, MTU and index.

    The kernel heeds the peer's index only if the host end asks for one too (veth_newlink). Unasked it makes a queue for
    each CPU and then puts all but one out of use (veth_init_queues): for either end it waits until no CPU can be using
    them, and meanwhile holds the lock that every other start needs for its links.
    """
    one_queue = number(IFLA_NUM_TX_QUEUES, 1) + number(IFLA_NUM_RX_QUEUES, 1)
    peer = b"".join((
        IFINFO.pack(socket.AF_UNSPEC, 0, end.index, 0, 0),
        text(IFLA_IFNAME, f"eth{end.link}"),
        number(IFLA_NET_NS_FD, NETNS_FD),
        attribute(IFLA_ADDRESS, bytes.fromhex(end.mac.replace(":", ""))),
        number(IFLA_MTU, end.mtu),
        one_queue,
    ))
    info = text(IFLA_INFO_KIND, "veth") + attribute(IFLA_INFO_DATA, attribute(VETH_INFO_PEER, peer))
    return message(RTM_NEWLINK, b"".join((
        IFINFO.pack(socket.AF_UNSPEC, 0, host_index, IFF_UP, IFF_UP),
        text(IFLA_IFNAME, host_ifname),
        number(IFLA_MASTER, bridge_index),
        number(IFLA_MTU, end.mtu),
        one_queue,
        attribute(IFLA_LINKINFO, info),
    )), NLM_F_CREATE | NLM_F_EXCL)


def bridge_guard(bridge_index: int) -> bytes:
    """The message that closes a way around the rules of a bridge: frames to its neighbours, 01:80:c2:00:00:00 to :0f.

    The kernel takes these in before the prerouting hook. It learned any source address from them, with which a VE took
    over what was meant for another, and gave them to the host as if they came from a plain interface: router
    advertisements, and packets from any address. Now those that may be are forwarded, so that they meet the rules.
    What is left (pauses and, where somebody turns it on, spanning tree) teaches the bridge nothing.
    """
    every = 0xFFF8  # all but the three that IEEE 802.1D lets no bridge forward; spanning tree passes while it is off
    no_learning = 1 << BR_BOOLOPT_NO_LL_LEARN
    data = (attribute(IFLA_BR_GROUP_FWD_MASK, struct.pack("=H", every))
            + attribute(IFLA_BR_MULTI_BOOLOPT, struct.pack("=II", no_learning, no_learning)))
    info = text(IFLA_INFO_KIND, "bridge") + attribute(IFLA_INFO_DATA, data)
    return message(RTM_NEWLINK, IFINFO.pack(socket.AF_UNSPEC, 0, bridge_index, 0, 0) + attribute(IFLA_LINKINFO, info))


def random_host_index() -> int:
    """An index for a host end; in the rare case that it is taken, the kernel answers EEXIST and one tries again."""
    return HOST_INDEX_BASE + int.from_bytes(os.urandom(3), "big")


def death(host_ifname: str) -> bytes:
    """The message that deletes a host end, and its peer with it."""
    return message(RTM_DELLINK, IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + text(IFLA_IFNAME, host_ifname))


def _link_up(index: int) -> bytes:
    return message(RTM_NEWLINK, IFINFO.pack(socket.AF_UNSPEC, 0, index, IFF_UP, IFF_UP))


def _without_automatic_address(index: int) -> bytes:
    """No link-local address by itself when the link comes up: it would be tentative for a second, and a VE without
    IPv6 would send router solicitations that the bridge has to drop."""
    mode = attribute(IFLA_INET6_ADDR_GEN_MODE, bytes((IN6_ADDR_GEN_MODE_NONE,)))
    return message(RTM_SETLINK, IFINFO.pack(socket.AF_UNSPEC, 0, index, 0, 0)
                   + attribute(IFLA_AF_SPEC, attribute(socket.AF_INET6, mode)))


@functools.lru_cache(maxsize=1024)
def _interface4(text_: str) -> tuple[int, bytes, bytes]:
    """Prefix length, address and broadcast address. Raises `ValueError`."""
    interface = IPv4Interface(text_)
    return interface.network.prefixlen, interface.packed, interface.network.broadcast_address.packed


def _address4(end: End) -> bytes:
    length, address, broadcast = _interface4(end.address)
    return message(RTM_NEWADDR, b"".join((
        IFADDR.pack(socket.AF_INET, length, 0, 0, end.index),
        attribute(IFA_LOCAL, address),
        attribute(IFA_ADDRESS, address),
        attribute(IFA_BROADCAST, broadcast),
    )), NLM_F_CREATE | NLM_F_EXCL)


def _address6(index: int, address: str) -> bytes:
    """Without duplicate address detection, which takes a second: vemgr knows who has which address, and the bridge
    lets nobody else use it."""
    interface = IPv6Interface(address)
    return message(RTM_NEWADDR, IFADDR.pack(socket.AF_INET6, interface.network.prefixlen, IFA_F_NODAD, 0, index)
                   + attribute(IFA_ADDRESS, interface.packed), NLM_F_CREATE | NLM_F_EXCL)


def _default_route(index: int, family: int, gateway: str) -> bytes:
    return message(RTM_NEWROUTE, RTMSG.pack(family, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, 0, RTN_UNICAST, 0)
                   + attribute(RTA_GATEWAY, socket.inet_pton(family, gateway)) + number(RTA_OIF, index),
                   NLM_F_CREATE | NLM_F_EXCL)
