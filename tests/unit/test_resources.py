# SPDX-License-Identifier: GPL-2.0-or-later
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vemgr.core import resources
from vemgr.core.errors import BadValue

SIZES = st.one_of(st.none(), st.integers(0, 2**63 - 1), st.integers(0, 2**13).map(lambda n: n << 30))


@given(SIZES)
def test_sizes_round_trip(size):
    assert resources.parse_size("memory", resources.format_size(size)) == size


@given(st.one_of(st.none(), st.integers(4096, 2**63 - 1)))
def test_rates_round_trip(rate):
    assert resources.parse_rate("io-read", resources.format_rate(rate)) == rate


@given(st.one_of(st.none(), st.integers(10, 99_999_999)))
def test_cpus_round_trip(millicpus):
    assert resources.parse_cpus("cpus", resources.format_cpus(millicpus)) == millicpus


@given(st.sets(st.integers(0, 8191), min_size=1, max_size=40))
def test_masks_round_trip(cpus):
    text = ",".join(map(str, cpus))
    assert resources.expand_cpu_mask(resources.parse_cpu_mask("cpu-mask", text)) == cpus


@pytest.mark.parametrize(("text", "size"), [
    ("512M", 512 << 20), ("1.5G", 3 << 29), ("4096", 4096), ("0", 0), ("1k", 1024), ("1KiB", 1024), ("2MB", 2 << 20),
    ("10 G", 10 << 30), ("7B", 7), ("unlimited", None), ("0.5K", 512), ("8388607T", 8388607 << 40),
])
def test_size(text, size):
    assert resources.parse_size("memory", text) == size


@pytest.mark.parametrize(("size", "text"), [(1536 << 20, "1536M"), (0, "0"), (1000, "1000"), (None, "unlimited"),
                                            (1 << 40, "1T"), (3 << 40 | 1 << 10, "3221225473K")])
def test_shortest_exact_spelling(size, text):
    assert resources.format_size(size) == text


@given(st.text(max_size=20))
def test_any_text_is_a_value_or_a_bad_value(text):
    """No input of a user may end in another exception; what is accepted must have a canonical form."""
    for parse, show in ((resources.parse_size, resources.format_size), (resources.parse_rate, resources.format_rate),
                        (resources.parse_cpus, resources.format_cpus)):
        try:
            value = parse("field", text)
        except BadValue as error:
            assert error.facts["field"] == "field"
        else:
            assert parse("field", show(value)) == value
    for parse_ in (resources.parse_cpu_mask,
                   lambda f, t: resources.parse_count(f, t, least=1, most=100, unlimited=True)):
        try:
            parse_("field", text)
        except BadValue as error:
            assert error.exit_code == 21


@pytest.mark.parametrize("text", ["", "M", "-1", "1X", "1e3", "0x10", "8388608T", "1.1234567", "\u0661M", "1\n2",
                                  "9" * 20])
def test_no_size(text):
    with pytest.raises(BadValue):
        resources.parse_size("memory", text)


def test_least():
    with pytest.raises(BadValue, match="the least is 8M"):
        resources.parse_size("memory", "7M", least=8 << 20)
    with pytest.raises(BadValue):
        resources.parse_rate("io-read", "4095")
    assert resources.parse_rate("io-read", "unlimited") is None


@pytest.mark.parametrize(("text", "good"), [("1", True), ("100", True), ("0", False), ("101", False), ("", False),
                                            ("1.0", False), ("+1", False), ("unlimited", False), ("\u0661", False)])
def test_count(text, good):
    if good:
        assert resources.parse_count("x", text, least=1, most=100) == int(text)
    else:
        with pytest.raises(BadValue, match="from 1 to 100"):
            resources.parse_count("x", text, least=1, most=100)


@pytest.mark.parametrize("text", ["3-1", "a", "", "1,", ",1", "1-", "0-8192", "1--2", "-1"])
def test_no_mask(text):
    with pytest.raises(BadValue):
        resources.parse_cpu_mask("cpu-mask", text)


def test_every_cpu():
    assert resources.parse_cpu_mask("cpu-mask", "all") is None
    assert resources.expand_cpu_mask("0-2,5,7-7") == {0, 1, 2, 5, 7}
