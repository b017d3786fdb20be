# SPDX-License-Identifier: GPL-2.0-or-later
"""From amounts to what the files of cgroup v2 take (Documentation/admin-guide/cgroup-v2.rst), with the error of each.

| file | unit | error |
|---|---|---|
| cpu.max | microseconds in 100 ms | none: a thousandth of a CPU is 100 us; at least 1 ms |
| cpu.max.burst | microseconds | none; at most the quota, which is the kernel's own bound |
| cpu.weight | 1 to 10000 | as `weights` says |
| cpuset.cpus | CPU numbers | none |
| memory.min, memory.low | pages | rounded up, by less than one page |
| memory.max, memory.swap.max | pages | rounded down, by less than one page; the kernel does it itself |
| io.weight, io.bfq.weight | 1 to 10000, 1 to 1000 | none: the setting ends at 1000 |
| io.max | bytes/s, operations/s | none |
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

PERIOD = 100_000  # microseconds, the kernel's default CPU bandwidth period
LEAST_QUOTA = 1_000  # microseconds, the kernel's min_cfs_quota_period
PAGE = 4096
LEAST_WEIGHT, MOST_WEIGHT = 1, 10_000
_TOLERANCE = 400  # a weight that is off by less than one part in so many stays


def cpu_quota(millicpus: int) -> int:
    """Microseconds in each `PERIOD`."""
    return max(LEAST_QUOTA, millicpus * PERIOD // 1000)


def cpu_max(millicpus: int | None) -> str:
    return "max" if millicpus is None else f"{cpu_quota(millicpus)} {PERIOD}"


def cpu_burst(millicpus: int | None, burst: int) -> int:
    """cpu.max.burst for `burst` microseconds that may be saved up; 0 without a limit, where there is nothing to save.
    More than the quota is refused by the kernel."""
    return 0 if millicpus is None else min(burst, cpu_quota(millicpus))


def protection(size: int, page: int = PAGE) -> int:
    """memory.min or memory.low: a guarantee must not be short by the part of a page that the kernel cuts off."""
    return -(-size // page) * page


def certain(promised: int, factor: int) -> int:
    """The part of memory promises that is there even if all use what they were promised, when promises may be `factor`
    thousandths of what there is."""
    return promised * 1000 // max(1000, factor)


def cap(size: int | None, page: int = PAGE) -> int | None:
    """memory.max or memory.swap.max as the kernel will have it."""
    return None if size is None else size - size % page


def weights(wanted: Sequence[Fraction | int], guaranteed: Sequence[bool]) -> list[int]:
    """cpu.weight values in the ratios of `wanted`, the largest at `MOST_WEIGHT`.

    Those that stand for a guarantee are rounded up and the others down, but none below 1. So the share of a guaranteed
    one, its weight by the sum, falls short of the wanted share by at most the fraction (G + K) / S, with G guaranteed
    ones, K that had to be raised to 1, and S = 10000 * sum(wanted) / max(wanted), which is at least 10000.
    """
    most = max(wanted, default=Fraction(0))
    if not most:
        return [LEAST_WEIGHT] * len(wanted)
    factor = MOST_WEIGHT / Fraction(most)
    up, down = factor.numerator, factor.denominator
    values = []
    for each, is_guaranteed in zip(wanted, guaranteed, strict=True):
        numerator, denominator = each.numerator * up, each.denominator * down
        rounded = -(-numerator // denominator) if is_guaranteed else numerator // denominator
        values.append(max(LEAST_WEIGHT, rounded))
    return values


def is_off(weight: int, written: int) -> bool:
    """Whether a weight is so far from what it should be that it is worth a write: each start moves all a little."""
    return abs(weight - written) * _TOLERANCE > written
