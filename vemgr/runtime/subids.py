# SPDX-License-Identifier: GPL-2.0-or-later
"""Ids for VEs, and those of others: the ranges of subuid(5) and subgid(5), which podman and LXC hand out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from vemgr.core.host import HostConfig, allocate_ids
from vemgr.core.ids import NESTED_BASE
from vemgr.kernel.namespaces import nested
from vemgr.runtime.store import storage_errors


def free_base(config: HostConfig, taken: Iterable[int]) -> int:
    """The first host id of a new VE. Raises `NotEnoughResources`, `SystemFailure`."""
    return NESTED_BASE if nested() else allocate_ids(config, taken, foreign_ranges())


def foreign_ranges(paths: tuple[str, ...] = ("/etc/subuid", "/etc/subgid")) -> list[tuple[int, int]]:
    """(first, count) of every line; a file that is missing has none. Raises `SystemFailure`: what is not known to be
    free must not be given to a VE."""
    found: list[tuple[int, int]] = []
    for path in paths:
        with storage_errors(f"read {path}"), contextlib.suppress(FileNotFoundError):
            with open(path, encoding="utf-8", errors="replace") as file:
                for line in file:
                    _, first, count = [*line.strip().split(":"), "", ""][:3]
                    if first.isdigit() and count.isdigit():
                        found.append((int(first), int(count)))
    return found
