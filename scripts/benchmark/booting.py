# SPDX-License-Identifier: GPL-2.0-or-later
"""How long an operating system with systemd takes until it says that it is up, in a VE and in systemd-nspawn."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmark.bench import Bench
from benchmark.figure import Bar, Definition, Figure, compare
from benchmark.measure import Failed, interleave

BOOT = Definition("boot", "`vemgr start --wait` of a systemd VE / `systemd-nspawn -b` of the same tree, until READY=1",
                  Bar(1.0, 0.8))

_TEMPLATE = "os"
_PATIENCE = 120.0  # seconds


class NspawnBoot:
    """`systemd-nspawn --boot` with a link of its own, as a VE has it; what it writes goes to the tree."""

    def __init__(self, base: Path, tree: Path) -> None:
        self._tree = tree
        self._log = base / "nspawn-boot.log"
        self._path = str(base / "notify")
        self.run()

    def run(self) -> float:
        """Seconds until READY=1 comes from inside (systemd-nspawn(1), --notify-ready)."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener, open(self._log, "wb") as log:
            listener.bind(self._path)
            began = time.perf_counter()
            process = subprocess.Popen(
                ["systemd-nspawn", "--quiet", "--boot", "--notify-ready=yes", "--register=no", "--keep-unit",
                 "--network-veth", "--machine=bench", f"--directory={self._tree}"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, "NOTIFY_SOCKET": self._path})
            try:
                self._await_ready(listener, process)
                return time.perf_counter() - began
            finally:
                self._end(process)

    def _await_ready(self, listener: socket.socket, process: subprocess.Popen[bytes]) -> None:
        pidfd = os.pidfd_open(process.pid)
        try:
            deadline = time.monotonic() + _PATIENCE
            while True:
                found, _, _ = select.select([listener.fileno(), pidfd], [], [], max(0.0, deadline - time.monotonic()))
                if listener.fileno() in found:
                    if b"READY=1" in listener.recv(65536).split(b"\n"):
                        return
                elif found:
                    raise Failed(f"systemd-nspawn has ended: {self._log.read_text(errors='replace')[-300:]}")
                else:
                    raise Failed("systemd-nspawn -b does not come up")
        finally:
            os.close(pidfd)

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGTERM)  # the end of the machine, systemd-nspawn(1)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)
            return
        process.kill()
        process.wait()


def boot(bench: Bench) -> Iterator[Figure]:
    if bench.os_tree is None:
        yield Figure(BOOT, invalid=["no --os-tree: a directory with a Debian or the like, systemd in it"])
        return
    vemgr = bench.vemgr
    vemgr.cli("template", "import", _TEMPLATE, str(bench.os_tree))
    with vemgr.ve(_TEMPLATE) as name:
        def start() -> float:
            try:
                return vemgr.timed_cli("start", "--wait", name)
            finally:
                if name in vemgr.running():
                    vemgr.stop(name)

        contenders: dict[str, Callable[[], float]] = {"vemgr": start}
        nspawn = bench.offer("systemd-nspawn -b", lambda: NspawnBoot(bench.base, Path(str(bench.os_tree))))
        if nspawn is not None:
            contenders["systemd-nspawn -b"] = nspawn.run
        samples = interleave(max(2, bench.sizes.processes // 4), contenders, warm_up=1)
    figure = compare(BOOT, samples, "systemd-nspawn -b", bench.missing)
    figure.notes = [f"{each.name}: {each.p50:.2f} s" for each in samples.values()]
    yield figure
