# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose cgroup files somebody has written: the kernel says so (inotify(7)), so nobody has to read them to find out.

A VE writes to its own cgroup as well, as far as that was handed down to it, and so do we. Who is told of is looked at,
no more.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping

from vemgr.kernel.inotify import Inotify
from vemgr.runtime.instances import Parts

log = logging.getLogger(__name__)


class Writes:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._inotify: Inotify | None = None
        self._watches: dict[str, tuple[int, int]] = {}  # by VE: the pid of its init, and the watch's number
        self._ves: dict[int, str] = {}
        self.complete = True  # whether all VEs could be watched

    def begin(self) -> None:
        """Watch nothing yet; at the start of the daemon, so that it has this descriptor from then on."""
        self.close()
        with contextlib.suppress(OSError):  # tried again at the next look, which tells
            self._inotify = Inotify()

    def close(self) -> None:
        if self._inotify is not None:
            self._inotify.close()
        self._inotify = None
        self._watches.clear()
        self._ves.clear()

    def since(self, running: Mapping[str, int]) -> list[str]:
        """The VEs whose files were written since the last call, and those that were not watched till now. `running`:
        pids of their inits."""
        for ve in [ve for ve, (pid, _) in self._watches.items() if running.get(ve) != pid]:
            self._forget(ve)
        new = [ve for ve in running if ve not in self._watches]
        failed = [error for ve in new if (error := self._watch(ve, running[ve]))]
        if failed and self.complete:
            log.warning("changes to the cgroups of %d VEs are noticed late: %s", len(failed), failed[0])
        self.complete = not failed
        changed = self._inotify.changed() if self._inotify is not None else set()
        if -1 in changed:
            return list(running)
        return [*(ve for ve in new if ve in self._watches),
                *(self._ves[number] for number in changed if number in self._ves)]

    def _watch(self, ve: str, pid: int) -> OSError | None:
        try:
            self._inotify = self._inotify or Inotify()
            number = self._inotify.add(self._parts.tree.path(ve))
        except FileNotFoundError:
            return None  # it has just ended
        except OSError as error:
            return error
        self._watches[ve] = pid, number
        self._ves[number] = ve
        return None

    def _forget(self, ve: str) -> None:
        _, number = self._watches.pop(ve)
        self._ves.pop(number, None)
        if self._inotify is not None:
            with contextlib.suppress(OSError):  # the kernel has removed it together with the directory
                self._inotify.remove(number)
