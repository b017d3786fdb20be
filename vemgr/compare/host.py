# SPDX-License-Identifier: GPL-2.0-or-later
"""The driver `host`: no virtualization. The template's own programs on the host's kernel, by chroot.

The same binaries run as everywhere else, from an overlay over the same tree, since another libc or another version of a
server would be a difference that has nothing to do with virtualization. All namespaces but that of the mounts are the
host's. The number of CPUs is bounded by affinity; memory is not bounded.
"""

from __future__ import annotations

from collections.abc import Sequence

from vemgr.compare.local import LocalInstance, Runtime
from vemgr.compare.tree import FIRST, STAMP

# A mount namespace of its own: what is mounted in the tree goes with the last process that has it as its root.
_HOLD = ('mount --rbind /dev "$1/dev" && mount --rbind /sys "$1/sys" && mount -t proc proc "$1/proc" '
         f'&& exec chroot "$1" {FIRST} {STAMP}')


class Host(Runtime):
    name = "host"
    label = "host, no virtualization"
    tool = "unshare"
    address = "127.0.0.1"

    def start(self, instance: LocalInstance) -> list[str]:
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", _HOLD, "sh", str(instance.tree.root)]

    def leader(self, instance: LocalInstance) -> int:
        """It has become the process 1 of nothing, and all processes of the instance bear its mark."""
        return instance.process.pid

    def wrap(self, instance: LocalInstance, argv: Sequence[str], variables: dict[str, str]) -> list[str]:
        return ["env", "-i", *(f"{key}={value}" for key, value in variables.items()), "nsenter",
                f"--target={instance.leader}", "--mount", "--root", "--wd", "--", *argv]
