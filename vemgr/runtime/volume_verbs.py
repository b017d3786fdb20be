# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs on volumes: what the storage of them (`volumes`) does, with regard to the VEs that have them."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from vemgr.core.errors import VolumeInUse
from vemgr.core.volumes import Volume, parse_inodes, parse_size
from vemgr.kernel.mountinfo import of_process
from vemgr.runtime.instances import Instance, Instances, Parts

log = logging.getLogger(__name__)


class VolumeVerbs:
    """`purge` deletes what is out of sight."""

    def __init__(self, parts: Parts, instances: Instances, purge: Callable[[str], Awaitable[None]]) -> None:
        self._parts = parts
        self._instances = instances
        self._purge = purge

    async def list(self) -> list[dict[str, Any]]:
        """Each with the VEs whose definitions name it."""
        return [self._described(volume) for volume in await asyncio.to_thread(self._parts.volumes.all)]

    async def show(self, name: str) -> dict[str, Any]:
        """Raises `VolumeNotFound`."""
        return self._described(await asyncio.to_thread(self._parts.volumes.show, name))

    async def create(self, name: str, size: str | None, inodes: str | None) -> None:
        """Raises `BadValue`, `VolumeExists`, `NotEnforceable`."""
        limits = parse_size(size or "unlimited"), parse_inodes(inodes or "unlimited")
        await asyncio.to_thread(self._parts.volumes.create, name, *limits)
        log.info("volume %s created", name)

    async def set(self, name: str, size: str | None, inodes: str | None) -> None:
        """Change what is given. Raises `BadValue`, `VolumeNotFound`, `LimitNotReached`, `NotEnforceable`."""
        before = await asyncio.to_thread(self._parts.volumes.show, name)
        await asyncio.to_thread(self._parts.volumes.set, name, before.size if size is None else parse_size(size),
                                before.inodes if inodes is None else parse_inodes(inodes))

    async def remove(self, name: str) -> None:
        """Raises `VolumeInUse`, `VolumeNotFound`."""
        path = await asyncio.to_thread(self._parts.volumes.path, name)
        running = [instance for instance in self._instances if instance.running]
        mounted = await asyncio.to_thread(_mounted, running, path)
        # A VE that is created while the directory is renamed may name it still: its start says that it is gone.
        if users := sorted(_users(self._instances, name) | mounted):
            raise VolumeInUse(name, users)
        gone = await asyncio.to_thread(self._parts.volumes.remove, name)
        log.info("volume %s removed", name)
        await self._purge(gone)

    def _described(self, volume: Volume) -> dict[str, Any]:
        return {**asdict(volume), "users": sorted(_users(self._instances, volume.name))}


def _users(instances: Instances, name: str) -> set[str]:
    return {instance.name for instance in instances
            if any(bind.volume == name for bind in instance.definition.settings.mount)}


def _mounted(instances: list[Instance], path: str) -> set[str]:
    """VEs that have it, whatever their definitions say by now."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}", path.split("/")[-2:]
    found = set()
    for instance in instances:
        with suppress(OSError):  # it has ended meanwhile
            if any((mount.device, mount.root.split("/")[-2:]) == wanted for mount in of_process(instance.pid)):
                found.add(instance.name)
    return found
