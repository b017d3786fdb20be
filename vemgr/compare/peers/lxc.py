# SPDX-License-Identifier: GPL-2.0-or-later
"""LXC by its own commands, with limits where the host has the controllers, and an empty network namespace."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

from vemgr.compare.driver import DriverFailed
from vemgr.compare.local import LocalInstance, Runtime
from vemgr.compare.marked import VARIABLE
from vemgr.compare.peers.controllers import controllers
from vemgr.compare.tree import FIRST, STAMP

_HIERARCHIES = Path("/sys/fs/cgroup")
_CGROUP = "vemgr-compare"
_PATIENCE = 10.0


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

    def remove(self, name: str, directory: Path) -> None:
        del directory
        for top in (*_HIERARCHIES.glob(_CGROUP), *_HIERARCHIES.glob(f"*/{_CGROUP}")):
            for path, _, _ in os.walk(top / name, topdown=False):
                _rmdir(path)
            with contextlib.suppress(OSError):  # that of others is in it
                top.rmdir()


def _rmdir(path: str) -> None:
    """A cgroup is busy until its last process is reaped, by LXC's monitor or whoever takes its place."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            os.rmdir(path)
        except FileNotFoundError:
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise DriverFailed(f"cgroup {path} cannot be removed: {error.strerror}", path=path) from error
            time.sleep(0.02)
        else:
            return


def config(instance: LocalInstance) -> list[str]:
    """lxc.container.conf(5)"""
    lines = [f"lxc.uts.name = {instance.name}", f"lxc.rootfs.path = dir:{instance.tree.root}",
             "lxc.mount.auto = proc:mixed sys:mixed", "lxc.net.0.type = empty", "lxc.tty.max = 0", "lxc.pty.max = 64",
             f"lxc.environment = {VARIABLE}={instance.mark}", f"lxc.init.cmd = {FIRST} {STAMP}",
             "lxc.signal.halt = SIGTERM",
             # LXC leaves the last of these behind, in each hierarchy, under a name that its containers share.
             *(f"lxc.cgroup.dir.{each} = {_CGROUP}/{instance.name}/{each}"
               for each in ("container", "monitor", "monitor.pivot"))]
    if {"cpu", "memory"} <= controllers():
        lines += [f"lxc.cgroup2.cpu.max = {instance.resources.cpus * 100_000} 100000",
                  f"lxc.cgroup2.memory.max = {instance.resources.memory}"]
    return lines


def _path(directory: Path) -> Path:
    return directory / "lxc" / "state"


def _config(instance: LocalInstance) -> Path:
    return instance.tree.root.parent / "config"
