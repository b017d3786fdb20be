# SPDX-License-Identifier: GPL-2.0-or-later
"""Entitlement: max-min fair filling of guarantee, weight and limit over a capacity.

Everyone gets the guarantee; the rest is dealt out by weight until a limit is met, and what that one leaves goes on to
the others. So there is a level L, the same for all, with

    share = min(limit, guarantee + L * weight)

and the shares add up to the capacity, or everyone is at the limit. (Bertsekas and Gallager, "Data Networks", 6.5.2,
with weights and a floor.) L is exact; a share is rounded down to a whole unit. Rounding down, and not to what adds up,
is what keeps shares monotonic: more capacity never means less for anyone. Less than one unit per claim is left over,
so the unit should be fine: millionths of a CPU, bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

MOST_WEIGHT = 1 << 20
# Two different fractions with denominators up to MOST_WEIGHT are at least 2**-40 apart, so that whole multiples of
# 2**-40 order them as exactly as fractions would, in a twentieth of the time.
_KEY_BITS = 40


@dataclass(frozen=True, slots=True)
class Claim:
    """What one VE, or group, has been given: guarantee and limit in units, weight from 1 to `MOST_WEIGHT`."""

    guarantee: int = 0
    limit: int | None = None
    weight: int = 100

    @property
    def promise(self) -> int:
        return self.guarantee if self.limit is None else min(self.guarantee, self.limit)


@dataclass(frozen=True, slots=True)
class Filling:
    """`shares`: in the order of the claims. `level`: units per weight above the guarantee; where all are at their
    limits, the least with which they are."""

    shares: list[int]
    level: Fraction


def fill(capacity: int, claims: Sequence[Claim]) -> Filling:
    """Entitlements of `claims`; O(n log n). Where not even the guarantees fit, all are cut by the same factor."""
    shares = [claim.promise for claim in claims]
    promised = sum(shares)
    if promised > capacity:
        return Filling([share * capacity // promised for share in shares], Fraction(0))
    rest, weight = capacity - promised, sum(claim.weight for claim in claims)
    level = Fraction(0)
    limited, waiting = _by_level_of_limit(claims)
    for position, (_, index, headroom) in enumerate(limited):
        own = claims[index].weight
        if headroom * weight > rest * own:
            waiting.extend(index for _, index, _ in limited[position:])
            break
        shares[index] += headroom
        rest -= headroom
        weight -= own
    else:
        if limited:
            level = Fraction(limited[-1][2], claims[limited[-1][1]].weight)
    if waiting:
        level = Fraction(rest, weight)
        for index in waiting:
            shares[index] += rest * claims[index].weight // weight
    return Filling(shares, level)


def _by_level_of_limit(claims: Sequence[Claim]) -> tuple[list[tuple[int, int, int]], list[int]]:
    """Those with a limit as (level at which it is met, index, headroom above the guarantee), lowest first; and the
    indexes of those without."""
    limited, unlimited = [], []
    for index, claim in enumerate(claims):
        if claim.limit is None:
            unlimited.append(index)
        else:
            headroom = max(0, claim.limit - claim.guarantee)
            limited.append(((headroom << _KEY_BITS) // claim.weight, index, headroom))
    limited.sort()
    return limited, unlimited
