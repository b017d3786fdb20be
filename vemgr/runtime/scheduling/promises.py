# SPDX-License-Identifier: GPL-2.0-or-later
"""What the VEs that run have been promised, from the moment that their start is admitted until they have ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace

from vemgr.core.config import Settings
from vemgr.core.errors import NoSuchGroup
from vemgr.core.groups import Group, group_key, line_of
from vemgr.core.scheduling import Policy, SchedulerConfig
from vemgr.scheduler.admission import Capacity, Ledger, Promise, capacities, promise_of
from vemgr.scheduler.shares import CpuShares, cpu_shares


def host_resources() -> tuple[int, int]:
    """Thousandths of CPUs that are online, and bytes of memory: sysconf(3), the same as MemTotal of /proc/meminfo."""
    return os.sysconf("SC_NPROCESSORS_ONLN") * 1000, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class Promises:
    """`ledger`: the sums. `running`: the settings of all VEs that run or are about to. `groups`: all.
    `changing`: held while one is defined, changed or removed, or its cgroup made. `on_change` is called with a VE
    when what follows from guarantees may have changed: not for VEs without, on a host where nobody has any."""

    def __init__(self, config: SchedulerConfig, cpus: int, memory: int) -> None:
        self.config = config
        self.ledger = Ledger(capacities(config, cpus, memory))
        self.running: dict[str, Settings] = {}
        self.groups: dict[str, Group] = {}
        self.changing = asyncio.Lock()
        self.on_change: Callable[[str], None] = lambda _ve: None
        self._kept: set[str] = set()

    def offer_network(self, total: int, reserve: int) -> None:
        """What there is of the uplink, once that is known: bit/s."""
        self.ledger.capacity["network"] = Capacity(total, reserve, 1000)

    def check_group(self, settings: Settings) -> None:
        """Raises `NoSuchGroup`."""
        if settings.group and settings.group not in self.groups:
            raise NoSuchGroup(settings.group)

    def check(self, ve: str, settings: Settings) -> None:
        """Raises `Overcommitted`, `NoSuchGroup`."""
        self.check_group(settings)
        self.ledger.check(ve, promise_of(settings, self.config.policy), group_key(settings.group))

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
        if settings.group and settings.group not in self.groups:  # its definition was lost
            self.adopt_group(Group(settings.group))
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
        for group in self._outermost_first():
            terms = self._terms(group, policy)
            ledger.check_group(group_key(group.name), *terms)
            ledger.hold_group(group_key(group.name), *terms)
        for ve, settings in self.running.items():
            promise, inside = promise_of(settings, policy), group_key(settings.group)
            ledger.check(ve, promise, inside)
            ledger.hold(ve, promise, inside)
        self.config, self.ledger = config, ledger
        for ve in self.running:
            self.on_change(ve)

    def cpu_shares(self) -> CpuShares:
        capacity = self.ledger.capacity["cpus"]
        return cpu_shares(capacity.total - capacity.reserve, self.running, self.config.policy, self.groups)

    def protected(self) -> dict[str, int]:
        """Bytes of memory that are to be protected: by group with a VE in it, "" for all VEs together. A group in which
        nothing runs has no use for what it was promised."""
        used = {group_key(group.name) for name in {each.group for each in self.running.values()}
                for group in line_of(self.groups, name)}
        idle = [group_key(group.name) for group in self.groups.values()
                if not group.parent and group_key(group.name) not in used]
        claimed = self.ledger.claimed
        return {"": self.ledger.promised("memory") - sum(claimed(key, "memory") for key in idle),
                **{key: claimed(key, "memory") for key in used}}

    def admit_group(self, group: Group) -> None:
        """Define or change a group. Raises `Overcommitted`; then nothing has changed."""
        self.ledger.check_group(group_key(group.name), *self._terms(group, self.config.policy))
        self.adopt_group(group)

    def adopt_group(self, group: Group) -> None:
        """A group that was promised before keeps it, whether or not it would be promised today."""
        self.groups[group.name] = group
        had = bool(self.ledger.held)
        self.ledger.hold_group(group_key(group.name), *self._terms(group, self.config.policy))
        if had or self.ledger.held:
            self.on_change(group_key(group.name))

    def drop_group(self, name: str) -> None:
        """One that nothing is in."""
        if self.ledger.held:
            self.on_change(group_key(name))
        del self.groups[name]
        self.ledger.drop_group(group_key(name))

    def _outermost_first(self) -> list[Group]:
        return sorted(self.groups.values(), key=lambda group: len(line_of(self.groups, group.name)))

    @staticmethod
    def _terms(group: Group, policy: Policy) -> tuple[Promise, dict[str, int | None], str]:
        settings = group.settings
        return (promise_of(settings, policy), {"cpus": settings.cpus, "memory": settings.memory, "network": None},
                group_key(group.parent))

    def _enter(self, ve: str, settings: Settings) -> None:
        self.running[ve] = settings
        had = bool(self.ledger.held)
        self.ledger.hold(ve, promise_of(settings, self.config.policy), group_key(settings.group))
        if had or self.ledger.held:
            self.on_change(ve)
