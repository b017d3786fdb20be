# SPDX-License-Identifier: GPL-2.0-or-later
"""What the VEs that run have been promised, from the moment that their start is admitted until they have ended."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace

from vemgr.core.config import Settings
from vemgr.core.scheduling import Policy, SchedulerConfig
from vemgr.scheduler.admission import Ledger, Promise, capacities, promise_of
from vemgr.scheduler.shares import CpuShares, cpu_shares


def host_resources() -> tuple[int, int]:
    """Thousandths of CPUs that are online, and bytes of memory: sysconf(3), the same as MemTotal of /proc/meminfo."""
    return os.sysconf("SC_NPROCESSORS_ONLN") * 1000, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class Promises:
    """`ledger`: the sums. `running`: the settings of all VEs that run or are about to. `on_change` is called with a VE
    when what follows from guarantees may have changed: not for VEs without, on a host where nobody has any."""

    def __init__(self, config: SchedulerConfig, cpus: int, memory: int) -> None:
        self.config = config
        self.ledger = Ledger(capacities(config, cpus, memory))
        self.running: dict[str, Settings] = {}
        self.on_change: Callable[[str], None] = lambda _ve: None
        self._kept: set[str] = set()

    def check(self, ve: str, settings: Settings) -> None:
        """Raises `Overcommitted`."""
        self.ledger.check(ve, promise_of(settings, self.config.policy))

    @contextlib.contextmanager
    def admitted(self, ve: str, settings: Settings) -> Iterator[None]:
        """Promise it, for good unless the body fails. Raises `Overcommitted`. Nothing waits between the look at the
        sums and the entry, so of two that start at the same time only one gets what is left."""
        self.check(ve, settings)
        before = self.running.get(ve)
        self._enter(ve, settings)
        try:
            yield
        except BaseException:
            if before is None:
                self.release(ve)
            else:
                self._enter(ve, before)
            raise
        if self.ledger.held:
            self.on_change(ve)  # again: now its cgroup is there

    def adopt(self, ve: str, settings: Settings) -> None:
        """A VE that runs already keeps what it was promised, whether or not it would be today. The daemon before may
        have died before it took a weight back, so what is in force has to be looked at in any case."""
        self._enter(ve, settings)
        self.on_change(ve)

    def release(self, ve: str) -> None:
        if ve in self._kept or ve not in self.running:
            return
        if self.ledger.held:
            self.on_change(ve)
        del self.running[ve]
        self.ledger.hold(ve, Promise())

    @contextlib.contextmanager
    def kept(self, ve: str, runs: Callable[[], bool]) -> Iterator[None]:
        """Over a restart: what the VE has been promised is not given to another before it is up again."""
        self._kept.add(ve)
        try:
            yield
        finally:
            self._kept.discard(ve)
            if not runs():
                self.release(ve)

    def switch(self, policy: Policy) -> None:
        """Promise by another policy from now on. Raises `Overcommitted` if what runs would then be promised more than
        there is; then nothing has changed."""
        config = replace(self.config, policy=policy)
        capacity = self.ledger.capacity
        ledger = Ledger({name: replace(each, factor=config.factor(name)) for name, each in capacity.items()})
        for ve, settings in self.running.items():
            promise = promise_of(settings, policy)
            ledger.check(ve, promise)
            ledger.hold(ve, promise)
        self.config, self.ledger = config, ledger
        for ve in self.running:
            self.on_change(ve)

    def cpu_shares(self) -> CpuShares:
        capacity = self.ledger.capacity["cpus"]
        return cpu_shares(capacity.total - capacity.reserve, self.running, self.config.policy)

    def _enter(self, ve: str, settings: Settings) -> None:
        self.running[ve] = settings
        had = bool(self.ledger.held)
        self.ledger.hold(ve, promise_of(settings, self.config.policy))
        if had or self.ledger.held:
            self.on_change(ve)
