# SPDX-License-Identifier: GPL-2.0-or-later
"""Unpacks an untrusted tar stream below a directory descriptor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """Bounds for one archive: content `bytes` (apparent size), `entries`, bytes in a path, directories in a path."""

    bytes: int = 64 << 30
    entries: int = 2_000_000
    path_bytes: int = 4000
    depth: int = 100


DEFAULT_LIMITS = ArchiveLimits()


@dataclass(slots=True)
class ArchiveSummary:
    """What was unpacked, and what was left out on purpose."""

    bytes: int = 0
    entries: int = 0
    devices_skipped: int = 0
    xattrs_dropped: int = 0


def unpack(
    stream: BinaryIO,
    root_fd: int,
    *,
    limits: ArchiveLimits = DEFAULT_LIMITS,
    progress: Callable[[int], None] | None = None,
) -> ArchiveSummary:
    raise NotImplementedError
