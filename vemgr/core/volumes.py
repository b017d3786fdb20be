# SPDX-License-Identifier: GPL-2.0-or-later
"""Volumes: directories that vemgr keeps, and VEs are given with `--mount NAME:DST`; they outlive each of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vemgr.core import resources
from vemgr.core.errors import SystemFailure

# Above the ids of all VEs; of those within one range only the first is a project.
_FIRST_PROJECT, _LAST_PROJECT = 0xFFF0_0001, 0xFFF0_FFFF
_LEAST_SIZE = 1 << 20
_MOST_INODES = 1 << 32


@dataclass(frozen=True)
class Volume:
    """`size` in bytes and `inodes` are what all that is in it may take, None for no limit; `used` and `files` what it
    takes, None where that is not counted."""

    name: str
    size: int | None = None
    inodes: int | None = None
    used: int | None = None
    files: int | None = None


def parse_size(text: str) -> int | None:
    """Bytes from "10G", None from "unlimited". Raises `BadValue`."""
    return resources.parse_size("size", text, least=_LEAST_SIZE)


def parse_inodes(text: str) -> int | None:
    """Raises `BadValue`."""
    return resources.parse_count("inodes", text, least=1, most=_MOST_INODES, unlimited=True)


def free_project(taken: Iterable[int]) -> int:
    """A project of the file system (`kernel.quota`) that no volume has. Raises `SystemFailure`."""
    known = set(taken)
    for project in range(_FIRST_PROJECT, _LAST_PROJECT + 1):
        if project not in known:
            return project
    raise SystemFailure(f"there are {len(known)} volumes, and no more can be counted", remedy="remove some")
