# SPDX-License-Identifier: GPL-2.0-or-later
"""The built-in template `host`: a tree that links to the host's own operating system."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class SkeletonSummary:
    """`links`: directories of the host that a VE sees as its own, each below a mask of the same name.
    `masked`: host paths that the masks hide."""

    files: int = 0
    bytes: int = 0
    links: list[str] = field(default_factory=list)
    masked: list[str] = field(default_factory=list)


def build_skeleton(root_fd: int, host_root: str = "/") -> SkeletonSummary:
    raise NotImplementedError
