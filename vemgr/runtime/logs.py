# SPDX-License-Identifier: GPL-2.0-or-later
"""The logs of the VEs' consoles: the keeper writes them (`keeper.console_log`), the daemon reads and removes them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

from vemgr.core.console import LOG, LOG_OLDER, TIMES, TIMES_OLDER, log_directory
from vemgr.keeper.console_log import ConsoleLogs
from vemgr.runtime.store import storage_errors

_SHOWN = 8192  # bytes: the last screenful or two, enough to see why an init failed


class Logs:
    def __init__(self, run_dir: str) -> None:
        self._path = log_directory(run_dir)
        with storage_errors(f"make {self._path}"):
            self._logs = ConsoleLogs(self._path)

    def tail(self, ve: str) -> str:
        return self._logs.tail(ve, _SHOWN).decode(errors="replace").replace("\r\n", "\n")

    def open(self, ve: str) -> int:
        """The directory of a VE's log, made where it has printed nothing yet. Raises `NoSpace`, `SystemFailure`."""
        path = f"{self._path}/{ve}"
        with storage_errors(f"open the log of VE {ve}"):
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
            return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def rename(self, ve: str, new: str) -> None:
        self.remove(new)  # left by an earlier VE of this name
        with contextlib.suppress(OSError):
            os.rename(f"{self._path}/{ve}", f"{self._path}/{new}")

    def remove(self, ve: str) -> None:
        for name in (LOG, LOG_OLDER, TIMES, TIMES_OLDER):
            with contextlib.suppress(OSError):
                os.unlink(f"{self._path}/{ve}/{name}")
        with contextlib.suppress(OSError):
            os.rmdir(f"{self._path}/{ve}")

    def sweep(self, ves: Iterable[str]) -> None:
        """Remove the logs of VEs that are no more."""
        with contextlib.suppress(OSError):
            for ve in set(os.listdir(self._path)).difference(ves):
                self.remove(ve)
