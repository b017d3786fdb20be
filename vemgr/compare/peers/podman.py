# SPDX-License-Identifier: GPL-2.0-or-later
"""podman, as root, with a tree of ours as --rootfs: no image and no layers, so that all have the same tree.

Without network, as crun and runc are. It writes to its own storage only the container's record.
"""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Sequence
from pathlib import Path

from vemgr.compare.local import LocalInstance, Runtime
from vemgr.compare.marked import VARIABLE
from vemgr.compare.peers.controllers import controllers
from vemgr.compare.tree import FIRST, STAMP, command


class Podman(Runtime):
    name = tool = "podman"
    label = "podman container, no network"

    def start(self, instance: LocalInstance) -> list[str]:
        limits = [f"--cpus={instance.resources.cpus}", f"--memory={instance.resources.memory}"] \
            if {"cpu", "memory"} <= controllers() else ["--cgroups=disabled"]
        return ["podman", "run", "--rm", f"--name={instance.name}", "--network=none", *limits, "--stop-signal=SIGTERM",
                *ulimits(), f"--env={VARIABLE}={instance.mark}", "--rootfs", str(instance.tree.root), FIRST, STAMP]

    def leader(self, instance: LocalInstance) -> int:
        """Its monitor is no child of the command that waits for it."""
        done = subprocess.run(["podman", "inspect", "--format={{.State.Pid}}", instance.name], capture_output=True,
                              text=True, check=False, timeout=60)
        return int(done.stdout) if done.returncode == 0 and done.stdout.strip().isdecimal() else 0

    def wrap(self, instance: LocalInstance, argv: Sequence[str], variables: dict[str, str]) -> list[str]:
        return ["podman", "exec", "--interactive", *(f"--env={key}={value}" for key, value in variables.items()),
                "--workdir=/", instance.name, *argv]

    def remove(self, name: str, directory: Path) -> None:
        del directory
        command("podman", "rm", "--force", "--ignore", "--time=0", name, instance=name)


def ulimits() -> list[str]:
    """By number: what podman asks for otherwise, with --ulimit=host too, is more than it may without CAP_SYS_RESOURCE
    (in a container, say). It has lowered its own limit of processes to the kernel's by then."""
    files, processes = resource.getrlimit(resource.RLIMIT_NOFILE)[1], resource.getrlimit(resource.RLIMIT_NPROC)[1]
    most = int(Path("/proc/sys/kernel/pid_max").read_text())
    processes = most if processes == resource.RLIM_INFINITY else min(processes, most)
    return [f"--ulimit={name}={limit}:{limit}" for name, limit in (("nofile", files), ("nproc", processes))]
