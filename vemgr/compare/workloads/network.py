# SPDX-License-Identifier: GPL-2.0-or-later
"""TCP to a server in an instance, from the host and from another instance; for the host itself over the loopback, which
no link equals."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vemgr.compare.driver import Instance
from vemgr.compare.schema import Figure
from vemgr.compare.workloads.workload import SHORT, Stage, WorkFailed, figures_of

PORT = 15999
_SECONDS = "0.3"


def unreachable(stage: Stage) -> str:
    return "" if stage.shared().address else "its instances have no address that the host reaches"


@contextlib.contextmanager
def serving(stage: Stage, instance: Instance, argv: Sequence[str]) -> Iterator[str]:
    """A server in the instance; its address."""
    server = instance.spawn(argv)
    try:
        yield instance.address or ""
    finally:
        server.stop()


def client(stage: Stage, *words: str) -> dict[str, float]:
    """Run the probe on the host; its clock is the one that counts. Raises `WorkFailed`."""
    try:
        done = subprocess.run([stage.host_probe, *words], capture_output=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        raise WorkFailed(f"{' '.join(words)} did not end in 60 s") from None
    if done.returncode:
        raise WorkFailed(f"{' '.join(words)}: {done.stderr.decode(errors='replace').strip()[-300:]}")
    return figures_of(done.stdout)


@contextlib.contextmanager
def sending(stage: Stage, address: str) -> Iterator[None]:
    """Meanwhile the host sends datagrams there, to the port that discards. It ends with us, if we are killed, too."""
    sender = subprocess.Popen([stage.host_probe, "send", address, "9", "30"], stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
        if sender.poll() is not None:
            raise WorkFailed(f"datagrams to {address} were not sent to the end")
    finally:
        sender.kill()
        sender.wait()


@dataclass(frozen=True)
class Request:
    """A byte there and a byte back on one connection, as netperf's TCP_RR."""

    name: str = "request"
    title: str = "TCP request and response"
    group: str = "network"
    figures: Sequence[Figure] = (
        Figure(name="request.median", title="TCP request and response", unit="us", better="lower"),
        Figure(name="request.p99", title="TCP request and response, 99th percentile", unit="us", better="lower"),
    )
    needs: Sequence[str] = ()
    rounds: int = SHORT
    quick: bool = True
    crowded: bool = True  # two processes, and the kernel's own

    def missing(self, stage: Stage) -> str:
        return unreachable(stage)

    def measure(self, stage: Stage) -> Mapping[str, float]:
        with serving(stage, stage.shared(), [stage.program, "serve", str(PORT)]) as address:
            said = client(stage, "request", address, str(PORT), _SECONDS)
        return {"request.median": said["median"], "request.p99": said["p99"]}


@dataclass(frozen=True)
class Stream:
    """As many bytes as one connection carries from the instance to the host."""

    name: str = "stream"
    title: str = "TCP stream"
    group: str = "network"
    figures: Sequence[Figure] = (Figure(name="stream", title="TCP stream to the host", unit="MB/s", better="higher"),)
    needs: Sequence[str] = ()
    rounds: int = SHORT
    quick: bool = True
    crowded: bool = True

    def missing(self, stage: Stage) -> str:
        return unreachable(stage)

    def measure(self, stage: Stage) -> Mapping[str, float]:
        with serving(stage, stage.shared(), [stage.program, "serve", str(PORT)]) as address:
            return {"stream": client(stage, "stream", address, str(PORT), _SECONDS)["rate"]}


@dataclass(frozen=True)
class Between:
    """The same two between instances; the clock is that of the one that asks."""

    name: str = "between"
    title: str = "TCP between two instances"
    group: str = "network"
    figures: Sequence[Figure] = (
        Figure(name="between.median", title="request between instances", unit="us", better="lower"),
        Figure(name="between.p99", title="request between instances, 99th p.", unit="us",
               better="lower"),
        Figure(name="between.stream", title="TCP stream between instances", unit="MB/s", better="higher"),
    )
    needs: Sequence[str] = ()
    rounds: int = SHORT
    quick: bool = False
    crowded: bool = True

    def missing(self, stage: Stage) -> str:
        return unreachable(stage)

    def measure(self, stage: Stage) -> Mapping[str, float]:
        asks = stage.second()
        with serving(stage, stage.shared(), [stage.program, "serve", str(PORT)]) as address:
            said = stage.probe(asks, "request", address, str(PORT), _SECONDS)
            streamed = stage.probe(asks, "stream", address, str(PORT), _SECONDS)
        return {"between.median": said["median"], "between.p99": said["p99"], "between.stream": streamed["rate"]}


WORKS = (Request(), Stream(), Between())
