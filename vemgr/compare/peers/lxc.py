# SPDX-License-Identifier: GPL-2.0-or-later
"""LXC by its own commands, with limits where the host has the controllers, and an empty network namespace."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vemgr.compare.local import LocalInstance, Runtime
from vemgr.compare.marked import VARIABLE
from vemgr.compare.peers.controllers import controllers
from vemgr.compare.tree import FIRST, STAMP


class LXC(Runtime):
    name = "lxc"
    tool = "lxc-start"
    label = "LXC container, no network"

    def configure(self, instance: LocalInstance) -> None:
        _path(instance.directory).mkdir(parents=True, exist_ok=True)
        _config(instance).write_text("".join(f"{line}\n" for line in config(instance)))

    def start(self, instance: LocalInstance) -> list[str]:
        return ["lxc-start", "--foreground", f"--name={instance.name}", f"--lxcpath={_path(instance.directory)}",
                f"--rcfile={_config(instance)}"]

    def wrap(self, instance: LocalInstance, argv: Sequence[str], variables: dict[str, str]) -> list[str]:
        environment = [f"--set-var={key}={value}" for key, value in variables.items()]
        return ["lxc-attach", f"--name={instance.name}", f"--lxcpath={_path(instance.directory)}",
                f"--rcfile={_config(instance)}", "--clear-env", *environment, "--", *argv]


def config(instance: LocalInstance) -> list[str]:
    """lxc.container.conf(5)"""
    lines = [f"lxc.uts.name = {instance.name}", f"lxc.rootfs.path = dir:{instance.tree.root}",
             "lxc.mount.auto = proc:mixed sys:mixed", "lxc.net.0.type = empty", "lxc.tty.max = 0", "lxc.pty.max = 64",
             f"lxc.environment = {VARIABLE}={instance.mark}", f"lxc.init.cmd = {FIRST} {STAMP}",
             "lxc.signal.halt = SIGTERM"]
    if {"cpu", "memory"} <= controllers():
        lines += [f"lxc.cgroup2.cpu.max = {instance.resources.cpus * 100_000} 100000",
                  f"lxc.cgroup2.memory.max = {instance.resources.memory}"]
    return lines


def _path(directory: Path) -> Path:
    return directory / "lxc" / "state"


def _config(instance: LocalInstance) -> Path:
    return instance.tree.root.parent / "config"
