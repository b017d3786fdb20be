# SPDX-License-Identifier: GPL-2.0-or-later
"""The messages for a VE's inside, as bytes and read back; and names, addresses and answers. No root, no network."""

import socket
import struct
import sys
from dataclasses import replace

import pytest
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from vemgr.core.plan import NETNS_FD
from vemgr.kernel import netlink, veth
from vemgr.kernel.veth import (
    End,
    birth,
    death,
    host_ifname,
    inside_messages,
    link_local,
    loopback_messages,
    mac_for,
    port_prefix,
)

HOST_END = "vewahq75qwzky90"
REQUEST_ACK, CREATE_EXCL = 0x5, 0x600

pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="the golden bytes are those of a little-endian host")

LOOPBACK_UP = "20000000100005000000000000000000 00000000010000000100000001000000"
NO_AUTOMATIC_ADDRESS = ("30000000130005000000000000000000 00000000200000000000000000000000"
                        " 10001a00 0c000a00 0500080001000000")
GOLDEN = [
    LOOPBACK_UP,
    NO_AUTOMATIC_ADDRESS,
    "30000000140005060000000000000000 0214000020000000" "0800020 00a4d0002".replace(" ", "")
    + "080001000a4d0002" "080004000a4d0fff",
    "20000000100005000000000000000000 00000000200000000100000001000000",
    "2c000000180005060000000000000000 02000000fe03000100000000 080005000a4d0001 0800040020000000",
]


MAC = "02:00:00:00:00:05"
END = End(MAC, "10.77.0.2/20", gateway="10.77.0.1")
BOTH = replace(END, address6="fd00::5/64", gateway6="fd00::1", link=1)


def messages(*ends):
    return inside_messages(ends or [END])


def decoded(message):
    [read] = MarshalRtnl().parse(message)
    return read


def test_golden_bytes():
    expected = [bytes.fromhex(text.replace(" ", "")) for text in GOLDEN]
    assert [m.hex(" ", 4) for m in messages()] == [m.hex(" ", 4) for m in expected]


def test_every_message_wants_an_acknowledgement_and_comes_in_order():
    kinds = [(netlink.MESSAGE_NAMES[m["header"]["type"]], m["header"]["flags"]) for m in map(decoded, messages())]
    assert kinds == [
        ("RTM_NEWLINK", REQUEST_ACK), ("RTM_SETLINK", REQUEST_ACK), ("RTM_NEWADDR", REQUEST_ACK | CREATE_EXCL),
        ("RTM_NEWLINK", REQUEST_ACK), ("RTM_NEWROUTE", REQUEST_ACK | CREATE_EXCL),
    ]


def test_the_messages_say_what_they_should():
    loopback, silenced, address, link, route = map(decoded, messages())
    assert (loopback["index"], loopback["flags"], loopback["change"]) == (1, 1, 1)
    assert (address["family"], address["index"], address["prefixlen"]) == (socket.AF_INET, 32, 20)
    assert [address.get(k) for k in ("local", "address", "broadcast")] == ["10.77.0.2", "10.77.0.2", "10.77.15.255"]
    assert (silenced["index"], link["index"], link["flags"]) == (32, 32, 1)
    assert (route["dst_len"], route["table"], route.get("gateway"), route.get("oif")) == (0, 254, "10.77.0.1", 32)


def test_an_ipv6_address_is_there_at_once():
    *_, own, address, route = map(decoded, messages(BOTH))
    assert [(a["family"], a["index"], a["prefixlen"], a["flags"]) for a in (own, address)] == [
        (socket.AF_INET6, 33, 64, 2), (socket.AF_INET6, 33, 64, 2)]
    assert [a.get("address") for a in (own, address)] == ["fe80::ff:fe00:5", "fd00::5"]
    assert (route["family"], route.get("gateway"), route.get("oif")) == (socket.AF_INET6, "fd00::1", 33)


def test_a_host_without_ipv6_is_asked_nothing_about_it():
    assert bytes.fromhex(NO_AUTOMATIC_ADDRESS.replace(" ", "")) not in messages(replace(END, ipv6=False))


def test_a_birth_says_what_it_should():
    born = decoded(birth("ve1", host_index=77, bridge_index=5, end=replace(END, link=1, mtu=1400)))
    assert (born["index"], born["flags"], born["change"], born["header"]["flags"]) == (77, 1, 1, 0x605)
    assert [born.get(key) for key in ("ifname", "master", "mtu")] == ["ve1", 5, 1400]
    assert born.get(("linkinfo", "kind")) == "veth"
    peer = born.get(("linkinfo", "data", "veth_info_peer"))
    assert peer["index"] == 33
    assert [peer.get(key) for key in ("ifname", "mtu", "address", "net_ns_fd")] == ["eth1", 1400, MAC, NETNS_FD]
    assert [end.get(f"num_{way}_queues") for end in (born, peer) for way in ("tx", "rx")] == [1, 1, 1, 1]
    assert decoded(death("ve1")).get("ifname") == "ve1"


def test_without_a_network_only_the_loopback_comes_up():
    assert loopback_messages() == [bytes.fromhex(LOOPBACK_UP.replace(" ", ""))] == messages()[:1]


@pytest.mark.parametrize("address", ["10.77.0.2/33", "10.77.0/20", "fd00::1/64"])
def test_what_is_no_address_gives_no_message(address):
    with pytest.raises(ValueError, match=r"not a valid netmask|Expected 4 octets|Only decimal"):
        messages(replace(END, address=address))


def test_names_of_host_ends_fit_and_stay():
    assert host_ifname("web1") == host_ifname("web1") == HOST_END
    names = {host_ifname(name, instance, link)
             for name in ("web1", "web2", "x" * 63) for instance in ("", "test") for link in (0, 7)}
    assert len(names) == 12
    assert all(len(name) == 15 and "web" not in name for name in names)
    assert all(host_ifname(name, "test").startswith(port_prefix("test")) for name in ("web1", "web2"))
    assert port_prefix("test") != port_prefix("vemgr0")


def test_ports_are_not_named_as_those_of_others_are():
    """Docker's "veth4d3f2a1" would be shut by the rules of an instance whose ports begin with "veth4"."""
    names = [f"instance{number}" for number in range(8000)]
    prefixes = [port_prefix(name) for name in names]
    assert any(veth._letters(name, 3).startswith("th") for name in names), "none of these shows anything"
    assert not [prefix for prefix in prefixes if prefix.startswith(("veth", "vene"))]
    assert {len(prefix) for prefix in prefixes} == {5} and len(set(prefixes)) > 6000


def test_the_link_local_address_follows_from_the_mac():
    assert link_local("52:54:00:12:34:56") == "fe80::5054:ff:fe12:3456"


def test_mac_addresses_are_locally_administered_unicast_and_stay():
    macs = [mac_for(name, salt) for name in ("web1", "web2") for salt in ("a", "b")]
    assert len(set(macs)) == 4
    assert mac_for("web1", "a") == macs[0]
    assert all(mac.startswith("02:") and len(mac) == 17 for mac in macs)


def test_a_message_is_sent_with_our_sequence_number_and_flags():
    message = struct.pack("=IHHII", 20, 20, 0x600, 77, 88) + b"body"
    assert netlink.with_header(message, 5) == struct.pack("=IHHII", 20, 20, 0x605, 5, 0) + b"body"
    assert netlink.with_header(message, 5, acknowledge=False) == struct.pack("=IHHII", 20, 20, 0x601, 5, 0) + b"body"


@pytest.mark.parametrize("junk", [b"", b"x" * 15, struct.pack("=IHHII", 20, 16, 0, 0, 0), messages()[0] + b"1234"])
def test_what_is_no_message_is_not_sent(junk):
    with pytest.raises(ValueError, match="not a netlink message"):
        netlink.with_header(junk, 1)


def answer(code, flags=0, rest=b"", *, kind=2, sequence=1):
    body = struct.pack("=i", -code) + struct.pack("=IHHII", 40, 20, 0, sequence, 0) + rest
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body


def checked(*answers, count=1):
    ours, kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, kernels:
        for data in answers:
            kernels.send(data)
        netlink.check(ours, 1, count)


def test_the_first_of_several_refusals_counts():
    with pytest.raises(PermissionError, match="RTM_NEWADDR"):
        checked(answer(1, sequence=1), answer(17, sequence=2), answer(0, sequence=3), count=3)


def test_a_kernel_that_does_not_answer():
    with pytest.raises(TimeoutError):
        checked()


def test_an_answer_to_something_else_is_passed_over():
    checked(answer(1, sequence=9), answer(0, kind=3), answer(0))


TEXT = struct.pack("=HH", 8, 1) + b"why\0"


@pytest.mark.parametrize(("flags", "rest", "message"), [
    (0, b"", "RTM_NEWADDR: File exists"),
    (0x300, TEXT, "RTM_NEWADDR: why"),
    (0x200, b"\0" * 24 + TEXT, "RTM_NEWADDR: why"),
    (0x300, struct.pack("=HHI", 8, 2, 0) + TEXT, "RTM_NEWADDR: why"),
    (0x300, struct.pack("=HH", 0, 0), "RTM_NEWADDR: File exists"),
])
def test_a_refusal_names_the_message_and_the_reason(flags, rest, message):
    with pytest.raises(FileExistsError) as caught:
        checked(answer(17, flags, rest))
    assert caught.value.strerror == message
