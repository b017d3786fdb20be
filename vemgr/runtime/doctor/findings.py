# SPDX-License-Identifier: GPL-2.0-or-later
"""What a probe says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from vemgr.core.host import HostConfig


class Level(StrEnum):
    """FAIL: VEs do not work, or lose something. WARN: something that VEs can do is missing or bounded."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """`fact`: what is so. `meaning`: what that means for VEs. `remedy`: a command, or what else to do."""

    level: Level
    fact: str
    meaning: str = ""
    remedy: str = ""


def ok(fact: str) -> Finding:
    return Finding(Level.OK, fact)


def warn(fact: str, meaning: str, remedy: str = "") -> Finding:
    return Finding(Level.WARN, fact, meaning, remedy)


def fail(fact: str, meaning: str, remedy: str = "") -> Finding:
    return Finding(Level.FAIL, fact, meaning, remedy)


class Space(NamedTuple):
    """Bytes and inodes of a file system; it has `inodes` 0 where it makes them as it goes."""

    size: int
    free: int
    inodes: int
    inodes_free: int


class Clock(NamedTuple):
    now: float
    synchronised: bool


class Chain(NamedTuple):
    """A chain of nftables with a hook."""

    family: str
    table: str
    name: str
    hook: str
    policy: str


class Host(Protocol):
    """How a probe learns of the host. What is not there is told as None, False or empty, and raises nothing."""

    def text(self, path: str) -> str | None: ...
    def names(self, path: str) -> list[str]: ...
    def has(self, path: str) -> bool: ...
    def tool(self, name: str) -> bool: ...
    def release(self) -> str: ...
    def clock(self) -> Clock: ...
    def space(self, path: str) -> Space | None: ...
    def filesystem(self, path: str) -> str: ...
    def chains(self) -> list[Chain] | None: ...
    def answers(self, path: str) -> bool: ...
    def quotas(self, path: str) -> bool: ...
    def disk_scheduler(self, path: str) -> str: ...


@dataclass(frozen=True)
class Site:
    """What is known without looking. `daemon`: whether it is the daemon that asks, else `running` and `cgroup` are not
    known. `cgroup`: directory of the VEs' cgroups. `installed`: version of the command that wants to know."""

    config: HostConfig
    version: str
    installed: str
    daemon: bool = False
    cgroup: str = ""
    running: frozenset[str] = frozenset()
    subnets: Mapping[str, str] = field(default_factory=dict)  # by bridge


Probe = Callable[[Host, Site], Finding]


def described(check: str, finding: Finding) -> dict[str, Any]:
    return {"check": check, "level": str(finding.level), "fact": finding.fact, "meaning": finding.meaning,
            "remedy": finding.remedy}
