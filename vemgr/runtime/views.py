# SPDX-License-Identifier: GPL-2.0-or-later
"""The VEs' own view of memory, CPUs and load, by lxcfs: whether it is there, and noticing that it comes and goes.

lxcfs that ends leaves its files in the VEs, where every access fails (ENOTCONN); a new one has files of its own. Two
things are watched, however many VEs there are: the process that serves the files, by pidfd, and the host's mounts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

from vemgr.core.errors import KernelLacks
from vemgr.core.host import OFF, REQUIRE
from vemgr.core.plan import View
from vemgr.core.views import COVERED, FSTYPE
from vemgr.kernel import mountinfo
from vemgr.kernel.mountinfo import MountWatch
from vemgr.kernel.process import is_zombie, start_time

log = logging.getLogger(__name__)

_REST = 0.2  # seconds from a change to the look at what has come of it: mounts come and go by the dozen
_PATIENCE = 2.0  # seconds that the daemon's coming up waits for an lxcfs that does not answer
_PROGRAM = "lxcfs"


@dataclass(frozen=True)
class Server:
    """An lxcfs that serves. `device` of its file system; `pid` and `started` of its process; the files that it has."""

    device: str
    pid: int
    started: int
    names: tuple[str, ...]


class Views:
    """`changed` is called when the VEs that run have another view, or none, by now than they were given."""

    def __init__(self, mode: str, directory: str, run_dir: str) -> None:
        self._mode = mode
        self.directory = directory
        self._noted = f"{run_dir}/lxcfs"
        self._server: Server | None = None
        self._watch: MountWatch | None = None
        self._pidfd = -1
        self._pending: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None
        self._changed: Callable[[], None] = lambda: None

    @property
    def device(self) -> str:
        """Of the lxcfs that serves now, "" without one."""
        return self._server.device if self._server else ""

    @property
    def names(self) -> tuple[str, ...]:
        return self._server.names if self._server else ()

    @property
    def generation(self) -> str:
        """Names what VEs see: another lxcfs may get the device number of an earlier one."""
        server = self._server
        return f"{server.device} {server.pid} {server.started}" if server else "none"

    def operations(self) -> tuple[View, ...]:
        """What of a plan gives a VE its view. Raises `KernelLacks` where there must be one and is none."""
        if self._server:
            return (View(self.directory, self._server.names, self._mode == REQUIRE),)
        if self._mode == REQUIRE:
            raise KernelLacks(f"no lxcfs serves {self.directory}, which lxcfs = \"require\" in vemgr.toml asks for",
                              remedy="start lxcfs, or let VEs start without it (lxcfs = \"auto\")")
        return ()

    async def open(self, changed: Callable[[], None]) -> None:
        """Begin to watch, unless it is off."""
        if self._mode == OFF:
            return
        self._changed = changed
        try:
            self._watch = MountWatch()
            asyncio.get_running_loop().add_reader(self._watch.fileno(), self._on_mounts)
        except OSError as error:
            log.warning("an lxcfs that starts from now on is not noticed: %s", error.strerror)
        self._looking = asyncio.get_running_loop().create_task(self._look())
        await asyncio.wait([self._looking], timeout=_PATIENCE)

    def note(self, generation: str) -> None:
        """The VEs that run see this: the next daemon need not look at each."""
        with contextlib.suppress(OSError):
            with open(f"{self._noted}.new", "w", encoding="ascii") as file:
                file.write(generation)
            os.rename(f"{self._noted}.new", self._noted)

    @property
    def noted(self) -> str:
        """What an earlier daemon gave to the VEs."""
        try:
            with open(self._noted, encoding="ascii") as file:
                return file.read()
        except OSError:
            return "none"

    def of(self, pid: int) -> str:
        """What the VE sees whose init is `pid`: "lxcfs", "lxcfs that has ended" or "kernel", and "" if that is gone."""
        try:
            mounts = [mount for mount in mountinfo.of_process(pid) if mount.point == "/proc/meminfo"]
        except OSError:
            return ""
        if not mounts or mounts[-1].fstype != FSTYPE:
            return "kernel"
        return "lxcfs" if mounts[-1].device == self.device else "lxcfs that has ended"

    def close(self) -> None:
        if self._pending:
            self._pending.cancel()
        if self._looking:
            self._looking.cancel()
        if self._watch:
            asyncio.get_running_loop().remove_reader(self._watch.fileno())
            self._watch.close()
            self._watch = None
        self._watch_server(None)

    def _on_mounts(self) -> None:
        if self._watch:
            self._watch.clear()
            self._look_soon()

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._look_soon()

    def _look_soon(self) -> None:
        if self._pending is None:
            self._pending = asyncio.get_running_loop().call_later(_REST, self._begin_to_look)

    def _begin_to_look(self) -> None:
        self._pending = None
        if self._looking and not self._looking.done():  # an lxcfs that does not answer
            self._look_soon()
            return
        self._looking = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        before = self._server
        found = await asyncio.to_thread(_find_server, self.directory)
        if found == before:
            return
        self._server = found
        if found:
            log.info("VEs have their own view by lxcfs, process %d", found.pid)
        elif before:
            log.warning("lxcfs has ended: VEs see the host's amounts until it is back")
        self._watch_server(found)
        self._changed()

    def _watch_server(self, server: Server | None) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        if server:
            try:
                self._pidfd = os.pidfd_open(server.pid)
            except OSError:  # it is gone again, most likely
                self._look_soon()
            else:
                asyncio.get_running_loop().add_reader(self._pidfd, self._on_end)


def _find_server(directory: str) -> Server | None:
    """The mount alone says nothing: it stays when the process is killed."""
    mounts = [mount for mount in mountinfo.of_process("self") if mount.point == directory]
    if not mounts or mounts[-1].fstype != FSTYPE:
        return None
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and _serves(entry, directory):
            try:
                names = tuple(name for name in COVERED
                              if os.path.exists(f"{directory}/{name}") and os.path.exists(f"/{name}"))
                if names and not is_zombie(int(entry)):
                    return Server(mounts[-1].device, int(entry), start_time(int(entry)), names)
            except OSError:
                continue
    return None


def _serves(pid: str, directory: str) -> bool:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            if file.read().rstrip("\n") != _PROGRAM:
                return False
        with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as file:
            arguments = file.read().split("\0")
    except OSError:
        return False
    # Anybody may call himself so. Only root mounts for all to see what such a process serves.
    return os.stat(f"/proc/{pid}").st_uid == 0 and any(os.path.normpath(each) == os.path.normpath(directory)
                                                       for each in arguments if each)
