# SPDX-License-Identifier: GPL-2.0-or-later
"""All drivers by name. Each is imported when it is asked for: libvirt's is not for those who compare with crun."""

from __future__ import annotations

from vemgr.compare.driver import Context, Driver
from vemgr.core.errors import BadValue

NAMES: tuple[str, ...] = ()


def driver(name: str, context: Context) -> Driver:
    """Raises `BadValue` for a name that there is none of."""
    del context
    raise BadValue("driver", name, "there is no such driver", remedy=f"one of {', '.join(NAMES)}")
