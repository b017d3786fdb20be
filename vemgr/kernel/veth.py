# SPDX-License-Identifier: GPL-2.0-or-later
"""A VE's link: what it is called, the request that gives birth to it, and the messages for its inside.

The pair is born in place, by one RTM_NEWLINK that names bridge, target namespace, addresses and state: 0.5-1 ms,
against 16 ms for a peer that is created here and moved there.
"""

from __future__ import annotations

import hashlib
import os
import socket
from ipaddress import IPv4Interface
from typing import Any

from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, nlmsg
from pyroute2.netlink.rtnl import RTM_DELLINK, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE, rt_type
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

IFF_UP = 1
LOOPBACK_INDEX = 1
#: Chosen at birth, so that the messages for the VE's inside are known before the link exists. Not 2: where the ip_gre,
#: sit or ip6_tunnel modules are loaded, each new namespace gets their fallback devices, which take the low ones.
INSIDE_INDEX = 32
INSIDE_NAME = "eth0"
#: Host ends take a random index from here on, 24 bits of room: far above the kernel's own, which count up from 1.
HOST_INDEX_BASE = 1 << 24

RT_TABLE_MAIN = 254
RTPROT_BOOT = 3


def host_ifname(ve_name: str, instance: str = "") -> str:
    """The host end's name for a VE: 12 characters, always the same for the same name and instance of vemgr.

    A hash, since an interface name has at most 15 characters and a VE's up to 63.
    """
    return "ve" + hashlib.sha256(f"{instance}/{ve_name}".encode()).hexdigest()[:10]


def mac_for(ve_name: str, salt: str) -> str:
    """A stable, locally administered unicast MAC address for a VE; another `salt` gives another."""
    digest = hashlib.sha256(f"{salt}/{ve_name}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))


def loopback_messages() -> list[bytes]:
    """For a VE without a network: its loopback, up. To be sent by `vemgr.kernel.netlink.send_batch`."""
    return [_encode(_link_up(LOOPBACK_INDEX), RTM_NEWLINK)]


def inside_messages(address: str, prefixlen: int, gateway: str, mtu: int) -> list[bytes]:
    """What sets up the inside of a VE whose eth0 was made by `BridgeNetwork.attach`: loopback, address, up, route."""
    interface = IPv4Interface(f"{address}/{prefixlen}")
    up = _link_up(INSIDE_INDEX)
    up["attrs"] = [["IFLA_MTU", mtu]]
    assign = ifaddrmsg()
    assign.update(family=socket.AF_INET, prefixlen=prefixlen, index=INSIDE_INDEX)
    assign["attrs"] = [
        ["IFA_LOCAL", address],
        ["IFA_ADDRESS", address],
        ["IFA_BROADCAST", str(interface.network.broadcast_address)],
    ]
    route = rtmsg()
    route.update(family=socket.AF_INET, table=RT_TABLE_MAIN, proto=RTPROT_BOOT, type=rt_type["unicast"])
    route["attrs"] = [["RTA_GATEWAY", gateway], ["RTA_OIF", INSIDE_INDEX]]
    created = NLM_F_CREATE | NLM_F_EXCL
    return [
        *loopback_messages(),
        _encode(assign, RTM_NEWADDR, created),
        _encode(up, RTM_NEWLINK),
        _encode(route, RTM_NEWROUTE, created),
    ]


def birth(
    host_ifname: str, *, host_index: int, bridge_index: int, netns_fd: int, mac: str, mtu: int
) -> dict[str, Any]:
    """The arguments of pyroute2's `link("add")` for a veth pair: the host end a port of the bridge and up, the peer
    `eth0` with `mac` and the index INSIDE_INDEX in the namespace of `netns_fd`.

    The kernel heeds the peer's index only if the host end asks for one too (veth_newlink). Written out, since
    pyroute2's shorthand for a peer cannot set the index, which is in its header.
    """
    peer = {
        "index": INSIDE_INDEX,
        "attrs": [
            ["IFLA_IFNAME", INSIDE_NAME],
            ["IFLA_NET_NS_FD", netns_fd],
            ["IFLA_ADDRESS", mac],
            ["IFLA_MTU", mtu],
        ],
    }
    veth = {"attrs": [["IFLA_INFO_KIND", "veth"], ["IFLA_INFO_DATA", {"attrs": [["VETH_INFO_PEER", peer]]}]]}
    return {
        "ifname": host_ifname, "index": host_index, "flags": IFF_UP, "change": IFF_UP,
        "master": bridge_index, "mtu": mtu, "IFLA_LINKINFO": veth,
    }


def random_host_index() -> int:
    """An index for a host end; in the rare case that it is taken, the kernel answers EEXIST and one tries again."""
    return HOST_INDEX_BASE + int.from_bytes(os.urandom(3), "big")


def death(host_ifname: str) -> bytes:
    """The message that deletes a host end, and its peer with it."""
    message = ifinfmsg()
    message["attrs"] = [["IFLA_IFNAME", host_ifname]]
    return _encode(message, RTM_DELLINK)


def _link_up(index: int) -> nlmsg:
    message = ifinfmsg()
    message.update(index=index, flags=IFF_UP, change=IFF_UP)
    return message


def _encode(message: nlmsg, kind: int, flags: int = 0) -> bytes:
    message["header"].update(type=kind, flags=NLM_F_REQUEST | NLM_F_ACK | flags, sequence_number=0, pid=0)
    message.encode()
    return bytes(message.data)
