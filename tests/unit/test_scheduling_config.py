# SPDX-License-Identifier: GPL-2.0-or-later
"""The table [scheduler] of vemgr.toml."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vemgr.core.errors import BadParameter, BadValue
from vemgr.core.resources import parse_size
from vemgr.core.scheduling import KEYS, Policy, SchedulerConfig, parse_reserve, parse_scheduler

MIB, GIB = 1 << 20, 1 << 30


def test_the_defaults():
    config = parse_scheduler({})
    assert config == SchedulerConfig()
    assert (config.factor("cpus"), config.factor("memory")) == (1000, 1000)
    assert [config.reserve("memory").of(total) // MIB for total in (2 * GIB, 8 * GIB, 64 * GIB)] == [352, 491, 828]
    assert [config.reserve("cpus").of(total) for total in (1000, 8000, 64000)] == [100, 400, 1000]


def test_every_key():
    given_ = {"policy": "dense", "overcommit-cpus": 2.5, "overcommit-memory": "1.25", "reserve-cpus": "0%/0/0",
              "reserve-memory": "10%/1G/2G"}
    assert set(given_) == set(KEYS)
    config = parse_scheduler(given_)
    assert (config.policy, config.factor("cpus"), config.factor("memory")) == (Policy.DENSE, 2500, 1250)
    assert (config.reserve("cpus").of(4000), config.reserve("memory").of(100 * GIB)) == (0, 2 * GIB)


def test_a_policy_brings_its_factors():
    assert [parse_scheduler({"policy": policy}).factor("memory") for policy in Policy] == [1000, 1000, 1500]


@pytest.mark.parametrize(("values", "error"), [
    ([], BadValue), ("x", BadValue), ({"x": 1}, BadParameter), ({"policy": "x"}, BadValue),
    ({"policy": 1}, BadValue), ({"overcommit-cpus": "0"}, BadValue), ({"overcommit-cpus": -1}, BadValue),
    ({"overcommit-cpus": "x"}, BadValue), ({"overcommit-memory": 10**5000}, BadValue),
    ({"overcommit-memory": float("nan")}, BadValue), ({"overcommit-memory": True}, BadValue),
    ({"reserve-cpus": "5"}, BadValue), ({"reserve-cpus": "5%/1"}, BadValue), ({"reserve-cpus": "5%/2/1"}, BadValue),
    ({"reserve-cpus": "101%/1/2"}, BadValue), ({"reserve-memory": "5%/1G/unlimited"}, BadValue),
    ({"reserve-memory": "5%/x/1G"}, BadValue), ({"policy": "a\0b"}, BadValue),
])
def test_what_is_wrong(values, error):
    with pytest.raises(error):
        parse_scheduler(values)


def test_a_number_that_python_does_not_print():
    with pytest.raises(BadValue):
        parse_scheduler(10**5000)


@given(st.integers(0, 100_000), st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 2**45))
def test_a_reserve_is_within_its_bounds(share, first, second, total):
    least, most = sorted((first, second))
    reserve = parse_reserve("x", f"{share / 1000:.3f}%/{least}/{most}", parse_size)
    kept = reserve.of(total)
    assert 0 <= kept <= total
    assert min(total, least) <= kept <= most
    assert kept in (least, most, total, total * share // 100_000)
