# SPDX-License-Identifier: GPL-2.0-or-later
"""CPU limit, weight and mask. Figures are the kernel's own accounting over wall-clock time."""

import os

import pytest


def test_a_limit_of_a_fifth_holds_two_busy_loops_to_a_fifth(make_ve, burn, cpu_shares, figure):
    ve = make_ve("slow", cpus="0.2")
    burn(ve, 2)
    (share,) = cpu_shares([ve], 10)
    figure(f"--cpus 0.2 gave {share:.2%} of a CPU")
    assert 0.18 <= share <= 0.22

    ve.set(cpus="0.6")
    (share,) = cpu_shares([ve], 6)
    figure(f"then --cpus 0.6, live, gave {share:.2%}")
    assert 0.57 <= share <= 0.63


@pytest.fixture
def two_cpus():
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is one CPU only")


def test_weights_share_a_saturated_cpu(make_ve, burn, cpu_shares, figure, two_cpus):
    light, heavy = make_ve("light", cpu_weight=100, cpu_mask="1"), make_ve("heavy", cpu_weight=300, cpu_mask="1")
    for ve in (light, heavy):
        burn(ve)
    low, high = cpu_shares([light, heavy], 15)
    figure(f"--cpu-weight 100:300 gave {low:.2%} and {high:.2%}, that is 1:{high / low:.3f}")
    assert low + high > 0.9, "the CPU was not saturated"
    assert high / low == pytest.approx(3, rel=0.05)

    light.set(cpu_weight=300)
    low, high = cpu_shares([light, heavy], 8)
    figure(f"then 300:300, live, gave 1:{high / low:.3f}")
    assert high / low == pytest.approx(1, rel=0.05)


def test_a_mask_keeps_a_ve_on_its_cpus(make_ve, burn, cpu_shares, figure, two_cpus):
    ve = make_ve("masked", cpu_mask="1")
    allowed = ("grep", "Cpus_allowed_list", "/proc/self/status")
    assert ve.exec(*allowed).stdout.split() == ["Cpus_allowed_list:", "1"]
    burn(ve, 2)
    (share,) = cpu_shares([ve], 5)
    figure(f"--cpu-mask 1 gave two busy loops {share:.2%} of a CPU")
    assert 0.9 < share <= 1.02

    ve.set(cpu_mask="0")
    assert ve.exec(*allowed).stdout.split() == ["Cpus_allowed_list:", "0"]
    ve.set(cpu_mask="default")
    assert ve.exec(*allowed).stdout.split()[1] != "0"
    (share,) = cpu_shares([ve], 5)
    assert share > 1.3, "without a mask two busy loops run on two CPUs"


def test_a_burst_is_never_above_the_quota(make_ve):
    ve = make_ve("bursty", cpus="0.5", cpu_burst="20ms")
    assert (ve.read("cpu.max.burst"), ve.in_force("cpu-burst")) == ("20000", "20ms")
    ve.set(cpus="0.1")
    assert (ve.read("cpu.max.burst"), ve.read("cpu.max")) == ("10000", "10000 100000")
    ve.set(cpus="0.3", cpu_burst="0")
    assert (ve.read("cpu.max.burst"), ve.read("cpu.max")) == ("0", "30000 100000")
    assert "set cpus too" in ve.set(21, cpus="unlimited", cpu_burst="20ms").stderr
