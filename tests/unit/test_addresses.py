# SPDX-License-Identifier: GPL-2.0-or-later
import pytest

from vemgr.core.addresses import CANDIDATES, Pool, choose_subnet, parse_subnet
from vemgr.core.errors import AddressInUse, BadValue, NotEnoughResources

#: What others take unless they are told otherwise.
DEFAULTS_OF_OTHERS = [
    *(f"172.{n}.0.0/16" for n in range(17, 32)), "192.168.0.0/20", "192.168.122.0/24", "10.0.3.0/24", "10.88.0.0/13",
    "10.96.0.0/11", "10.128.0.0/9", "10.32.0.0/12", "10.8.0.0/24", "10.0.0.0/15", "10.2.0.0/16", "100.64.0.0/10",
    "169.254.0.0/16", "127.0.0.0/8",
]


def test_gateway_is_the_first_host_and_allocation_starts_behind_it():
    pool = Pool("10.77.0.0/20")
    assert (pool.gateway, pool.prefixlen, pool.size) == ("10.77.0.1", 20, 4093)
    assert pool.allocate([]) == "10.77.0.2"


def test_the_lowest_free_address_is_given():
    pool = Pool("10.77.0.0/20")
    assert pool.allocate({"10.77.0.2": "a", "10.77.0.4": "b"}) == "10.77.0.3"


def test_addresses_of_another_subnet_may_be_among_the_taken():
    """As after the administrator has changed the subnet."""
    assert Pool("10.77.0.0/29").allocate(["10.9.9.9"]) == "10.77.0.2"


def test_a_full_pool_says_so():
    pool = Pool("10.77.0.0/29")
    taken: list[str] = []
    for _ in range(pool.size):
        taken.append(pool.allocate(taken))
    assert taken[-1] == "10.77.0.6"
    with pytest.raises(NotEnoughResources, match=r"all 5 addresses of 10\.77\.0\.0/29 are taken"):
        pool.allocate(taken)


@pytest.mark.parametrize(("address", "why"), [
    ("10.77.16.1", "not in the VEs' subnet"),
    ("10.77.0.0", "own address"),
    ("10.77.0.1", "the gateway's"),
    ("10.77.15.255", "broadcast"),
    ("10.77.0", "Expected 4 octets"),
    ("10.77.0.010", "Leading zeros"),
    ("fd00::1", "Expected 4 octets"),
    ("", "empty"),
])
def test_an_address_that_no_ve_may_have(address, why):
    with pytest.raises(BadValue, match=why) as caught:
        Pool("10.77.0.0/20").check(address, {})
    assert caught.value.remedy


def test_an_address_that_is_taken_names_its_owner_and_a_free_one():
    with pytest.raises(AddressInUse, match=r"taken by VE web1; choose another, for instance 10\.77\.0\.3") as caught:
        Pool("10.77.0.0/20").check("10.77.0.2", {"10.77.0.2": "web1"})
    assert caught.value.facts == {"address": "10.77.0.2", "ve": "web1"}


def test_an_address_that_is_taken_in_a_full_pool():
    pool = Pool("10.77.0.0/29")
    taken = {f"10.77.0.{n}": f"ve{n}" for n in range(2, 7)}
    with pytest.raises(AddressInUse, match=r"taken by VE ve4$"):
        pool.check("10.77.0.4", taken)


def test_a_free_address_is_good():
    assert Pool("10.77.0.0/20").check("10.77.1.2", {"10.77.0.2": "web1"}) == "10.77.1.2"


@pytest.mark.parametrize("text", ["", "10.0.0.1", "10.0.0.1/24", "10.0.0.0/30", "10.0.0.0/33", "fd00::/64",
                                  "224.0.0.0/24", "127.0.0.0/24", "169.254.0.0/24"])
def test_a_subnet_that_is_none(text):
    with pytest.raises(BadValue):
        parse_subnet(text)


def test_the_candidates_avoid_what_others_take():
    assert choose_subnet(DEFAULTS_OF_OTHERS) == CANDIDATES[0]
    for candidate in CANDIDATES:
        assert choose_subnet(DEFAULTS_OF_OTHERS, [candidate]) == candidate


def test_the_candidates_do_not_overlap_each_other():
    for candidate in CANDIDATES:
        assert choose_subnet([c for c in CANDIDATES if c != candidate]) == candidate


def test_a_clash_goes_on_to_the_next():
    assert choose_subnet([CANDIDATES[0]]) == CANDIDATES[1]
    assert choose_subnet(["10.77.3.4/32"]) == CANDIDATES[1]
    assert choose_subnet(["10.0.0.0/8"]) == "172.16.208.0/20"


def test_no_subnet_is_left():
    with pytest.raises(NotEnoughResources, match=r"with subnet") as caught:
        choose_subnet(["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"])
    assert caught.value.facts["foreign"] == "10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16"
