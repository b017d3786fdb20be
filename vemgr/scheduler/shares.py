# SPDX-License-Identifier: GPL-2.0-or-later
"""What each VE that runs is entitled to of the CPUs, and the cpu.weight that brings it about."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from vemgr.core.config import Settings
from vemgr.core.groups import Group, group_key, line_of
from vemgr.core.parsing import IDLE
from vemgr.core.scheduling import Policy
from vemgr.scheduler.admission import Promise, promise_of
from vemgr.scheduler.filling import Claim, Filling, fill
from vemgr.scheduler.groups import effective
from vemgr.scheduler.knobs import weights

_NO_GROUPS: Mapping[str, Group] = {}
#: Claims have the weights of settings times this, so that there is room for `_IDLE`, which is the kernel's own
#: (WEIGHT_IDLEPRIO of kernel/sched/sched.h, 3 where cpu.weight 100 is 1024).
_FINE, _IDLE = 100, 29
MICRO = 1000  # the filling is in millionths of a CPU, settings are in thousandths


@dataclass(frozen=True, slots=True)
class CpuShares:
    """By VE, and by group by its key. `entitled`: millionths of a CPU when all want all they can get. `weights`: for
    cpu.weight, which is relative to what else is in the same group; an idle VE has none. By group, "" for the host:
    `derived`, whether weights in it follow from guarantees too; `levels`, millionths of a CPU for each unit of weight
    above the guarantee."""

    entitled: dict[str, int]
    weights: dict[str, int]
    derived: dict[str, bool]
    levels: dict[str, Fraction]


def cpu_claim(settings: Settings, promise: Promise) -> Claim:
    limit = None if settings.cpus is None else settings.cpus * MICRO
    return Claim(promise.cpus * MICRO, limit, fine_weight(settings.cpu_weight))


def fine_weight(weight: int) -> int:
    """Of a claim, for a weight as settings have it, or `IDLE`."""
    return _IDLE if weight == IDLE else weight * _FINE


def memory_claim(settings: Settings, promise: Promise) -> Claim:
    """Memory has no weight: what is left over is dealt out evenly."""
    return Claim(promise.memory, settings.memory)


def cpu_shares(capacity: int, ves: Mapping[str, Settings], policy: Policy,
               groups: Mapping[str, Group] = _NO_GROUPS) -> CpuShares:
    """`capacity`: thousandths of CPUs, without the host's reserve.

    Without any guarantee the weights stay as they were given. With one they are guarantee + level * weight, and not
    more than the limit: whoever is at his limit stays there whatever the others leave, and a greater weight of his
    would make the others' small ones, which are whole numbers, inexact.
    """
    found = CpuShares({}, {}, {}, {})
    for group, claims, filling in _filled(capacity * MICRO, ves, groups, cpu_claim, policy):
        busy = {name: claim for name, claim in claims.items() if claim.weight != _IDLE}
        given = [claim.weight // _FINE for claim in busy.values()]
        derived = any(claim.promise for claim in claims.values())
        if derived:
            given = weights([_capped(claim.promise + filling.level * claim.weight, claim.limit)
                             for claim in busy.values()], [claim.promise > 0 for claim in busy.values()])
        found.entitled.update(zip(claims, filling.shares, strict=True))
        found.weights.update(zip(busy, given, strict=True))
        found.derived[group], found.levels[group] = derived, filling.level * _FINE
    return found


def _capped(share: Fraction, limit: int | None) -> Fraction:
    return share if limit is None else min(share, Fraction(limit))


def memory_shares(capacity: int, ves: Mapping[str, Settings], policy: Policy,
                  groups: Mapping[str, Group] = _NO_GROUPS) -> dict[str, int]:
    """Bytes that each VE, and each group by its key, is entitled to when all want all they can get."""
    found: dict[str, int] = {}
    for _, claims, filling in _filled(capacity, ves, groups, memory_claim, policy):
        found.update(zip(claims, filling.shares, strict=True))
    return found


def uplink_share(ve: str, capacity: int, ves: Mapping[str, Settings]) -> int:
    """bit/s that a VE with a class on the uplink is entitled to. The host, and all VEs without a class together, take
    part as one each with the common weight. `capacity`: without the host's reserve."""
    sharing = {name: settings for name, settings in ves.items() if settings.shares_uplink}
    claims = [Claim(settings.network_guarantee, settings.network_rate.outgoing, settings.network_weight)
              for settings in sharing.values()]
    shares = fill(capacity, [*claims, Claim(), Claim()]).shares
    return dict(zip(sharing, shares, strict=False)).get(ve, shares[-1])


def _filled(capacity: int, ves: Mapping[str, Settings], groups: Mapping[str, Group],
            claim_of: Callable[[Settings, Promise], Claim], policy: Policy,
            ) -> Iterator[tuple[str, dict[str, Claim], Filling]]:
    """The host, and each group that has a VE in it, filled with what is in it; one after those that it is in."""
    inside: dict[str, dict[str, Claim]] = {"": {}}
    lines: dict[str, list[str]] = {"": [""]}
    for ve, settings in ves.items():
        name = settings.group
        if name not in lines:
            lines[name] = _enter(line_of(groups, name), inside)
        inside[lines[name][-1]][ve] = claim_of(settings, promise_of(settings, policy))
    for group in sorted(inside, key=lambda key: -_depth(groups, key)):
        if group:
            given = groups.get(group[1:], Group(group[1:]))
            claim = claim_of(given.settings, promise_of(given.settings, policy))
            inside[group_key(given.parent)][group] = effective(claim, list(inside[group].values()))
    shares = {"": capacity}
    for group in sorted(inside, key=lambda key: _depth(groups, key)):
        filling = fill(shares[group], list(inside[group].values()))
        shares.update(zip(inside[group], filling.shares, strict=True))
        yield group, inside[group], filling


def _enter(line: list[Group], inside: dict[str, dict[str, Claim]]) -> list[str]:
    keys = [group_key(group.name) for group in line]
    for key in keys:
        inside.setdefault(key, {})
    return keys


def _depth(groups: Mapping[str, Group], key: str) -> int:
    return len(line_of(groups, key[1:]))
