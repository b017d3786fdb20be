# SPDX-License-Identifier: GPL-2.0-or-later
"""Groups of VEs, such as a tenant's, with a guarantee, a limit and a weight of their own.

A group takes part in the filling as if it were one VE, and what it gets is filled into its members. One level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vemgr.scheduler.filling import Claim, fill


@dataclass(frozen=True, slots=True)
class Member:
    """`group`: "" for a VE that stands beside the groups."""

    claim: Claim
    group: str = ""


def fill_groups(capacity: int, groups: Mapping[str, Claim], members: Sequence[Member]) -> list[int]:
    """Shares in the order of `members`. Raises `KeyError` for a group that is not in `groups`."""
    inside: dict[str, list[int]] = {name: [] for name in groups}
    alone: list[int] = []
    for index, member in enumerate(members):
        (inside[member.group] if member.group else alone).append(index)
    filled = [name for name in groups if inside[name]]
    tops = [effective(groups[name], [members[index].claim for index in inside[name]]) for name in filled]
    outer = fill(capacity, [*tops, *(members[index].claim for index in alone)]).shares
    shares = [0] * len(members)
    for name, share in zip(filled, outer, strict=False):
        inner = fill(share, [members[index].claim for index in inside[name]]).shares
        for index, part in zip(inside[name], inner, strict=True):
            shares[index] = part
    for index, share in zip(alone, outer[len(filled):], strict=True):
        shares[index] = share
    return shares


def effective(group: Claim, members: Sequence[Claim]) -> Claim:
    """The group's claim as its members bound it: it promises at least what they were promised, and takes no more than
    they can use. Its own limit comes before either."""
    promised = sum(claim.promise for claim in members)
    usable: int | None = 0
    for claim in members:
        usable = None if usable is None or claim.limit is None else usable + claim.limit
    limits = [limit for limit in (group.limit, usable) if limit is not None]
    return replace(group, guarantee=max(group.guarantee, promised), limit=min(limits, default=None))
