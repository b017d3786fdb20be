# SPDX-License-Identifier: GPL-2.0-or-later
"""Verbs that make of a stopped VE something else: another VE, one of another name, a template."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import asdict, replace
from typing import Any

from vemgr.core.config import Definition, Settings
from vemgr.core.errors import VEExists
from vemgr.core.events import Kind
from vemgr.core.layers import Template, check_template_name
from vemgr.core.lifecycle import Verb, check
from vemgr.core.links import Link
from vemgr.core.names import check_name
from vemgr.runtime.carrying import made, where
from vemgr.runtime.instances import Instances, Parts
from vemgr.runtime.launcher import Launcher
from vemgr.runtime.network.addressing import Addressing
from vemgr.runtime.ordering import check_order
from vemgr.runtime.starting import Starter
from vemgr.runtime.subids import free_base
from vemgr.templates.store import utc_now

log = logging.getLogger(__name__)


class Copies:
    def __init__(self, parts: Parts, instances: Instances, starter: Starter, addressing: Addressing,
                 launcher: Launcher) -> None:
        self._parts = parts
        self._instances = instances
        self._starter = starter
        self._addressing = addressing
        self._launcher = launcher

    async def clone(self, name: str, new: str, hold: int) -> None:
        """Make VE `new` of a stopped one: its settings and data, with ids, addresses and a host name of its own."""
        check_name(new)
        async with self._instances.held(name, Verb.CLONE) as instance:
            check(name, instance.state, Verb.CLONE)
            source = self._parts.store.load(name)
            settings = without_identity(source.settings)
            template = await self._starter.template(source.template)
            await self._parts.networking.choose()
            # From here to the admission nothing waits, as in `create`.
            if new in self._instances:
                raise VEExists(new)
            check_order(self._instances, new, settings.after)
            self._parts.promises.check_group(settings)
            target = self._instances.admit(replace(
                source, name=new, created=utc_now(), settings=settings, started=False, ephemeral=False,
                links=self._addressing.links(new, settings),
                id_base=free_base(self._parts.config, self._instances.id_bases)))
            async with self._instances.held(new, Verb.CREATE):
                try:
                    await self._copy(source, target.definition, template, hold)
                except BaseException:
                    self._instances.forget(target)
                    raise
        log.info("VE %s cloned from %s", new, name)
        self._parts.journal.add(Kind.CREATED, new, f"cloned from {name}")

    async def _copy(self, source: Definition, target: Definition, template: Template, hold: int) -> None:
        store = self._parts.store
        count = self._parts.disks.trees(source.name, len(template.trees))
        image = self._parts.disks.images.exists(source.name)
        partial = await asyncio.to_thread(store.begin, target, 0 if image else count,
                                          self._parts.disks.project(source.name, target))
        try:
            # Not the image's blocks: the ids in it are those of the source.
            async with (where(self._parts, source.name, source, count) as place,
                        made(self._parts, partial, target, count if image else 0) as new):
                await self._parts.file_jobs.run(source.name, {
                    "do": "clone-disk" if image else "clone", "what": f"clone VE {source.name}", "count": count,
                    "hold": hold, "data": place["data"], "id-base": source.id_base, "target": new["data"],
                    "target-base": target.id_base, "stage": self._parts.file_jobs.stage}, (hold,))
            await asyncio.to_thread(store.finish, target)
        except BaseException:
            await asyncio.to_thread(store.purge, partial)
            raise

    async def rename(self, name: str, new: str) -> None:
        """Give a stopped VE another name. Its next start writes its host name anew, as a first one does."""
        check_name(new)
        async with self._instances.held(name, Verb.RENAME) as instance:
            check(name, instance.state, Verb.RENAME)
            definition = self._parts.store.load(name)
            if new in self._instances:
                raise VEExists(new)
            check_order(self._instances, new, definition.settings.after)
            renamed = self._instances.admit(replace(definition, name=new, started=False))
            async with self._instances.held(new, Verb.RENAME):
                try:
                    await asyncio.to_thread(self._parts.store.rename, definition, new)
                except BaseException:
                    self._instances.forget(renamed)
                    raise
                self._instances.forget(instance)
                instance.restarting = False
                self._launcher.forget(name)
                self._parts.logs.rename(name, new)
        log.info("VE %s is now %s", name, new)
        self._parts.journal.add(Kind.RENAMED, name, f"to {new}")
        self._parts.journal.add(Kind.RENAMED, new, f"from {name}")

    async def template(self, name: str, ve: str, description: str, hold: int) -> None:
        """Make a template of a stopped VE's data and what is below them."""
        check_template_name(name)
        store = self._parts.store
        async with self._instances.held(ve, Verb.TEMPLATE) as instance:
            check(ve, instance.state, Verb.TEMPLATE)
            definition = store.load(ve)
            template = await self._starter.template(definition.template)
            with self._parts.template_verbs.held(name, "create"):
                job: dict[str, Any] = {
                    "do": "template", "what": f"make a template of VE {ve}", "name": name, "hold": hold,
                    "description": description, "templates": str(self._parts.templates.directory),
                    "trees": [asdict(tree) for tree in template.trees], "id-base": definition.id_base,
                    "stage": self._parts.file_jobs.stage}
                count = self._parts.disks.trees(ve, len(template.trees))
                try:
                    async with where(self._parts, ve, definition, count) as place:
                        await self._parts.file_jobs.run(ve, job | place, (hold,))
                except BaseException:
                    await asyncio.to_thread(self._parts.templates.sweep_of, name)
                    raise


def without_identity(settings: Settings) -> Settings:
    """Without what only one VE can have: addresses, ports of the host, a name."""
    return replace(settings, network=tuple(Link(link.network) for link in settings.network), address=(), mac="",
                   publish=(), hostname=None)
