# SPDX-License-Identifier: GPL-2.0-or-later
import pytest

from vemgr.core.config import Settings, parse_settings, show_settings
from vemgr.core.errors import BadParameter, BadValue, Overcommitted
from vemgr.core.host import HostConfig
from vemgr.core.scheduling import Policy, parse_scheduler
from vemgr.core.uplink import UplinkConfig, parse_uplink
from vemgr.kernel.elements import common_share_elements, share_elements
from vemgr.kernel.uplink import handle_of
from vemgr.runtime.scheduling.promises import Promises
from vemgr.scheduler.admission import Promise, promise_of
from vemgr.scheduler.shares import uplink_share


def test_the_table_of_the_configuration():
    table = {"device": "eth0", "rate": "1G", "reserve": "10%/0/5M", "take-over": True}
    config = HostConfig.from_mapping({"uplink": table})
    assert (config.uplink.device, config.uplink.rate, config.uplink.take_over) == ("eth0", 10**9, True)
    assert config.uplink.reserve.of(10**9) == 5_000_000
    assert parse_uplink({}) == UplinkConfig()
    assert UplinkConfig().reserve.of(100_000_000) == 5_000_000


@pytest.mark.parametrize(("table", "error"), [
    ({"devise": "eth0"}, BadParameter), ({"device": "a/b"}, BadValue), ({"device": ".."}, BadValue),
    ({"device": "eth0 "}, BadValue), ({"device": 3}, BadValue), ({"rate": "fast"}, BadValue),
    ({"rate": "1G:in"}, BadValue), ({"rate": 1000}, BadValue), ({"reserve": "5%"}, BadValue),
    ({"take-over": "yes"}, BadValue), ("eth0", BadValue),
])
def test_what_is_refused(table, error):
    with pytest.raises(error, match="uplink"):
        parse_uplink(table)


def test_settings_are_read_back():
    texts = {"network-guarantee": "12500k", "network-weight": "300"}
    settings = parse_settings(texts)
    assert settings.network_guarantee == 12_500_000 and settings.shares_uplink
    assert show_settings(settings) == texts
    assert not parse_settings({"network-guarantee": "0", "network-weight": "100"}).shares_uplink


@pytest.mark.parametrize("texts", [
    {"network-guarantee": "10M:out"}, {"network-guarantee": "unlimited"}, {"network-guarantee": "-1"},
    {"network-guarantee": "10M", "network-rate": "5M"}, {"network-guarantee": "10M", "network": "none"},
])
def test_a_guarantee_that_is_none(texts):
    with pytest.raises(BadValue, match="network-guarantee"):
        parse_settings(texts)
    assert parse_settings({"network-guarantee": "10M", "network-rate": "5M:in"}).network_guarantee == 10_000_000


def test_more_than_the_uplink_is_not_promised():
    promises = Promises(parse_scheduler({}), 4000, 8 << 30)
    with pytest.raises(Overcommitted):
        promises.check("a", Settings(network_guarantee=8000))
    promises.offer_network(100_000_000, 5_000_000)
    with promises.admitted("a", Settings(network_guarantee=60_000_000)):
        pass
    with pytest.raises(Overcommitted, match="promised to others: 60Mbit/s") as refusal:
        promises.check("b", Settings(network_guarantee=36_000_000))
    assert refusal.value.facts["field"] == "network-guarantee" and refusal.value.facts["fits"] == "35000000"
    assert promises.ledger.fitting(Promise(network=10_000_000)) == (3, "network")
    promises.switch(Policy.DENSE)
    assert promises.ledger.promised("network") == 60_000_000
    promises.release("a")
    assert promises.ledger.promised("network") == 0
    assert promise_of(Settings(network_guarantee=5), Policy.BALANCED).network == 5


def test_what_a_ve_is_entitled_to():
    ves = {"a": Settings(network_guarantee=40, network_weight=200), "b": Settings(network_weight=400), "c": Settings()}
    # 60 are left over, for weights of 200, 400, and 100 each for the host and all others.
    assert [uplink_share(ve, 100, ves) for ve in ves] == [55, 30, 7]


def test_elements_as_text_and_bytes():
    classid = 0x7E57 << 16 | 0x7001
    four, six = share_elements(classid, ["10.0.0.2", "fd00::2"])
    assert (four.set, str(four)) == ("share4", "10.0.0.2 : 7e57:7001")
    assert (six.set, str(six)) == ("share6", "fd00::2 : 7e57:7001")
    assert four.value[0][1] == classid.to_bytes(4, "little") or four.value[0][1] == classid.to_bytes(4, "big")
    (common,) = common_share_elements(classid, ["vebr0"])
    assert str(common) == '"vebr0" : 7e57:7001'


def test_two_instances_have_handles_of_their_own():
    assert handle_of("vebr0") != handle_of("vebr1")
    assert 0x7000 <= handle_of("vebr0") < 0x8000
