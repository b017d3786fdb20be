# SPDX-License-Identifier: GPL-2.0-or-later
"""export and import: a stopped VE to a file, and a VE of such a file, on this host or another."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from vemgr.core.config import DEFAULTS, Definition, Settings, parse_settings, show_settings
from vemgr.core.errors import (
    AddressInUse,
    ExportUnusable,
    TemplateInUse,
    TemplateNotFound,
    TemplateUnusable,
    VEExists,
    VemgrError,
)
from vemgr.core.events import Kind
from vemgr.core.layers import HOST_TEMPLATE, Template
from vemgr.core.lifecycle import Verb, check
from vemgr.core.links import Link, parse_links, show_links
from vemgr.core.names import check_name
from vemgr.files.bundle import Manifest
from vemgr.runtime.disks import Storage
from vemgr.runtime.images import Images
from vemgr.runtime.instances import Instances, Parts
from vemgr.runtime.network.addressing import Addressing
from vemgr.runtime.ordering import check_order
from vemgr.runtime.starting import Starter
from vemgr.runtime.subids import free_base
from vemgr.templates.digest import digest_parts
from vemgr.templates.store import utc_now

log = logging.getLogger(__name__)

# What gives a VE something of the host. A file may say anything: that must not be enough to have /etc of this host.
OPENING = ("mount", "device", "feature", "capability", "allow", "publish", "user-namespaces", "group")


class Carrying:
    def __init__(self, parts: Parts, instances: Instances, starter: Starter, addressing: Addressing) -> None:
        self._parts = parts
        self._instances = instances
        self._starter = starter
        self._addressing = addressing

    async def export(self, name: str, stream: int, hold: int, *, with_template: bool) -> list[str]:
        """Write a stopped VE to a descriptor. Returns what was left out."""
        parts = self._parts
        async with self._instances.held(name, Verb.EXPORT) as instance:
            check(name, instance.state, Verb.EXPORT)
            definition = parts.store.load(name)
            template = await self._starter.template(definition.template)
            if with_template and template.kind == HOST_TEMPLATE:
                raise TemplateUnusable(f"template {template.name} cannot be put in a file: it is this host itself",
                                       remedy="export without --with-template", template=template.name)
            parts.template_verbs.check_stays(template.name)
            count = parts.disks.trees(name, len(template.trees))
            job: dict[str, Any] = {
                "do": "export", "what": f"export VE {name}", "hold": hold, "stream": stream, "count": count,
                "id-base": definition.id_base, "digest": digest_parts(template), "template-inside": with_template,
                "stage": parts.file_jobs.stage, "manifest": {
                    "name": name, "created": definition.created, "template": template.name,
                    "settings": show_settings(definition.settings), "links": show_links(definition.links)}}
            async with where(parts, name, definition, count) as place:
                outcome = await parts.file_jobs.run(name, job | place, (stream, hold))
        return list(outcome["skipped"])

    async def import_(self, name: str, template: str, texts: Mapping[str, str], stream: int, hold: int, *,
                      trusted: bool) -> tuple[str, list[str]]:
        """Make a VE of what comes from a descriptor; the file's name, template and settings unless others are given.
        Returns its name, and what is not as the file says."""
        text = (await self._job("manifest", "read the file", stream, hold))["text"]
        manifest = msgspec.json.decode(text, type=Manifest)
        name = check_name(name or manifest.name)
        if name in self._instances:
            raise VEExists(name)
        texts = await asyncio.to_thread(self._parts.profiles.expanded, texts)
        settings, notes = _settings(manifest, texts, trusted=trusted)
        stands_on, store_as = await self._template(manifest, template, stream, hold)
        self._parts.limits.check(settings)
        self._parts.disks.check(name, DEFAULTS, settings, running=False)
        await self._starter.binds(settings)
        await self._starter.devices(settings)
        await self._parts.networking.choose()
        # From here to the admission nothing waits, as in `create`.
        if name in self._instances:
            raise VEExists(name)
        check_order(self._instances, name, settings.after)
        settings, links = self._links(name, manifest, settings, texts, notes)
        self._parts.promises.check_group(settings)
        instance = self._instances.admit(Definition(
            name=name, template=stands_on, created=utc_now(), settings=settings, links=links,
            id_base=free_base(self._parts.config, self._instances.id_bases)))
        with contextlib.ExitStack() as verbs:
            try:
                if store_as:
                    verbs.enter_context(self._parts.template_verbs.held(store_as, "import"))
                else:
                    self._parts.template_verbs.check_stays(stands_on)
                async with self._instances.held(name, Verb.CREATE):
                    await self._restore(instance.definition, manifest, text, store_as, stream, hold)
            except BaseException:
                self._instances.forget(instance)
                raise
        log.info("VE %s imported, exported as %s", name, manifest.name)
        self._parts.journal.add(Kind.CREATED, name, "from a file")
        if store_as:
            notes.append(f"its template is now here as {store_as}")
        return name, notes

    async def _job(self, do: str, what: str, stream: int, hold: int, **more: Any) -> dict[str, Any]:
        return await self._parts.file_jobs.run("", {"do": do, "what": what, "stream": stream, "hold": hold, **more},
                                               (stream, hold))

    async def _template(self, manifest: Manifest, given: str, stream: int, hold: int) -> tuple[str, str]:
        """What the VE is to stand on, and under which name its template is to be taken from the file, "" for not."""
        if given:
            await self._check_trees(manifest, await self._starter.template(given))
            return given, ""
        wanted = manifest.template_digest
        # One that came with another file may have been given a longer name.
        names = [manifest.template, f"{manifest.template[:50].rstrip('.-')}-{wanted[-8:]}"]
        for name in names:
            try:
                template = await self._starter.template(name)
            except TemplateNotFound:
                if manifest.template_inside:
                    return name, name
                continue
            found = await self._job("digest", f"read template {name}", stream, hold, digest=digest_parts(template))
            if found["digest"] == wanted:
                await self._check_trees(manifest, template)
                return name, ""
        remedy = "export it again with --with-template, or name one with --template"
        if manifest.template_inside:
            raise TemplateUnusable(f"templates {' and '.join(names)} are here, and both are others than the VE's",
                                   remedy="remove one, or name one with --template", template=names[0])
        if names[0] in [each.name for each in await asyncio.to_thread(self._parts.templates.list)]:
            raise TemplateUnusable(f"template {names[0]} of this host is another one than the VE stands on",
                                   remedy=remedy, template=names[0], wanted=wanted)
        raise TemplateNotFound(names[0], remedy)

    @staticmethod
    async def _check_trees(manifest: Manifest, template: Template) -> None:
        if manifest.trees not in (0, len(template.trees)):
            raise ExportUnusable(f"the VE has files over {manifest.trees} trees, template {template.name} has "
                                 f"{len(template.trees)}", remedy="name another one with --template")

    def _links(self, name: str, manifest: Manifest, settings: Settings, texts: Mapping[str, str],
               notes: list[str]) -> tuple[Settings, tuple[Link, ...]]:
        """Addresses: the ones that it had, where they are free here."""
        try:
            had = parse_links("links", manifest.links) if manifest.links else ()
        except VemgrError:
            had = ()
        before = Definition(name=name, template="", id_base=0, created="", settings=settings, links=had)
        try:
            links = self._addressing.links(name, settings, before)
        except AddressInUse as error:
            if {"network", "address", "mac", "publish"} & set(texts):
                raise
            notes.append(f"it gets addresses anew: {error.message}")
            settings = replace(settings, address=(), mac="",
                               network=tuple(Link(link.network) for link in settings.network))
            links = self._addressing.links(name, settings)
        return settings, links

    async def _restore(self, definition: Definition, manifest: Manifest, text: str, store_as: str, stream: int,
                       hold: int) -> None:
        parts, count = self._parts, manifest.trees
        image = parts.disks.kind(definition.name, definition.settings) is Storage.IMAGE
        quota = definition.settings.disk is not None and not image
        partial = await asyncio.to_thread(parts.store.begin, definition, 0 if image else count,
                                          definition.id_base if quota else 0)
        try:
            async with made(parts, partial, definition, count if image else 0) as place:
                await parts.file_jobs.run(definition.name, {
                    "do": "import", "what": f"import VE {definition.name}", "stream": stream, "hold": hold,
                    "manifest": text, "id-base": definition.id_base, "template": store_as,
                    "templates": str(parts.templates.directory), "stage": parts.file_jobs.stage, **place},
                    (stream, hold))
            await asyncio.to_thread(parts.store.finish, definition)
        except BaseException:
            await asyncio.to_thread(parts.store.purge, partial)
            if store_as:
                await asyncio.to_thread(self._drop_template, store_as, definition.name)
            raise

    def _drop_template(self, template: str, name: str) -> None:
        """Take back what came with a VE that has not come, unless another VE stands on it by now."""
        self._parts.templates.sweep_of(template)
        users = [user.name for user in self._instances.users_of(template) if user.name != name]
        with contextlib.suppress(TemplateNotFound, TemplateInUse):
            self._parts.templates.remove(template, users)


def _settings(manifest: Manifest, texts: Mapping[str, str], *, trusted: bool) -> tuple[Settings, list[str]]:
    """The file's settings, and those given instead; what of the file's was left out."""
    theirs = dict(manifest.settings)
    notes = []
    for key in OPENING:
        if key in theirs and not trusted:
            text = theirs.pop(key)
            if key not in texts:
                notes.append(f"not taken from the file, since it opens something of this host: {key} = {text!a}; "
                             "--trusted takes all of these")
    return parse_settings(theirs | dict(texts)), notes


@contextlib.asynccontextmanager
async def where(parts: Parts, name: str, definition: Definition, count: int) -> AsyncIterator[dict[str, Any]]:
    """Where a job finds the files of a stopped VE."""
    images = parts.disks.images
    if count and images.exists(name):
        async with mounted(images, name, definition.id_base, count) as source:
            yield {"data": source, "disk": True}
    else:
        yield {"data": f"{parts.store.path(name)}/data", "disk": False}


@contextlib.asynccontextmanager
async def made(parts: Parts, partial: str, definition: Definition, count: int) -> AsyncIterator[dict[str, Any]]:
    """Where a job puts those of a VE that is being made, in its hidden directory. `count`: of trees on a new disk."""
    images, hidden = parts.disks.images, partial.rpartition("/")[2]
    if count:
        await asyncio.to_thread(images.make, hidden, definition.settings)
        async with mounted(images, hidden, definition.id_base, count) as source:
            yield {"data": source, "disk": True}
    else:
        yield {"data": f"{partial}/data", "disk": False}


@contextlib.asynccontextmanager
async def mounted(images: Images, name: str, id_base: int, count: int) -> AsyncIterator[str]:
    """A VE's disk, by a path that another process of the host can use meanwhile."""
    disk = await asyncio.to_thread(images.open, name, id_base, count)
    try:
        yield disk.source
    except BaseException:
        disk.close()
        raise
    disk.handed_over()
