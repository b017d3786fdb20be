# SPDX-License-Identifier: GPL-2.0-or-later
"""Volumes on disk: `volumes/NAME` in the state directory, each a directory that VEs mount.

What is known of one is what the kernel knows: that there is a directory, and the limits of the project that all in it
belongs to. So there is no record that could differ from it.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from vemgr.core.errors import NotEnforceable, VolumeExists, VolumeNotFound
from vemgr.core.names import check_name
from vemgr.core.volumes import Volume, free_project
from vemgr.kernel import quota
from vemgr.kernel.durable import make_directories, rename_durably
from vemgr.runtime.quotas import check_room
from vemgr.runtime.store import storage_errors

_PARTIAL, _REMOVED = ".partial", ".removed"


class Volumes:
    """`directory` is made when first needed, for root only: what VEs put into volumes must be reached by nobody else of
    the host, whose root owns it. Methods block; they raise `NoSpace` or `SystemFailure` for the disk's faults."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._changing = threading.Lock()

    def path(self, name: str) -> str:
        """Of a volume that is there. Raises `BadValue`, `VolumeNotFound`."""
        path = f"{self._directory}/{check_name(name)}"
        if not os.path.isdir(path) or os.path.islink(path):
            raise VolumeNotFound(name)
        return path

    def all(self) -> list[Volume]:
        return [self.show(name) for name in self._names() if not name.startswith(".")]

    def show(self, name: str) -> Volume:
        """Raises `VolumeNotFound`."""
        with storage_errors(f"look at volume {name}"), self._opened(name) as fd:
            project = quota.project_of(self.path(name))
            if not project:
                return Volume(name)
            limits, used = quota.limits(fd, project), quota.usage(fd, project)
        return Volume(name, limits[0] or None, limits[1] or None, *used)

    def create(self, name: str, size: int | None, inodes: int | None) -> None:
        """All of it or nothing. Raises `BadValue`, `VolumeExists`, `NotEnforceable`."""
        path = f"{self._directory}/{check_name(name)}"
        partial = f"{self._directory}/.{name}.{secrets.token_hex(4)}{_PARTIAL}"
        with self._changing, storage_errors(f"create volume {name}"):
            make_directories(self._directory)
            if os.path.lexists(path):
                raise VolumeExists(name)
            counted = self._counted(size, inodes)
            os.mkdir(partial, 0o700)
            try:
                os.chmod(partial, 0o755)  # as the VE's users see it
                if counted:
                    self._count(partial, size, inodes)
                rename_durably(partial, path)
            except BaseException:
                with suppress(OSError):
                    os.rmdir(partial)
                raise

    def set(self, name: str, size: int | None, inodes: int | None) -> None:
        """At once, for all VEs that have it. Raises `VolumeNotFound`, `LimitNotReached`, `NotEnforceable`."""
        with self._changing, storage_errors(f"limit volume {name}"), self._opened(name) as fd:
            self._counted(size, inodes)
            project = quota.project_of(self.path(name))
            if project:
                check_room(f"volume {name}", quota.usage(fd, project), size, inodes, "size")
                quota.set_limits(fd, project, size or 0, inodes or 0)
            elif size is not None or inodes is not None:
                raise NotEnforceable("size", f"volume {name} was made when its file system had no quotas",
                                     "copy it into a new one")

    def remove(self, name: str) -> str:
        """Take it out of sight; returns what is then to be purged. Raises `VolumeNotFound`."""
        gone = f"{self._directory}/.{name}.{secrets.token_hex(4)}{_REMOVED}"
        with self._changing, storage_errors(f"remove volume {name}"):
            rename_durably(self.path(name), gone)
        return gone

    def leftovers(self) -> list[str]:
        """What an interrupted create or remove has left, to be purged. Other hidden names are not ours."""
        return [f"{self._directory}/{name}" for name in self._names()
                if name.startswith(".") and name.endswith((_PARTIAL, _REMOVED))]

    def _counted(self, size: int | None, inodes: int | None) -> bool:
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if quota.enforced(fd):
                return True
        finally:
            os.close(fd)
        if size is not None or inodes is not None:
            raise NotEnforceable("size" if size is not None else "inodes",
                                 f"the file system of {self._directory} keeps no project quotas",
                                 "mount it with 'prjquota' (ext4: after tune2fs -O project,quota), or leave it out")
        return False

    def _count(self, path: str, size: int | None, inodes: int | None) -> None:
        """The project of a volume that was removed is free when the last file of it is gone."""
        project = free_project(quota.project_of(f"{self._directory}/{name}") for name in self._names())
        quota.assign(path, project)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            quota.set_limits(fd, project, size or 0, inodes or 0)
        finally:
            os.close(fd)

    def _names(self) -> list[str]:
        with storage_errors("list the volumes"), suppress(FileNotFoundError), os.scandir(self._directory) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        return []

    @contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        fd = os.open(self.path(name), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)
