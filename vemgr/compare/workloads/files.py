# SPDX-License-Identifier: GPL-2.0-or-later
"""Files on an instance's own disk: past the page cache where the file system can do that (O_DIRECT), which is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vemgr.compare.schema import FACT, Figure
from vemgr.compare.workloads.workload import SHORT, Stage, WorkFailed

_MEGABYTES = "32"
_SECONDS = "0.2"


@dataclass(frozen=True)
class Sequential:
    """Written and read, 1 MiB at a time. `sequential.direct` is 1 where the page cache was passed by."""

    name: str = "sequential"
    title: str = "sequential file"
    group: str = "disk"
    figures: Sequence[Figure] = (
        Figure(name="sequential.write", title="sequential write, to the disk", unit="MB/s", better="higher"),
        Figure(name="sequential.read", title="sequential read", unit="MB/s", better="higher"),
        Figure(name="sequential.direct", title="O_DIRECT works", unit=FACT, better="higher"),
    )
    needs: Sequence[str] = ()
    rounds: int = SHORT
    quick: bool = True
    crowded: bool = False

    def missing(self, stage: Stage) -> str:
        stage.shared()
        return ""

    def measure(self, stage: Stage) -> Mapping[str, float]:
        instance, path = stage.shared(), f"{stage.directory}/file"
        written = stage.probe(instance, "write", path, _MEGABYTES)
        read = stage.probe(instance, "read", path)
        return {"sequential.write": written["rate"], "sequential.read": read["rate"],
                "sequential.direct": min(written["direct"], read["direct"])}


@dataclass(frozen=True)
class Blocks:
    """Blocks of 4 KiB at random places of the file of 32 MiB, one after the other. `word`: the probe's."""

    name: str
    title: str
    word: str
    figures: Sequence[Figure] = field(init=False)
    group: str = "disk"
    needs: Sequence[str] = ()
    rounds: int = SHORT
    quick: bool = False
    crowded: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "figures", (
            Figure(name=f"{self.name}.rate", title=self.title, unit="IO/s", better="higher"),
            Figure(name=f"{self.name}.p99", title=f"{self.title}, 99th percentile", unit="us", better="lower")))

    def missing(self, stage: Stage) -> str:
        stage.shared()
        return ""

    def measure(self, stage: Stage) -> Mapping[str, float]:
        instance, path = stage.shared(), f"{stage.directory}/blocks"
        try:
            said = stage.probe(instance, self.word, path, _SECONDS)
        except WorkFailed:  # the file is not there yet
            stage.probe(instance, "write", path, _MEGABYTES)
            said = stage.probe(instance, self.word, path, _SECONDS)
        return {f"{self.name}.rate": said["rate"], f"{self.name}.p99": said["p99"]}


@dataclass(frozen=True)
class Sync:
    """A block is written and waited for until the disk has it (fdatasync), as a database does for each commit."""

    name: str = "fsync"
    title: str = "write of 4 KiB and fdatasync"
    group: str = "disk"
    figures: Sequence[Figure] = (
        Figure(name="fsync.median", title="write and fdatasync", unit="us", better="lower"),
        Figure(name="fsync.p99", title="write and fdatasync, 99th percentile", unit="us", better="lower"),
    )
    needs: Sequence[str] = ()
    rounds: int = SHORT
    quick: bool = True
    crowded: bool = False

    def missing(self, stage: Stage) -> str:
        stage.shared()
        return ""

    def measure(self, stage: Stage) -> Mapping[str, float]:
        said = stage.probe(stage.shared(), "sync", f"{stage.directory}/synced", _SECONDS)
        return {"fsync.median": said["median"], "fsync.p99": said["p99"]}


WORKS = (Sequential(), Blocks("random-read", "random read of 4 KiB", "random-read"),
         Blocks("random-write", "random write of 4 KiB", "random-write"), Sync())
