# SPDX-License-Identifier: GPL-2.0-or-later
"""What lies beyond the uplink of the bench's own vemgr: a network namespace with one address."""

from __future__ import annotations

import os
import secrets

from benchmark.process import run
from vemgr.kernel.namespaces import CLONE_NEWNET, setns

RATE = 10  # Mbit/s
_NEAR, FAR = "198.18.255.1", "198.18.255.2"  # of the addresses for benchmarks (RFC 2544)


class World:
    """The other end of an uplink of the bench's own."""

    def __init__(self) -> None:
        tag = secrets.token_hex(3)
        self.device, self._far, self._netns = f"vu{tag}", f"vw{tag}", f"vemgr-bench-{tag}"

    @property
    def config(self) -> str:
        """Of the vemgr whose uplink it is."""
        return f'[uplink]\ndevice = "{self.device}"\nrate = "{RATE}M"\n'

    def __enter__(self) -> World:
        run(["ip", "netns", "add", self._netns])
        try:
            run(["ip", "link", "add", self.device, "type", "veth", "peer", "name", self._far, "netns", self._netns])
            for netns, device, address in (([], self.device, _NEAR), (["-n", self._netns], self._far, FAR)):
                run(["ip", *netns, "address", "add", f"{address}/30", "dev", device])
                run(["ip", *netns, "link", "set", device, "up"])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        run(["ip", "netns", "del", self._netns])  # its end of the pair goes with it, and ours with that

    def enter(self) -> None:
        """The calling process stays there."""
        fd = os.open(f"/run/netns/{self._netns}", os.O_RDONLY | os.O_CLOEXEC)
        setns(fd, CLONE_NEWNET)
        os.close(fd)
