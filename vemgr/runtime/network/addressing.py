# SPDX-License-Identifier: GPL-2.0-or-later
"""Giving VEs addresses and ports that no other has or will have."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

from vemgr.core.config import Definition, Settings
from vemgr.core.errors import AddressInUse
from vemgr.core.links import Link, Publication
from vemgr.runtime.instances import Instance, Instances, Parts
from vemgr.runtime.network.subnets import Taken


class Addressing:
    """Looks at all VEs: at what their next start gives them, and at what they have while they run."""

    def __init__(self, parts: Parts, instances: Instances) -> None:
        self._parts = parts
        self._instances = instances

    def links(self, name: str, settings: Settings, before: Definition | None = None) -> tuple[Link, ...]:
        """The links for a VE with these settings. Waits for nothing. Needs `Networking.choose`.

        Raises `BadValue`, `AddressInUse`, `NotEnoughResources`.
        """
        networking = self._parts.networking
        links = networking.links_for(settings, before.links if before else (), self._taken(name))
        if settings.publish:
            self._check_others(name, settings.publish)
            networking.check_ports(name, settings.publish, links)
        return links

    async def reload(self, instance: Instance) -> None:
        """Read a VE's definition again, for a start: the file is the truth, and an administrator may have edited it,
        or the networks in vemgr.toml. Where its addresses do not fit any more, it gets others."""
        definition = self._parts.store.load(instance.name)
        await self._parts.networking.choose()
        if not self._parts.networking.suits(definition.settings, definition.links):
            definition = replace(definition, links=self.links(instance.name, definition.settings, definition))
            instance.definition = definition  # before anything waits: its address is taken from now on
            await asyncio.to_thread(self._parts.store.save, definition)
        instance.definition = definition

    def _others(self, name: str) -> Iterator[tuple[str, tuple[Link, ...], tuple[Publication, ...]]]:
        for instance in self._instances:
            if instance.name != name:
                yield instance.name, instance.definition.links, instance.definition.settings.publish
                in_use = self._parts.networking.attachments.get(instance.name)
                if in_use is not None:
                    yield instance.name, in_use.links, in_use.publish

    def _taken(self, name: str) -> Taken:
        taken = Taken()
        for other, links, _ in self._others(name):
            for link in links:
                taken.addresses.update(dict.fromkeys(link.addresses, other))
                taken.macs[self._parts.networking.mac_of(link)] = other
        return taken

    def _check_others(self, name: str, publications: tuple[Publication, ...]) -> None:
        for other, _, theirs in self._others(name):
            for publication in publications:
                if any(publication.clashes(their) for their in theirs):
                    port = f"{publication.port}/{publication.protocol}"
                    raise AddressInUse(f"port {port} of the host is taken by VE {other}",
                                       remedy="choose another port of the host", port=port, ve=other)
