# SPDX-License-Identifier: GPL-2.0-or-later
"""What limits the host has for those who set them by cgroup v2."""

from __future__ import annotations


def controllers(path: str = "/sys/fs/cgroup/cgroup.controllers") -> set[str]:
    """Of a pure cgroup v2 host; none where v1 has them (cgroup-v2.rst, cgroup.controllers)."""
    try:
        with open(path, encoding="ascii") as file:
            return set(file.read().split())
    except OSError:
        return set()
