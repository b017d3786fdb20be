# SPDX-License-Identifier: GPL-2.0-or-later
"""The driver `xen-pv`: classic paravirtualization, for which the host has to run under Xen.

It says why it is not available, and no more: it has not been seen at work on a Xen host, so it starts nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from vemgr.compare.driver import Context, DriverFailed, Resources
from vemgr.compare.guests import connection
from vemgr.core.errors import VemgrError

_CAPABILITIES = Path("/proc/xen/capabilities")
_URI = "xen:///system"


class XenDriver:
    name = "xen-pv"
    label = "Xen guest, paravirtualized"

    def __init__(self, context: Context, capabilities: Path = _CAPABILITIES) -> None:
        self._context, self._capabilities = context, capabilities

    def probe(self) -> str:
        try:
            privileged = "control_d" in self._capabilities.read_text()
        except OSError:
            return f"this is no Xen host: there is no {self._capabilities}"
        if not privileged:
            return "this host is a guest of Xen itself, and only Dom0 starts guests"
        try:
            connection.connect(_URI, self._context.directory).close()
        except VemgrError as error:
            return str(error)
        return "this is a Xen host, but this version of vemgr does not start guests of Xen yet"

    def prepare(self, root: Path, resources: Resources, directory: Path) -> None:
        del root, resources, directory
        self._refuse()

    def start(self, name: str, resources: Resources) -> NoReturn:
        del name, resources
        self._refuse()

    def disk_bytes(self) -> int | None:
        return None

    def clean(self) -> list[str]:
        return []

    def close(self) -> None:
        """There is nothing that could be left."""

    def _refuse(self) -> NoReturn:
        raise DriverFailed(self.probe())
