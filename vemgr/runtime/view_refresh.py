# SPDX-License-Identifier: GPL-2.0-or-later
"""Giving the VEs that run the view that there is by now, after lxcfs has come, gone or been replaced."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any

from vemgr.core.errors import VemgrError
from vemgr.runtime.instances import Instance, Instances, Parts

log = logging.getLogger(__name__)

_BATCH = 200  # VEs for one process: what it is told is an argument of a command


class ViewRefresh:
    """One at a time; what changes meanwhile is seen to afterwards."""

    def __init__(self, parts: Parts, instances: Instances,
                 in_background: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        self._parts = parts
        self._instances = instances
        self._in_background = in_background
        self._busy = False
        self._given: str | None = None  # what all that run have, unless they are `late`
        self._late: set[str] = set()

    async def open(self) -> None:
        """When the daemon comes up, with the VEs that it has adopted."""
        views = self._parts.views
        self._given = views.noted
        await views.open(self._begin)
        self._begin()

    def started(self, instance: Instance, generation: str) -> None:
        """A VE has started with this; something else may have come to be meanwhile."""
        if generation != self._parts.views.generation:
            self._late.add(instance.name)
            self._begin()

    def _begin(self) -> None:
        if not self._busy and (self._late or self._given != self._parts.views.generation):
            self._busy = True
            self._in_background(self._refresh())

    async def _refresh(self) -> None:
        views = self._parts.views
        generation, late = views.generation, set(self._late)
        everybody = generation != self._given
        try:
            running = [instance for instance in self._instances
                       if instance.running and (everybody or instance.name in late)]
            for first in range(0, len(running), _BATCH):
                await self._refresh_some(running[first:first + _BATCH])
        finally:
            # Also after a failure, which is told: trying again without end would not help.
            self._late -= late
            self._given, self._busy = generation, False
        views.note(generation)
        self._begin()

    async def _refresh_some(self, instances: list[Instance]) -> None:
        views, tree = self._parts.views, self._parts.tree
        job = {"do": "view", "what": "give VEs another view of memory and CPUs", "stage": self._parts.file_jobs.stage,
               "source": views.directory if views.device else "", "device": views.device, "names": views.names,
               "ves": [(each.name, tree.path(each.name), each.definition.id_base) for each in instances]}
        try:
            outcome = await self._parts.file_jobs.run("", job, ())
        except VemgrError as error:
            log.error("%s", error)
            return
        for name, why in outcome["failed"].items():
            log.warning("VE %s: a part of it has no view of memory and CPUs: %s", name, why)
        log.info("VEs have another view of memory and CPUs: %d", len(instances))
