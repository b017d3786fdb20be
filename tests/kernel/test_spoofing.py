# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VE's port lets through: frames made by hand in one VE, and which of them arrive in another."""

import contextlib
import importlib.util
import struct
import subprocess
from ipaddress import ip_address
from pathlib import Path

import pytest

from vemgr.kernel.elements import own_elements
from vemgr.kernel.firewall import Firewall
from vemgr.kernel.network import BridgeNetwork
from vemgr.kernel.ruleset import Rules, Zone
from vemgr.kernel.veth import inside_messages, link_local

# With --import-mode=importlib the directory of a test is not on the path.
_spec = importlib.util.spec_from_file_location("network_stage", Path(__file__).with_name("network_stage.py"))
stage = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(stage)

TABLE = "vetest"
RULES = Rules((Zone(stage.BRIDGE, stage.SUBNET, stage.GATEWAY, stage.SUBNET6, stage.GATEWAY6),), "ve")
OWN, OTHER = stage.MAC, "02:00:00:00:00:03"
OTHER4, OTHER6 = "10.77.0.3", "fd77::3"
LOCAL = link_local(OWN)

#: Sends the frames that standard input has, in hexadecimal.
SEND = """
import socket, sys
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as s:
    s.bind(("eth0", 0))
    for line in sys.stdin.read().split():
        s.send(bytes.fromhex(line))
"""
#: Prints the numbers at the end of the frames that arrive, up to number 255.
RECEIVE = """
import socket
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as s:
    s.bind(("eth0", 3))
    s.settimeout(20)
    print("ready", flush=True)
    while True:
        data, origin = s.recvfrom(2000)
        if data[-5:-1] == b"mark" and origin[2] != socket.PACKET_OUTGOING:
            print(data[-1], flush=True)
            if data[-1] == 255:
                break
"""


def mac(text):
    return bytes.fromhex(text.replace(":", ""))


def packed(text):
    return ip_address(text).packed


def frame(kind, body, source=OWN):
    return b"\xff" * 6 + mac(source) + struct.pack("!H", kind) + body


def ipv4(source, protocol=253):
    """With its checksum: br_netfilter, where it is loaded, drops what has none."""
    header = struct.pack("!BBHHHBB2x4s4s", 0x45, 0, 60, 0, 0, 64, protocol, packed(source), packed(OTHER4))
    total = sum(struct.unpack("!10H", header))
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return header[:10] + struct.pack("!H", checksum) + header[12:] + b"\0" * 35


def arp(hardware, protocol, operation=1):
    return struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, operation, mac(hardware), packed(protocol), b"\0" * 6,
                       packed(OTHER4)) + b"\0" * 13


def ipv6(source, next_header=253, payload=b"\0" * 24):
    body = payload + b"\0" * 11
    addresses = packed(source) + packed("ff02::1")
    return struct.pack("!IHBB", 6 << 28, len(body) + 5, next_header, 255) + addresses + body


def icmpv6(kind, target="::", source=LOCAL, before=b"", next_header=58):
    return ipv6(source, next_header, before + struct.pack("!BBHI16s", kind, 0, 0, 0, packed(target)))


#: A hop-by-hop header in front, behind which some filters look for nothing.
HOP_BY_HOP = bytes((58, 0, 1, 4, 0, 0, 0, 0))

GOOD = {
    "its IPv4 address": frame(0x0800, ipv4(stage.VE)),
    "its ARP question": frame(0x0806, arp(OWN, stage.VE)),
    "its ARP answer": frame(0x0806, arp(OWN, stage.VE, 2)),
    "its IPv6 address": frame(0x86DD, ipv6(stage.VE6)),
    "its link-local address": frame(0x86DD, ipv6(LOCAL)),
    "a neighbour solicitation": frame(0x86DD, icmpv6(135, OTHER6)),
    "a neighbour advertisement of its own": frame(0x86DD, icmpv6(136, stage.VE6)),
    "a neighbour advertisement of its link-local address": frame(0x86DD, icmpv6(136, LOCAL, stage.VE6)),
    "an echo request": frame(0x86DD, icmpv6(128)),
}
BAD = {
    "another's IPv4 address": frame(0x0800, ipv4(OTHER4)),
    "the gateway's IPv4 address": frame(0x0800, ipv4(stage.GATEWAY)),
    "no IPv4 address": frame(0x0800, ipv4("0.0.0.0")),
    "another's MAC address": frame(0x0800, ipv4(stage.VE), OTHER),
    "another's IPv4 and MAC address": frame(0x0800, ipv4(OTHER4), OTHER),
    "another's address in ARP": frame(0x0806, arp(OWN, OTHER4)),
    "the gateway's address in an ARP answer": frame(0x0806, arp(OWN, stage.GATEWAY, 2)),
    "another's MAC address in ARP": frame(0x0806, arp(OTHER, stage.VE)),
    "another's IPv6 address": frame(0x86DD, ipv6(OTHER6)),
    "the gateway's IPv6 address": frame(0x86DD, ipv6(stage.GATEWAY6)),
    "another's link-local address": frame(0x86DD, ipv6(link_local(OTHER))),
    "no IPv6 address": frame(0x86DD, ipv6("::")),
    "IPv6 with another's MAC address": frame(0x86DD, ipv6(stage.VE6), OTHER),
    "a router advertisement": frame(0x86DD, icmpv6(134)),
    "a router advertisement behind a hop-by-hop header": frame(0x86DD, icmpv6(134, before=HOP_BY_HOP, next_header=0)),
    "a redirect": frame(0x86DD, icmpv6(137)),
    "a neighbour advertisement for another": frame(0x86DD, icmpv6(136, OTHER6)),
    "a neighbour advertisement for the gateway": frame(0x86DD, icmpv6(136, stage.GATEWAY6, stage.VE6)),
    "a spoofed address in a VLAN": frame(0x8100, struct.pack("!HH", 5, 0x0800) + ipv4(OTHER4)),
    "a spoofed address in two VLANs": frame(0x88A8, struct.pack("!HHHH", 5, 0x8100, 5, 0x0800) + ipv4(OTHER4)),
    "another protocol": frame(0x88B5, b"\0" * 46),
    "an STP message": frame(39, b"\x42\x42\x03" + b"\0" * 43),
}
ALL = {**GOOD, **BAD}


@contextlib.asynccontextmanager
async def two_ves(firewall):
    """Two VEs on a bridge; the rules are there before they are."""
    firewall.ensure(RULES)
    async with BridgeNetwork(stage.BRIDGE) as net:
        await net.ensure_bridge(stage.GATEWAY, stage.PREFIXLEN)
        await net.ensure_ipv6(stage.GATEWAY6, 64)
        with contextlib.closing(stage.Namespace()) as ve, contextlib.closing(stage.Namespace()) as other:
            for number, (namespace, end) in enumerate((
                (ve, stage.end(address6=f"{stage.VE6}/64")),
                (other, stage.end(mac=OTHER, address=f"{OTHER4}/20", address6=f"{OTHER6}/64")),
            )):
                await stage.attach(net, f"ve{number}", namespace, end)
                stage.send_inside(namespace, inside_messages([end]))
            yield ve, other


def own(number=0, hardware=OWN, addresses=(stage.VE, stage.VE6)):
    return own_elements(f"ve{number}", hardware, addresses)


def arrived(ve, other, last=GOOD["its IPv4 address"]):
    """Which of all frames that `ve` sends arrive at `other`; `last` is one that is sure to."""
    receiver = other.serve(RECEIVE)
    frames = [*ALL.values(), last]
    numbers = [*range(len(ALL)), 255]
    marked = [data + b"mark" + bytes((number,)) for data, number in zip(frames, numbers, strict=True)]
    ve.python(SEND, input="\n".join(data.hex() for data in marked))
    seen = {int(line) for line in receiver.communicate(timeout=20)[0].split()} - {255}
    return {name for number, name in enumerate(ALL) if number in seen}


async def a_ve_speaks_for_itself_alone():
    firewall = Firewall(TABLE)
    async with two_ves(firewall) as (ve, other):
        assert firewall.add(own())
        assert arrived(ve, other) == set(GOOD)
        # All of it would arrive but for the chain: else this test would prove nothing. (STP is the bridge's own.)
        subprocess.run(["nft", "flush", "chain", "bridge", TABLE, "from_port"], check=True)
        assert arrived(ve, other) == set(ALL)


async def a_port_without_elements_is_shut():
    firewall = Firewall(TABLE)
    async with two_ves(firewall) as (ve, other):
        assert firewall.add(own(1, OTHER, (OTHER4, OTHER6)))
        ve.run("ping", "-c1", "-W1", OTHER4, code=1)
        assert firewall.add(own())
        ve.run("ping", "-c1", "-W2", OTHER4)
        ve.run("ping", "-c1", "-W2", OTHER6)
        ve.run("ping", "-c1", "-W2", stage.GATEWAY6)
        other.run("ping", "-c1", "-W2", stage.VE6)
        assert firewall.take(own())
        ve.run("ping", "-c1", "-W1", stage.GATEWAY, code=1)
        assert not firewall.take(own()), "a second time there is nothing to take"


async def without_an_ipv6_address_there_is_no_ipv6():
    firewall = Firewall(TABLE)
    async with two_ves(firewall) as (ve, other):
        assert firewall.add(own(addresses=[stage.VE]))
        assert arrived(ve, other) == {name for name in GOOD if "IPv4" in name or "ARP" in name}


async def ports_of_others_are_not_judged():
    """A host that an administrator has put on the bridge, and another vemgr's VEs."""
    firewall = Firewall(TABLE)
    firewall.ensure(Rules(RULES.zones, "ve9"))
    async with BridgeNetwork(stage.BRIDGE) as net:
        await net.ensure_bridge(stage.GATEWAY, stage.PREFIXLEN)
        with contextlib.closing(stage.Namespace()) as host, contextlib.closing(stage.Namespace()) as other:
            for name, namespace in (("ve1", host), ("ve2", other)):
                end = stage.end(mac=OWN if namespace is host else OTHER)
                await stage.attach(net, name, namespace, end)
                stage.send_inside(namespace, inside_messages([end]))
            assert arrived(host, other) == set(ALL)


async def elements_make_what_the_text_makes():
    """What is added by netlink and what libnftables makes of the same elements is one."""
    firewall = Firewall(TABLE)
    firewall.ensure(RULES, own())
    once = firewall.listing()
    firewall.ensure(RULES)
    assert firewall.add(own())
    assert firewall.listing() == once
    assert firewall.add(own()), "a second time changes nothing"
    assert firewall.listing() == once
    assert firewall.take(own())
    firewall.remove()
    assert not firewall.add(own()), "there is no table"


@pytest.mark.skipif(not stage.can_play(), reason="cannot make network namespaces and links in them")
@pytest.mark.parametrize("scenario", [
    a_ve_speaks_for_itself_alone, a_port_without_elements_is_shut, without_an_ipv6_address_there_is_no_ipv6,
    ports_of_others_are_not_judged, elements_make_what_the_text_makes,
], ids=lambda scenario: scenario.__name__)
def test_spoofing(scenario):
    stage.play(__file__, scenario.__name__)
