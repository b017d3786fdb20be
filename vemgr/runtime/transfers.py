# SPDX-License-Identifier: GPL-2.0-or-later
"""Files into VEs and out of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from vemgr.core.errors import BadValue, SystemFailure
from vemgr.core.lifecycle import Verb
from vemgr.runtime.images import OpenDisk
from vemgr.runtime.instances import Instance, Instances, Parts
from vemgr.runtime.starting import Starter

KINDS = ("file", "directory", "archive")


class Transfers:
    def __init__(self, parts: Parts, instances: Instances, starter: Starter) -> None:
        self._parts = parts
        self._instances = instances
        self._starter = starter

    async def do(self, verb: Verb, name: str, path: str, job: dict[str, Any], fds: tuple[int, ...]) -> dict[str, Any]:
        """Push or pull. `job`: what the helper is told besides where the VE's files are."""
        if job["kind"] not in KINDS:
            raise BadValue("kind", job["kind"], f"not one of {', '.join(KINDS)}")
        if not path.startswith("/") or "\0" in path:
            raise BadValue("path", ascii(path), "not an absolute path in the VE")
        direction = "into" if verb == Verb.PUSH else "out of"
        job = {**job, "do": str(verb), "path": path, "what": f"copy {direction} VE {name}"}
        async with self._opened(name, verb) as (where, more):
            return await self._parts.file_jobs.run(name, {**job, **where}, (*fds, *more))

    @contextlib.asynccontextmanager
    async def _opened(self, name: str, verb: Verb) -> AsyncIterator[tuple[dict[str, Any], tuple[int, ...]]]:
        """Where a VE's files are, and descriptors for that. A stopped VE is held meanwhile: its layers may be mounted
        once only. One that runs is not: other verbs need not wait for a client that reads slowly."""
        instance = self._instances.get(name)
        if instance.running:
            pidfd = self._pidfd(instance)
            try:
                yield {"pid": instance.pid, "pidfd": pidfd}, (pidfd,)
            finally:
                os.close(pidfd)
            return
        async with self._instances.held(name, verb) as instance:
            if instance.running:
                raise SystemFailure(f"VE {name} has started meanwhile", remedy="try again", ve=name)
            definition = instance.definition
            template = await self._starter.template(definition.template)
            self._parts.template_verbs.check_stays(template.name)
            async with contextlib.AsyncExitStack() as undo:
                disk = await self._starter.storage(definition, len(template.trees), undo)
                image = isinstance(disk, OpenDisk)
                data = disk.source if isinstance(disk, OpenDisk) else f"{self._parts.store.path(name)}/data"
                yield {"trees": [asdict(tree) for tree in template.trees], "data": data, "disk": image,
                       "id-base": definition.id_base, "stage": self._parts.file_jobs.stage}, ()
                undo.pop_all()
            if disk is not None:
                disk.handed_over()

    def _pidfd(self, instance: Instance) -> int:
        try:
            return os.pidfd_open(instance.pid)
        except OSError as error:
            raise SystemFailure(f"VE {instance.name} is ending: {error.strerror}", ve=instance.name) from error
