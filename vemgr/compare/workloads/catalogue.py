# SPDX-License-Identifier: GPL-2.0-or-later
"""All works, in the order in which reports print them."""

from __future__ import annotations

from collections.abc import Sequence

from vemgr.compare.workloads import applications, crowd, files, kernel, lifecycle, manage, network
from vemgr.compare.workloads.workload import Workload
from vemgr.core.errors import BadValue

ALL: tuple[Workload, ...] = (*lifecycle.WORKS, *kernel.WORKS, *files.WORKS, *network.WORKS, *applications.WORKS,
                             *crowd.WORKS, *manage.WORKS)


def chosen(names: Sequence[str], *, quick: bool) -> list[Workload]:
    """Those of these names, or all, or those of a quick run. Raises `BadValue` for a name that there is none of."""
    known = {work.name: work for work in ALL}
    for name in names:
        if name not in known:
            raise BadValue("--workload", name, "there is no such workload", remedy=f"there are: {', '.join(known)}")
    if names:
        return [work for work in ALL if work.name in names]
    return [work for work in ALL if work.quick or not quick]
