# SPDX-License-Identifier: GPL-2.0-or-later
"""What each VE that runs is entitled to of the CPUs, and the cpu.weight that brings it about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from vemgr.core.config import Settings
from vemgr.core.scheduling import Policy
from vemgr.scheduler.admission import Promise, promise_of
from vemgr.scheduler.filling import Claim, fill
from vemgr.scheduler.knobs import weights

MICRO = 1000  # the filling is in millionths of a CPU, settings are in thousandths


@dataclass(frozen=True, slots=True)
class CpuShares:
    """By VE. `entitled`: millionths of a CPU when all want all they can get. `weights`: for cpu.weight; `derived`: they
    follow from guarantees too. `level`: millionths of a CPU for each unit of weight above the guarantee."""

    entitled: dict[str, int]
    weights: dict[str, int]
    derived: bool
    level: Fraction


def cpu_claim(settings: Settings, promise: Promise) -> Claim:
    limit = None if settings.cpus is None else settings.cpus * MICRO
    return Claim(promise.cpus * MICRO, limit, settings.cpu_weight)


def cpu_shares(capacity: int, ves: Mapping[str, Settings], policy: Policy) -> CpuShares:
    """`capacity`: thousandths of CPUs, without the host's reserve.

    Without any guarantee the weights stay as they were given. With one they are guarantee + level * weight, and not
    more than the limit: whoever is at his limit stays there whatever the others leave, and a greater weight of his
    would make the others' small ones, which are whole numbers, inexact.
    """
    claims = [cpu_claim(settings, promise_of(settings, policy)) for settings in ves.values()]
    filling = fill(capacity * MICRO, claims)
    given = [settings.cpu_weight for settings in ves.values()]
    derived = any(claim.promise for claim in claims)
    if derived:
        given = weights([_capped(claim.promise + filling.level * claim.weight, claim.limit) for claim in claims],
                        [claim.promise > 0 for claim in claims])
    return CpuShares(dict(zip(ves, filling.shares, strict=True)), dict(zip(ves, given, strict=True)), derived,
                     filling.level)


def _capped(share: Fraction, limit: int | None) -> Fraction:
    return share if limit is None else min(share, Fraction(limit))


def memory_shares(capacity: int, ves: Mapping[str, Settings], policy: Policy) -> dict[str, int]:
    """Bytes that each VE is entitled to when all want all they can get. Memory has no weight: what is left over is
    dealt out evenly."""
    claims = [Claim(promise_of(settings, policy).memory, settings.memory) for settings in ves.values()]
    return dict(zip(ves, fill(capacity, claims).shares, strict=True))
