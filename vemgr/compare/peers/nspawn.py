# SPDX-License-Identifier: GPL-2.0-or-later
"""systemd-nspawn without machined: it runs without systemd as process 1, too. With an empty network namespace.

It has no command to run something in a container that it has not registered, so nsenter does that, with all namespaces
of its process 1. Limits are those of the affinity: without systemd there is nobody it could ask for others.
"""

from __future__ import annotations

from collections.abc import Sequence

from vemgr.compare.local import LocalInstance, Runtime
from vemgr.compare.marked import VARIABLE
from vemgr.compare.tree import FIRST, STAMP


class Nspawn(Runtime):
    name = "systemd-nspawn"
    tool = "systemd-nspawn"
    label = "systemd-nspawn container, no network"

    def start(self, instance: LocalInstance) -> list[str]:
        return ["systemd-nspawn", "--quiet", f"--directory={instance.tree.root}", "--register=no", "--keep-unit",
                "--private-network", "--console=pipe", f"--machine={instance.name}", "--kill-signal=SIGTERM",
                f"--setenv={VARIABLE}={instance.mark}", FIRST, STAMP]

    def wrap(self, instance: LocalInstance, argv: Sequence[str], variables: dict[str, str]) -> list[str]:
        return ["env", "-i", *(f"{key}={value}" for key, value in variables.items()), "nsenter",
                f"--target={instance.leader}", "--all", "--root", "--wd", "--", *argv]
