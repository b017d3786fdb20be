# SPDX-License-Identifier: GPL-2.0-or-later
"""Rates of the network, as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vemgr.core.errors import BadValue
from vemgr.core.rates import Rate, parse_network_rate, show_network_rate


@pytest.mark.parametrize(("text", "rate"), [
    ("10M", Rate(10**7, 10**7)), ("10M:in", Rate(10**7, None)), ("1.5Mbit/s:out", Rate(None, 1_500_000)),
    ("1G:in 100k:out", Rate(10**9, 100_000)), ("unlimited", Rate()), ("10M unlimited:out", Rate(10**7, None)),
    ("", Rate()),
])
def test_texts(text, rate):
    assert parse_network_rate("network-rate", text) == rate


@pytest.mark.parametrize("text", ["10", "fast", "10M:up", "1T", "10M/10M", "500G", "unlimited:up", "-1M", "10m"])
def test_what_is_no_rate(text):
    with pytest.raises(BadValue, match="network-rate"):
        parse_network_rate("network-rate", text)


amounts = st.none() | st.integers(8_000, 400 * 10**9)


@given(amounts, amounts)
def test_what_is_shown_is_read_back(incoming, outgoing):
    rate = Rate(incoming, outgoing)
    if max(incoming or 0, outgoing or 0) > 999_999_999 and (incoming or 0) % 1000 | (outgoing or 0) % 1000:
        return  # more digits than anybody writes
    assert parse_network_rate("x", show_network_rate(rate)) == rate
