# SPDX-License-Identifier: GPL-2.0-or-later
"""What VEs, profiles and volumes may be called."""

from __future__ import annotations

import re

from vemgr.core.errors import BadValue

LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def check_name(name: str) -> str:
    """A name is a DNS label, so it is safe as a path component, a cgroup and a host name."""
    if not LABEL.fullmatch(name):
        raise BadValue("name", name[:80], "a name has 1 to 63 characters a-z, 0-9 and '-', and begins and ends with "
                       "a letter or digit")
    return name
