# SPDX-License-Identifier: GPL-2.0-or-later
"""How the files of each VE are kept: in a directory, in one with a quota, or in an image (docs/adr/0012)."""

from __future__ import annotations

import os
from enum import StrEnum

from vemgr.core.config import Definition, Settings
from vemgr.runtime.images import Images
from vemgr.runtime.quotas import Quotas


class Storage(StrEnum):
    DIRECTORY = "directory"
    QUOTA = "quota"
    IMAGE = "image"


class Disks:
    """`directory`: that of the VEs."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self.images = Images(directory)
        self.quotas = Quotas(directory)

    def kind(self, name: str, settings: Settings) -> Storage:
        """What it is, or will be from the first start on: a quota where the file system has them, since that takes no
        loop device, no second journal, and another size at once."""
        if self.images.exists(name):
            return Storage.IMAGE
        if os.path.lexists(f"{self._directory}/{name}/data"):
            return Storage.QUOTA if self.quotas.has(name) else Storage.DIRECTORY
        if settings.disk is None:
            return Storage.DIRECTORY
        return Storage.QUOTA if self.quotas.available() else Storage.IMAGE

    def check(self, name: str, before: Settings, after: Settings, *, running: bool) -> None:
        """Refuse what cannot be done: `NotEnforceable`, `BadValue`. For a VE that is new, `before` is the default."""
        if (before.disk, before.inodes) != (after.disk, after.inodes) and self.kind(name, after) is not Storage.QUOTA:
            self.images.check(name, before, after, running=running)

    def live(self, name: str, settings: Settings) -> tuple[str, ...]:
        """The keys of settings that a running VE gets at once."""
        return {Storage.QUOTA: ("disk", "inodes"), Storage.IMAGE: ("disk",)}.get(self.kind(name, settings), ())

    def image(self, name: str, settings: Settings) -> str | None:
        """The path of the VE's image, if it has or will have one."""
        if settings.disk is None or self.kind(name, settings) is not Storage.IMAGE:
            return None
        return self.images.path(name)

    def project(self, source: str, target: Definition) -> int:
        """What the files of a VE that is made of another's are counted as."""
        return target.id_base if self.quotas.has(source) else 0

    def trees(self, name: str, count: int) -> int:
        """How many of the `count` trees of its template the VE has written to: all, or none before its first start."""
        return count if self.images.exists(name) or os.path.isdir(f"{self._directory}/{name}/data/0/upper") else 0

    def resize(self, after: Definition, *, running: bool) -> None:
        """Give a VE the size that its definition says now. Raises `LimitNotReached`, `SystemFailure`, `NoSpace`."""
        if self.kind(after.name, after.settings) is Storage.QUOTA:
            self.quotas.resize(after)
        elif after.settings.disk is not None and running:
            self.images.grow(after.name, after.settings.disk)
        elif after.settings.disk is not None:
            self.images.resize(after.name, after.settings.disk)
