# SPDX-License-Identifier: GPL-2.0-or-later
"""Letting the host forward packets, and giving that back. What it was before is kept in /run."""

from __future__ import annotations

import contextlib
import json
import os

from vemgr.kernel.durable import replace_file
from vemgr.kernel.sysctl import (
    enable_forwarding,
    enable_forwarding6,
    forwarding,
    forwarding6,
    restore_forwarding,
    restore_forwarding6,
)
from vemgr.runtime.store import storage_errors


class Forwarding:
    def __init__(self, run_dir: str) -> None:
        self._file = f"{run_dir}/ip_forward"
        self._file6 = f"{run_dir}/ipv6_forwarding"

    def enable(self, *, ipv6: bool) -> None:
        """Let the host forward IPv4, and IPv6 as well. What it was is remembered before it is changed: the next daemon,
        if this one is killed in between, must not take ours for the host's."""
        _remember(self._file, str(forwarding()))
        enable_forwarding()
        if ipv6:
            _remember(self._file6, json.dumps(forwarding6()))
            enable_forwarding6()

    def restore(self) -> None:
        """Give back what was there before the first `enable` since boot. Raises `SystemFailure`; then do it again."""
        with storage_errors("give back the host's forwarding"):
            previous, previous6 = _read(self._file), _read(self._file6)
            if previous is not None:
                restore_forwarding(int(previous))
                os.unlink(self._file)
            if previous6 is not None:
                restore_forwarding6(json.loads(previous6))
                os.unlink(self._file6)


def _remember(path: str, text: str) -> None:
    # The first value since boot is the host's own; later we only see what we wrote.
    if not os.path.exists(path):
        with storage_errors("remember the host's forwarding"):
            replace_file(path, text)


def _read(path: str) -> str | None:
    with contextlib.suppress(FileNotFoundError), open(path, encoding="ascii") as file:
        return file.read()
    return None
