# SPDX-License-Identifier: GPL-2.0-or-later
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vemgr.core.errors import BadParameter, BadValue, NotEnoughResources
from vemgr.core.host import HostConfig, allocate_ids
from vemgr.core.ids import ID_COUNT


def test_defaults_and_keys():
    assert HostConfig.from_mapping({}) == HostConfig()
    config = HostConfig.from_mapping({"state-dir": "/x", "id-first": 100000, "subnet": "10.0.0.0/24"})
    assert (config.state_dir, config.id_first, config.networks[0].subnet) == ("/x", 100000, "10.0.0.0/24")


@pytest.mark.parametrize(("document", "error"), [
    ({"nonsense": 1}, BadParameter), ({"state_dir": "/x"}, BadParameter), ({"state-dir": 5}, BadValue),
    ({"state-dir": "x"}, BadValue), ({"run-dir": ""}, BadValue), ({"id-first": "5"}, BadValue),
    ({"id-first": True}, BadValue), ({"bridge": ["x"]}, BadValue), ({"networks": {}}, BadParameter),
    ({"state-dir": "/a\0b"}, BadValue), ({"id-first": 0}, BadValue), ({"id-last": 1 << 32}, BadValue),
    ({"id-first": 2**31, "id-last": 2**30}, BadValue), ({"id-last": 10**5000}, BadValue),
])
def test_what_is_wrong(document, error):
    with pytest.raises(error):
        HostConfig.from_mapping(document)


@given(taken=st.sets(st.integers(0, 7)), foreign=st.lists(st.tuples(st.integers(0, 8 * ID_COUNT),
                                                                    st.integers(1, 3 * ID_COUNT)), max_size=3))
def test_ranges_do_not_overlap(taken, foreign):
    config = HostConfig(id_first=0, id_last=8 * ID_COUNT - 1)
    bases = [number * ID_COUNT for number in taken]
    try:
        base = allocate_ids(config, bases, foreign)
    except NotEnoughResources:
        free = set(range(0, 8 * ID_COUNT, ID_COUNT)) - set(bases)
        assert all(any(b < first + count and first < b + ID_COUNT for first, count in foreign) for b in free)
        return
    assert base not in bases and base % ID_COUNT == 0 and 0 <= base < 8 * ID_COUNT
    assert not any(base < first + count and first < base + ID_COUNT for first, count in foreign)


def test_the_last_range_fits():
    config = HostConfig()
    bases = []
    for _ in range(4096):
        bases.append(config.id_first + len(bases) * ID_COUNT)
    assert allocate_ids(config, bases[:-1], []) == bases[-1]
    assert bases[-1] + ID_COUNT - 1 == config.id_last
    with pytest.raises(NotEnoughResources, match="no range of user ids"):
        allocate_ids(config, bases, [])
