# SPDX-License-Identifier: GPL-2.0-or-later
"""Links, published ports and networks as values and as text; which addresses a VE gets."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vemgr.core.errors import AddressInUse, BadParameter, BadValue, VemgrError
from vemgr.core.host import HostConfig
from vemgr.core.links import (
    Link,
    Publication,
    parse_links,
    parse_mac,
    parse_publications,
    show_links,
    show_publications,
)
from vemgr.core.networks import Mode
from vemgr.kernel.elements import own_elements, published_elements
from vemgr.runtime.network.attachments import Attachment, Attachments
from vemgr.runtime.network.subnets import Taken, choose_subnets, known_subnets

WEB = parse_publications("publish", "8080:80 192.0.2.1:53:53/udp [::]:443:443 [2001:db8::1]:25:2525")


def test_links_round_trip():
    text = "lan:address=10.1.2.3,address=fd00::5,mac=02:00:00:00:00:05 bridge"
    links = parse_links("network", text)
    assert links == (Link("lan", "10.1.2.3", "fd00::5", "02:00:00:00:00:05"), Link("bridge"))
    assert show_links(links) == text
    assert parse_links("network", show_links(())) == ()


@pytest.mark.parametrize("text", [
    "", "lan:", "lan:address", "lan:address=", "lan:address=10.1.2", "lan:mac=02", "lan:mac=01:00:00:00:00:05",
    "lan:address=10.1.2.3,address=10.1.2.4", "lan:speed=5", "LAN", "-lan", "none lan", "x" * 16, "a b c d e f g h i",
    "lan:address=fe80::1%eth0",
])
def test_what_is_no_link(text):
    with pytest.raises(BadValue) as refused:
        parse_links("network", text)
    assert refused.value.facts["field"] == "network"


def test_a_mac_in_another_spelling():
    assert parse_mac("mac", "02-AB-00-00-00-0F") == "02:ab:00:00:00:0f"


def test_publications_round_trip():
    assert (Publication(8080, 80), Publication(53, 53, "udp", "192.0.2.1"), Publication(443, 443, "tcp", "::"),
                   Publication(25, 2525, "tcp", "2001:db8::1")) == WEB
    assert parse_publications("publish", show_publications(WEB)) == WEB
    assert [publication.families for publication in WEB] == [(4, 6), (4,), (6,), (6,)]
    assert [publication.everywhere for publication in WEB] == [True, False, True, False]


@pytest.mark.parametrize(("one", "other", "clash"), [
    ("80:80", "80:81", True), ("80:80", "81:80", False), ("80:80", "80:80/udp", False),
    ("80:80", "192.0.2.1:80:80", True), ("192.0.2.2:80:80", "192.0.2.1:80:80", False),
    ("80:80", "[::1:1]:80:80", True), ("0.0.0.0:80:80", "[::]:80:80", False), ("192.0.2.1:80:80", "[::]:80:80", False),
])
def test_which_ports_clash(one, other, clash):
    (first,), (second,) = parse_publications("publish", one), parse_publications("publish", other)
    assert first.clashes(second) == second.clashes(first) == clash


@given(st.text(max_size=40))
def test_any_text_is_a_value_or_an_error_of_ours(text):
    for parse, show in ((parse_links, show_links), (parse_publications, show_publications)):
        try:
            found = parse("field", text)
        except VemgrError as error:
            assert error.facts["field"] == "field"
        else:
            assert parse("field", show(found)) == found


def test_elements_of_a_publication():
    def texts(publication, *addresses):
        return [f"{element.set} {element}" for element in published_elements(publication, *addresses)]

    assert texts(WEB[0], "10.0.0.2", "") == ["any4 tcp . 8080 : 10.0.0.2 . 80"]
    assert texts(WEB[0], "10.0.0.2", "fd00::2") == ["any4 tcp . 8080 : 10.0.0.2 . 80", "any6 tcp . 8080 : fd00::2 . 80"]
    assert texts(WEB[1], "10.0.0.2", "fd00::2") == ["at4 192.0.2.1 . udp . 53 : 10.0.0.2 . 53"]
    assert texts(WEB[3], "10.0.0.2", "fd00::2") == ["at6 2001:db8::1 . tcp . 25 : fd00::2 . 2525"]
    assert texts(WEB[3], "10.0.0.2", "") == []


def test_elements_as_bytes():
    (element,) = own_elements("ve1", "02:00:00:00:00:01", ["10.0.0.2"])
    key = b"ve1".ljust(16, b"\0") + bytes.fromhex("020000000001") + b"\0\0" + bytes((10, 0, 0, 2))
    assert key in element.encode() and len(element.encode()) == len(key) + 4 * 3


def networks(**more):
    document = {"subnet": "10.77.0.0/24", "network": {"lan": {"subnet": "10.50.0.0/24", "subnet6": "fd50::/64"}}}
    return HostConfig.from_mapping({**document, **more}).networks


def test_networks_of_a_host():
    first, lan = networks()
    assert (first.name, first.bridge, first.mode, first.mode6) == ("bridge", "vemgr0", Mode.NAT, Mode.NAT)
    assert (lan.name, lan.bridge, lan.subnet6) == ("lan", "vemgr0-lan", "fd50::/64")
    assert networks(mode="isolated")[0].mode6 == Mode.ISOLATED
    assert networks(mode6="routed")[0].mode == Mode.NAT


@pytest.mark.parametrize(("more", "error"), [
    ({"mode": "open"}, BadValue), ({"mode": "isolated", "mode6": "nat"}, BadValue),
    ({"subnet6": "10.0.0.0/24"}, BadValue),
    ({"network": 5}, BadValue), ({"network": {"lan": 5}}, BadValue), ({"network": {"bridge": {}}}, BadValue),
    ({"network": {"none": {}}}, BadValue), ({"network": {"lan": {"speed": "5"}}}, BadParameter),
    ({"network": {"lan": {"bridge": "vemgr0"}}}, BadValue), ({"network": {"much-too-long": {}}}, BadValue),
    ({"network": {"lan": {"subnet": "10.77.0.0/24"}}}, BadValue),
])
def test_networks_that_are_none(more, error):
    with pytest.raises(error):
        networks(**more)


@pytest.fixture
def subnets(tmp_path):
    return choose_subnets(networks(), str(tmp_path / "network.json"), [])


def test_subnets_are_remembered_and_do_not_overlap(tmp_path):
    path = str(tmp_path / "network.json")
    automatic = networks(subnet="auto", subnet6="auto", network={"lan": {"subnet6": "auto"}})
    assert not known_subnets(automatic, path)
    chosen = choose_subnets(automatic, path, ["10.77.0.0/16"])
    found = {name: (s.pool.subnet, s.pool6.subnet) for name, s in chosen.items()}
    assert len({subnet for pair in found.values() for subnet in pair}) == 4
    assert not any(subnet.startswith("10.77.") for subnet, _ in found.values())
    assert all(subnet6.startswith("fd") for _, subnet6 in found.values())
    assert known_subnets(automatic, path)
    again = choose_subnets(automatic, path, [])
    assert {name: (s.pool.subnet, s.pool6.subnet) for name, s in again.items()} == found


def test_the_subnet_of_the_first_format_stays(tmp_path):
    (tmp_path / "network.json").write_text(json.dumps({"subnet": "10.99.0.0/24"}))
    chosen = choose_subnets(networks(subnet="auto"), str(tmp_path / "network.json"), [])
    assert chosen["bridge"].pool.subnet == "10.99.0.0/24"


def test_a_link_keeps_what_it_can(subnets):
    lan, taken = subnets["lan"], Taken({"10.50.0.2": "a", "fd50::2": "a"}, {"02:00:00:00:00:09": "b"})
    first = lan.choose(Link("lan"), None, taken)
    assert (first.address, first.address6) == ("10.50.0.3", "fd50::3")
    assert lan.fits(Link("lan"), first) and not lan.fits(Link("lan", "10.50.0.9"), first)
    had = Link("lan", "10.50.0.7", "fd50::7")
    assert lan.choose(Link("lan"), had, taken) == had
    assert lan.choose(Link("lan", "10.50.0.9"), had, taken) == Link("lan", "10.50.0.9", "fd50::7")
    assert lan.choose(Link("lan"), Link("lan", "10.50.0.2", "fd50::2"), taken) == first
    with pytest.raises(AddressInUse, match="taken by VE a"):
        lan.choose(Link("lan", "10.50.0.2"), None, taken)
    with pytest.raises(AddressInUse, match="MAC address 02:00:00:00:00:09 is taken by VE b"):
        lan.choose(Link("lan", mac="02:00:00:00:00:09"), None, taken)
    with pytest.raises(BadValue, match="has no IPv6"):
        subnets["bridge"].choose(Link(address6="fd50::5"), None, taken)


def test_a_link_that_does_not_fit_its_network_any_more(subnets):
    assert not subnets["lan"].fits(Link("lan"), Link("lan", "10.50.0.2")), "it has no IPv6 address yet"
    assert not subnets["bridge"].fits(Link(), Link(address="10.77.0.2", address6="fd50::2")), "IPv6 is off now"
    assert not subnets["bridge"].fits(Link(), Link(address="10.78.0.2")), "another subnet"
    assert not subnets["bridge"].fits(Link(mac="02:00:00:00:00:05"), Link(address="10.77.0.2"))


def test_attachments_are_there_for_the_next_daemon(tmp_path):
    directory = str(tmp_path / "network")
    links = (Link("lan", "10.50.0.2", "fd50::2", "02:00:00:00:00:05"),)
    one, two = (Attachment(name, links, ("ve1",), WEB) for name in ("one", "two"))
    first = Attachments(directory)
    first.put(one)
    first.put(two)
    (tmp_path / "network/three").write_text("{")
    second = Attachments(directory)
    second.load(["one", "three"])
    assert list(second) == [one], "two runs no more, and what three had is not known any more"
    assert sorted(path.name for path in (tmp_path / "network").iterdir()) == ["one", "three"]
    second.drop("one")
    assert second.get("one") is None and not (tmp_path / "network/one").exists()
