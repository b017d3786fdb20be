# SPDX-License-Identifier: GPL-2.0-or-later
"""The triggers of a cgroup's pressure (`kernel.pressure`) in the event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable

from vemgr.kernel.pressure import Trigger


class Triggers:
    """`on_pressure` is called with the resource whenever one of them has fired."""

    def __init__(self, on_pressure: Callable[[str], None]) -> None:
        self._on_pressure = on_pressure
        self._triggers: list[Trigger] = []

    def open(self, base: str, resources: Iterable[str]) -> None:
        """Listen to the cgroup `base`, and to no other any more. A kernel without PSI, or an old one, has nothing to
        listen to."""
        self.close()
        for resource in resources:
            with contextlib.suppress(OSError):
                trigger = Trigger(f"{base}/{resource}.pressure")
                self._triggers.append(trigger)
                asyncio.get_running_loop().add_reader(trigger.fileno(), self._fired, resource, trigger)

    def close(self) -> None:
        while self._triggers:
            self._drop(self._triggers[-1])

    def _drop(self, trigger: Trigger) -> None:
        asyncio.get_running_loop().remove_reader(trigger.fileno())
        self._triggers.remove(trigger)
        trigger.close()

    def _fired(self, resource: str, trigger: Trigger) -> None:
        if not trigger.take():
            self._drop(trigger)
        self._on_pressure(resource)
