# SPDX-License-Identifier: GPL-2.0-or-later
"""Groups of VEs, such as a tenant's: what they may have, and can count on, together.

A group has the settings of a VE that are limits, guarantees and weights. It may be in another group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vemgr.core.config import BY_KEY, Settings, parse_settings
from vemgr.core.errors import BadParameter, BadValue
from vemgr.core.names import check_name
from vemgr.core.parsing import IDLE

#: Of the settings of VEs those that a group has.
GROUP_KEYS = ("cpus", "cpu-guarantee", "cpu-weight", "memory", "memory-guarantee", "swap", "pids", "io-weight",
              "io-read", "io-write", "iops-read", "iops-write", "description")
MOST_LEVELS = 4  # of groups in groups: each costs the kernel a step at every charge of memory
_MARK = "_"


@dataclass(frozen=True)
class Group:
    """`parent`: the group that it is in, "" for none."""

    name: str
    parent: str = ""
    settings: Settings = field(default_factory=Settings)


def group_key(name: str) -> str:
    """What a group is called where VEs are called by their names: sums, weights, cgroups. No VE's name begins so, nor
    does a file of a controller (cgroup-v2.rst, "Avoid Name Collisions"). "" for no group."""
    return f"{_MARK}{name}" if name else ""


def is_group_key(key: str) -> bool:
    return key.startswith(_MARK)


def shown(key: str) -> str:
    """A VE or a group as it is called in texts."""
    return f"group {key.removeprefix(_MARK)}" if is_group_key(key) else key


def called(key: str) -> str:
    """The same where it must be said that it is a VE."""
    return shown(key) if is_group_key(key) else f"VE {key}"


def check_group_name(name: str) -> str:
    try:
        return check_name(name)
    except BadValue as error:
        raise BadValue("group", name[:80], "a group's name is made as a VE's") from error


def parse_group_settings(texts: Mapping[str, str], base: Settings | None = None) -> Settings:
    """As `parse_settings`, of what a group has. Raises `BadParameter`, `BadValue`."""
    for key in texts:
        if key in BY_KEY and key not in GROUP_KEYS:
            raise BadParameter(f"a group has no setting {key}", remedy=f"there are: {', '.join(GROUP_KEYS)}", field=key)
    found = parse_settings(texts, base)
    if found.cpu_weight == IDLE:  # nobody could keep a guarantee of a VE in it
        raise BadValue("cpu-weight", "idle", "a group has a weight", remedy="make the VEs in it idle")
    return found


def line_of(groups: Mapping[str, Group], name: str) -> list[Group]:
    """The group and those that it is in, outermost first; empty for "". One that is not known stands alone."""
    found: list[Group] = []
    while name and len(found) < MOST_LEVELS:
        group = groups.get(name, Group(name))
        found.append(group)
        name = group.parent
    return found[::-1]
