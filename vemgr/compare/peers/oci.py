# SPDX-License-Identifier: GPL-2.0-or-later
"""crun and runc: the runtimes below podman and docker, by their own command.

The configuration is the one that the runtime's own `spec` writes, with limits where the host has the controllers for
them, and with an empty network namespace: neither makes links. Both are given the same rules and no more.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vemgr.compare.commands import ENVIRONMENT
from vemgr.compare.local import LocalInstance, Runtime
from vemgr.compare.marked import VARIABLE
from vemgr.compare.peers.controllers import controllers
from vemgr.compare.tree import FIRST, STAMP, command

_PERIOD = 100_000  # microseconds; the kernel's default (cgroup-v2.rst, cpu.max)


class OCI(Runtime):
    def __init__(self, name: str) -> None:
        self.name = self.tool = name
        self.label = f"{name} container, no network"

    def configure(self, instance: LocalInstance) -> None:
        bundle = instance.tree.root.parent
        command(self.tool, "spec", f"--bundle={bundle}")
        path = bundle / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps(configured(config, instance)))

    def start(self, instance: LocalInstance) -> list[str]:
        return [*self._command(instance.directory), "run", f"--bundle={instance.tree.root.parent}", instance.name]

    def wrap(self, instance: LocalInstance, argv: Sequence[str], variables: dict[str, str]) -> list[str]:
        environment = [f"--env={key}={value}" for key, value in variables.items()]
        return [*self._command(instance.directory), "exec", "--cwd=/", *environment, instance.name, *argv]

    def remove(self, name: str, directory: Path) -> None:
        if (self._state(directory) / name).exists():
            command(*self._command(directory), "delete", "--force", name, instance=name)

    def _command(self, directory: Path) -> list[str]:
        # crun can do without a cgroup; runc makes one in any case.
        without = self.name == "crun" and not {"cpu", "memory"} <= controllers()
        no_cgroup = ["--cgroup-manager=disabled"] if without else []
        return [self.tool, f"--root={self._state(directory)}", *no_cgroup]

    def _state(self, directory: Path) -> Path:
        return directory / self.name / "state"


def configured(config: dict[str, Any], instance: LocalInstance) -> dict[str, Any]:
    """What `spec` has written, for this instance."""
    variables = ENVIRONMENT | {VARIABLE: instance.mark}
    config["process"] |= {"terminal": False, "args": [FIRST, STAMP],
                          "env": [f"{key}={value}" for key, value in variables.items()]}
    config["root"] = {"path": str(instance.tree.root), "readonly": False}
    config["hostname"] = instance.name
    linux = config["linux"]
    linux.pop("resources", None)
    if {"cpu", "memory"} <= controllers():
        linux["resources"] = {"cpu": {"quota": instance.resources.cpus * _PERIOD, "period": _PERIOD},
                              "memory": {"limit": instance.resources.memory}}
    else:  # crun refuses to show a tree of which v1 has the controllers
        config["mounts"] = [mount for mount in config["mounts"] if mount["type"] != "cgroup"]
    return config
