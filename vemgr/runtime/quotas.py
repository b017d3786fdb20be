# SPDX-License-Identifier: GPL-2.0-or-later
"""The size of a VE whose files are in a directory: a project quota of the file system below, if that has them.

The project is the first of the VE's host ids, which no other VE has, so there is nothing to be recorded. What the file
system keeps of a project that is gone does no harm: whoever gets the ids next sets limits of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from vemgr.core.config import Definition, Settings
from vemgr.core.errors import LimitNotReached
from vemgr.core.resources import format_size
from vemgr.kernel import quota
from vemgr.runtime.store import storage_errors

# More for the time of a start: an overlay makes files when it is mounted, and is read-only where it cannot. A VE that
# had filled its disk could delete nothing after its next start.
_SLACK, _SLACK_INODES = 1 << 20, 64


class OpenQuota:
    """That of a VE which is being started."""

    def __init__(self, quotas: Quotas, definition: Definition) -> None:
        self._quotas = quotas
        self._definition = definition

    def handed_over(self) -> None:
        self.close()

    def close(self) -> None:
        """What the start needed is not the VE's to keep."""
        with suppress(OSError):
            self._quotas.limit(self._definition.id_base, self._definition.settings)


class Quotas:
    """`directory`: that of the VEs."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def available(self) -> bool:
        with suppress(OSError), self._opened() as fd:
            return quota.enforced(fd)
        return False

    def has(self, name: str) -> bool:
        """Whether what a VE has written is counted."""
        with suppress(OSError):
            return quota.project_of(f"{self._directory}/{name}/data/0/upper") != 0
        return False

    def limit(self, project: int, settings: Settings, *, slack: bool = False) -> None:
        size, inodes = settings.disk or 0, settings.inodes or 0
        with self._opened() as fd:
            quota.set_limits(fd, project, size and size + slack * _SLACK,
                             inodes and inodes + slack * _SLACK_INODES)

    def open(self, definition: Definition) -> OpenQuota:
        with storage_errors(f"limit the disk of VE {definition.name}"):
            self.limit(definition.id_base, definition.settings, slack=True)
        return OpenQuota(self, definition)

    def resize(self, definition: Definition) -> None:
        """At once, whether the VE runs or not. Raises `LimitNotReached` where it has more already."""
        name, settings = definition.name, definition.settings
        with storage_errors(f"limit the disk of VE {name}"):
            with self._opened() as fd:
                used = quota.usage(fd, definition.id_base)
            check_room(f"the disk of VE {name}", used, settings.disk, settings.inodes, "disk")
            self.limit(definition.id_base, settings)

    def clear(self, project: int) -> None:
        """No limits any more, for a VE that is gone."""
        with suppress(OSError):
            self.limit(project, Settings())

    @contextmanager
    def _opened(self) -> Iterator[int]:
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)


def check_room(what: str, used: tuple[int, int], size: int | None, inodes: int | None, field: str) -> None:
    """Raises `LimitNotReached` for limits below what is there; `field` is the one of the size."""
    if size is not None and used[0] > size:
        raise LimitNotReached(f"{what} cannot be made as small as {format_size(size)}: {format_size(used[0])} are in "
                              "use; it is as it was", field=field, remedy="delete files in it first", wanted=size)
    if inodes is not None and used[1] > inodes:
        raise LimitNotReached(f"{what} cannot have as few as {inodes} inodes: {used[1]} are in use; it is as it was",
                              field="inodes", remedy="delete files in it first", wanted=inodes)
