# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kind of virtualization has to offer so that it can be compared: the interface between drivers and workloads.

A `Driver` is one column of the tables: the host itself, VEs, a guest of libvirt, another runtime. It makes instances of
one template's root file system with the same number of CPUs and the same memory; the workloads run the same programs
in each. Everything that a driver makes is written to a `Journal` first, so that what a killed run has left is found.

Everything here blocks. A driver is used by one thread at a time, its instances by one thread each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from vemgr.core.errors import FailedError


class DriverFailed(FailedError):
    """A driver could not do what it was asked: the error names the instance and what the program below it said."""

    exit_code = 7


class CommandTimedOut(FailedError):
    """A command in an instance had not ended in time and was killed."""

    exit_code = 213


@dataclass(frozen=True)
class Context:
    """What drivers are made with.

    `directory`: for images, journals and what else stays between runs. `config`: path of vemgr.toml. `template`: the
    name of the template that the VEs are made from; `prepare` of the other drivers is given its tree. `uri`: another
    connection of libvirt than the one that is found, for the drivers of guests.
    """

    directory: Path
    config: str
    template: str
    uri: str = ""


@dataclass(frozen=True)
class Resources:
    """What each instance may use. `memory`: bytes."""

    cpus: int
    memory: int


@dataclass(frozen=True)
class Finished:
    """A command that has ended. `code`: its exit code, 128 + n when signal n ended it. `seconds`: from the request to
    the news of its end, by the host's monotonic clock; it includes what the way into the instance costs."""

    code: int
    stdout: bytes
    stderr: bytes
    seconds: float


@runtime_checkable
class Background(Protocol):
    """A command that goes on, such as a server. Its output goes nowhere."""

    def stop(self) -> None:
        """SIGTERM, after five seconds SIGKILL, to it and to what it has forked; returns when it is gone. May be called
        again, and when it has ended by itself."""


@runtime_checkable
class Instance(Protocol):
    """One running instance."""

    @property
    def name(self) -> str: ...

    @property
    def first_instruction(self) -> float | None:
        """Seconds from the request of the start to the first instruction of its init, by the host's clock.

        None where this cannot be seen: the host has no init to start.
        """

    @property
    def up(self) -> float:
        """Seconds from the request of the start until it could run a command."""

    @property
    def address(self) -> str | None:
        """An IPv4 address at which its servers can be reached from the host; None where it has none."""

    def run(self, argv: Sequence[str], *, timeout: float, input: bytes = b"") -> Finished:
        """Run a command as root of the instance, in /, with PATH and HOME set; nothing of our environment.

        Raises `CommandTimedOut` when it has not ended after `timeout` seconds (it is killed), `DriverFailed` when the
        instance is gone. A command that is not found is no error but code 127, or what the
        runtime's own exec says instead.
        """

    def spawn(self, argv: Sequence[str]) -> Background:
        """Start a command and do not wait for it."""

    def memory(self) -> int | None:
        """Bytes that the host pays for this instance now; None where that cannot be told apart.

        Where it is found differs, and each driver documents it: the cgroup's memory.current, or the proportional set
        size (PSS) of the processes that only exist for this instance.
        """

    def disk_bytes(self) -> int | None:
        """Bytes of disk that it takes now, without what it shares with others; None where that cannot be told."""

    def stop(self) -> float:
        """End it and remove what is its own; seconds until it was gone. Once."""


@runtime_checkable
class Driver(Protocol):
    """A kind of virtualization."""

    @property
    def name(self) -> str:
        """As in --driver: 'kvm-virtio'."""

    @property
    def label(self) -> str:
        """What tables and plots print. Ask after `probe`: only then it is known what accelerates a guest."""

    def probe(self) -> str:
        """Empty, or why it is not available here, with the remedy. Changes nothing that stays, but it may take a while:
        whether KVM works is found out by booting a guest once per boot of the host."""

    def prepare(self, root: Path, resources: Resources, directory: Path) -> None:
        """Get ready to start instances of the tree `root`: build what is shared between them, an image for instance.

        `directory` belongs to the driver and stays between runs, so that what has been built before is used again.
        Raises `VemgrError`.
        """

    def start(self, name: str, resources: Resources) -> Instance:
        """Start an instance, and return when it can run commands. `name`: a DNS label, unique on this host.
        Raises `VemgrError`; then nothing of the instance is left."""

    def disk_bytes(self) -> int | None:
        """Bytes of disk that one more instance takes, right after its start and with what it shares with others not
        counted; None before the first start, and where that is nothing that can be measured."""

    def clean(self) -> list[str]:
        """Remove what runs of this driver that were killed have left; what was removed, one text each.
        Nothing of a run that is still alive is touched."""

    def close(self) -> None:
        """End what still runs of this driver's instances, and what is shared between them, but for what `prepare` keeps
        in its directory. To be called in any case: after an interruption, too."""


@runtime_checkable
class StartsWarm(Protocol):
    """A driver whose instances are started in something that runs already and is not theirs alone, so that their starts
    must not stand beside cold ones without a word."""

    @property
    def warm(self) -> str:
        """In what: 'a guest that runs already'."""


@runtime_checkable
class HasSystemsBelow(Protocol):
    """A driver between whose instances and the host there are further systems, to be kept up to date as well."""

    def systems_below(self, count: int) -> int:
        """How many, below so many instances."""


@runtime_checkable
class SharesTemplate(Protocol):
    """A driver whose instances can be given an update by a new template, made of one of them."""

    def template_of(self, instance: Instance, name: str) -> int:
        """End the instance and make a template of what it has become; the bytes of disk that this takes."""

    def start_from(self, template: str, name: str, resources: Resources) -> Instance:
        """As `start`."""

    def remove_template(self, name: str) -> None:
        """Of `template_of`. None being there is no error."""
