# SPDX-License-Identifier: GPL-2.0-or-later
"""From amounts to the values of cgroup files: the errors that the module's table states."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vemgr.scheduler.knobs import (
    LEAST_WEIGHT,
    MOST_WEIGHT,
    PAGE,
    PERIOD,
    cap,
    cpu_burst,
    cpu_max,
    cpu_quota,
    protection,
    weights,
)


@given(st.integers(10, 99_999_999))
def test_a_cpu_limit_is_exact(millicpus):
    quota, period = map(int, cpu_max(millicpus).split())
    assert Fraction(quota, period) == Fraction(millicpus, 1000)
    assert quota >= 1000, "the kernel's least"


def test_no_cpu_limit_and_the_least():
    assert cpu_max(None) == "max"
    assert cpu_quota(1) == 1000


@given(st.none() | st.integers(10, 8000), st.integers(0, 10**7))
def test_a_burst_is_never_more_than_the_kernel_takes(millicpus, burst):
    value = cpu_burst(millicpus, burst)
    assert 0 <= value <= burst
    assert value == 0 if millicpus is None else value == burst or value * 1000 == millicpus * PERIOD


@given(st.integers(0, 2**62), st.sampled_from([PAGE, 1 << 14, 1 << 16]))
def test_memory_is_whole_pages(size, page):
    assert protection(size, page) % page == 0 and 0 <= protection(size, page) - size < page
    assert cap(size, page) % page == 0 and 0 <= size - cap(size, page) < page
    assert cap(None) is None


WANTED = st.fractions(0, 10**6, max_denominator=10**4)


@given(st.lists(st.tuples(WANTED, st.booleans()), min_size=1, max_size=40))
def test_a_guaranteed_weight_is_as_exact_as_it_says(wanted):
    amounts, guaranteed = [amount for amount, _ in wanted], [flag for _, flag in wanted]
    values = weights(amounts, guaranteed)
    assert all(LEAST_WEIGHT <= value <= MOST_WEIGHT for value in values)
    most = max(amounts)
    if not most:
        return
    exact = [amount * MOST_WEIGHT / most for amount in amounts]
    scale = sum(exact)
    slack = (sum(guaranteed) + sum(value < 1 for value in exact)) / scale
    for value, amount, is_guaranteed in zip(values, exact, guaranteed, strict=True):
        assert abs(value - amount) < 1 or amount < 1
        if is_guaranteed:
            assert Fraction(value, sum(values)) >= amount / scale * (1 - slack)


@given(st.lists(WANTED, min_size=2, max_size=20))
def test_weights_keep_the_order(amounts):
    values = weights(amounts, [False] * len(amounts))
    ordered = [value for _, value in sorted(zip(amounts, values, strict=True))]
    assert ordered == sorted(ordered)


@pytest.mark.parametrize(("wanted", "guaranteed", "values"), [
    ([], [], []), ([0, 0], [True, False], [1, 1]), ([1, 2, 4], [False] * 3, [2500, 5000, 10000]),
    ([1, 100], [False] * 2, [100, 10000]), ([Fraction(1, 3), 1], [True, False], [3334, 10000]),
    ([1, 10**9], [False, True], [1, 10000]),
])
def test_weights_by_hand(wanted, guaranteed, values):
    assert weights(wanted, guaranteed) == values
