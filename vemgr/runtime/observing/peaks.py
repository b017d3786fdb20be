# SPDX-License-Identifier: GPL-2.0-or-later
"""The most that VEs have held of what the kernel keeps no maximum of: looked at now and then, since the VE's start.

Kept for the next daemon in a file of the run directory: a record, as the logs are, that grows and goes with the VEs.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Mapping

log = logging.getLogger(__name__)


class Peaks:
    def __init__(self, directory: str) -> None:
        self._path = f"{directory}/max-held.log"
        self._new = f"{directory}/max-held.new.log"
        self._of: dict[str, tuple[int, dict[str, int]]] = {}  # by VE, with the pid of its init
        self._changed = False
        with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
            with open(self._path, encoding="utf-8") as file:
                self._of = {str(ve): (int(pid), {str(key): int(value) for key, value in peaks.items()})
                            for ve, (pid, peaks) in json.load(file).items()}

    def note(self, ve: str, pid: int, held: Mapping[str, int]) -> Mapping[str, int]:
        """Take a look into account; returns the most that was held in this life of the VE."""
        known, peaks = self._of.get(ve, (0, {}))
        if known != pid:
            peaks = {}
        for resource, amount in held.items():
            if amount > peaks.get(resource, 0):
                peaks[resource] = amount
                self._of[ve] = (pid, peaks)
                self._changed = True
        return peaks

    def keep_only(self, running: Mapping[str, int]) -> None:
        """Forget those that run no more. `running`: pids by name."""
        for ve in [ve for ve, (pid, _) in self._of.items() if running.get(ve) != pid]:
            del self._of[ve]
            self._changed = True

    def save(self) -> None:
        if not self._changed:
            return
        self._changed = False
        try:
            if not self._of:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._path)
                return
            with open(os.open(self._new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w",
                      encoding="utf-8") as file:
                json.dump(self._of, file)
            os.rename(self._new, self._path)
        except OSError as error:
            log.warning("what VEs have held at most is not kept for the next daemon: %s: %s", self._path,
                        error.strerror)
