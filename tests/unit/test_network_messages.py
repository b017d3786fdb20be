# SPDX-License-Identifier: GPL-2.0-or-later
"""The messages for a VE's inside, as bytes and read back; and names, addresses and answers. No root, no network."""

import socket
import struct
import sys

import pytest
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from vemgr.kernel import netlink
from vemgr.kernel.network import host_ifname, inside_messages, loopback_messages, mac_for

REQUEST_ACK, CREATE_EXCL = 0x5, 0x600

pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="the golden bytes are those of a little-endian host")

LOOPBACK_UP = "20000000100005000000000000000000 00000000010000000100000001000000"
GOLDEN = [
    LOOPBACK_UP,
    "30000000140005060000000000000000 0214000020000000" "0800020 00a4d0002".replace(" ", "")
    + "080001000a4d0002" "080004000a4d0fff",
    "28000000100005000000000000000000 00000000200000000100000001000000 08000400dc050000",
    "2c000000180005060000000000000000 02000000fe03000100000000 080005000a4d0001 0800040020000000",
]


def messages():
    return inside_messages("10.77.0.2", 20, "10.77.0.1", 1500)


def decoded(message):
    [read] = MarshalRtnl().parse(message)
    return read


def test_golden_bytes():
    expected = [bytes.fromhex(text.replace(" ", "")) for text in GOLDEN]
    assert [m.hex(" ", 4) for m in messages()] == [m.hex(" ", 4) for m in expected]


def test_every_message_wants_an_acknowledgement_and_comes_in_order():
    kinds = [(netlink.MESSAGE_NAMES[m["header"]["type"]], m["header"]["flags"]) for m in map(decoded, messages())]
    assert kinds == [
        ("RTM_NEWLINK", REQUEST_ACK), ("RTM_NEWADDR", REQUEST_ACK | CREATE_EXCL),
        ("RTM_NEWLINK", REQUEST_ACK), ("RTM_NEWROUTE", REQUEST_ACK | CREATE_EXCL),
    ]


def test_the_messages_say_what_they_should():
    loopback, address, link, route = map(decoded, messages())
    assert (loopback["index"], loopback["flags"], loopback["change"]) == (1, 1, 1)
    assert (address["family"], address["index"], address["prefixlen"]) == (socket.AF_INET, 32, 20)
    assert [address.get(k) for k in ("local", "address", "broadcast")] == ["10.77.0.2", "10.77.0.2", "10.77.15.255"]
    assert (link["index"], link["flags"], link.get("mtu")) == (32, 1, 1500)
    assert (route["dst_len"], route["table"], route.get("gateway"), route.get("oif")) == (0, 254, "10.77.0.1", 32)


def test_without_a_network_only_the_loopback_comes_up():
    assert loopback_messages() == [bytes.fromhex(LOOPBACK_UP.replace(" ", ""))] == messages()[:1]


@pytest.mark.parametrize(("address", "prefixlen"), [("10.77.0.2", 33), ("10.77.0", 20), ("fd00::1", 64)])
def test_what_is_no_address_gives_no_message(address, prefixlen):
    with pytest.raises(ValueError, match=r"not a valid netmask|Expected 4 octets|Only decimal"):
        inside_messages(address, prefixlen, "10.77.0.1", 1500)


def test_names_of_host_ends_fit_and_stay():
    assert host_ifname("web1") == host_ifname("web1") == "veccdd5d69af"
    names = {host_ifname(name, instance) for name in ("web1", "web2", "x" * 63) for instance in ("", "test")}
    assert len(names) == 6
    assert all(len(name) <= 15 and "web" not in name for name in names)


def test_mac_addresses_are_locally_administered_unicast_and_stay():
    macs = [mac_for(name, salt) for name in ("web1", "web2") for salt in ("a", "b")]
    assert len(set(macs)) == 4
    assert mac_for("web1", "a") == macs[0]
    assert all(mac.startswith("02:") and len(mac) == 17 for mac in macs)


def test_a_message_is_sent_with_our_sequence_number_and_flags():
    message = struct.pack("=IHHII", 20, 20, 0x600, 77, 88) + b"body"
    assert netlink.with_header(message, 5) == struct.pack("=IHHII", 20, 20, 0x605, 5, 0) + b"body"


@pytest.mark.parametrize("junk", [b"", b"x" * 15, struct.pack("=IHHII", 20, 16, 0, 0, 0), messages()[0] + b"1234"])
def test_what_is_no_message_is_not_sent(junk):
    with pytest.raises(ValueError, match="not a netlink message"):
        netlink.with_header(junk, 1)


def answer(code, flags=0, rest=b"", *, kind=2, sequence=1):
    body = struct.pack("=i", -code) + struct.pack("=IHHII", 40, 20, 0, sequence, 0) + rest
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body


def checked(*answers):
    ours, kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, kernels:
        for data in answers:
            kernels.send(data)
        netlink.check(ours, 1, 20)


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
