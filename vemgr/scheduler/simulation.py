# SPDX-License-Identifier: GPL-2.0-or-later
"""The scheduler's own admission, entitlement and weights, against VEs and a kernel that are only simulated.

The kernel as it is modelled: CPU goes by cpu.weight up to demand and cpu.max. Of memory a VE keeps what memory.low
protects; what else is wanted is cut for all in the same proportion. A disk goes by io.weight up to demand and io.max.
Time lost to switching, caches and queues is not in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from vemgr.core.errors import Overcommitted
from vemgr.scheduler.admission import Ledger, Promise, capacities, promise_of
from vemgr.scheduler.demand import phase
from vemgr.scheduler.filling import MOST_WEIGHT, Claim, fill
from vemgr.scheduler.knobs import is_off
from vemgr.scheduler.report import Report
from vemgr.scheduler.scenario import Kind, Scenario
from vemgr.scheduler.shares import MICRO, cpu_shares, fine_weight


@dataclass(slots=True)
class VE:
    name: str
    kind: Kind
    number: int
    promise: Promise
    start: float
    weight: int = 0  # cpu.weight, 0 before it is set, and of an idle one


@dataclass(slots=True)
class Host:
    ledger: Ledger
    ves: dict[str, VE] = field(default_factory=dict)
    changed: bool = False


class Simulation:
    def __init__(self, scenario: Scenario) -> None:
        amounts = scenario.amounts
        found = capacities(scenario.scheduler, amounts.get("cpus", 0), amounts.get("memory", 0))
        self._scenario = scenario
        self._capacity = {"cpus": (found["cpus"].total - found["cpus"].reserve) * MICRO,
                          "memory": found["memory"].total - found["memory"].reserve, "io": amounts.get("io", 0)}
        self._hosts = [Host(Ledger(found)) for _ in range(scenario.hosts)]
        self._waiting = sorted(_ves(scenario), key=lambda ve: ve.start, reverse=True)
        self._next = 0
        self._full: set[str] = set()  # kinds that were refused by all hosts since the last stop
        self._report = Report(scenario)

    def run(self) -> Report:
        for step in range(self._scenario.ticks):
            time = step * self._scenario.tick
            self._report.begin(step)
            self._stop(time)
            self._start(time)
            for host in self._hosts:
                if host.changed:
                    self._balance(host)
                for resource, capacity in self._capacity.items():
                    self._tick(host, resource, capacity, time)
        return self._report

    def _stop(self, time: float) -> None:
        for host in self._hosts:
            for ve in [ve for ve in host.ves.values() if ve.kind.stop <= time]:
                del host.ves[ve.name]
                host.ledger.hold(ve.name, Promise())
                host.changed = True
                self._full.clear()

    def _start(self, time: float) -> None:
        while self._waiting and self._waiting[-1].start <= time:
            ve = self._waiting.pop()
            host = None if ve.kind.name in self._full else self._place(ve)
            if host is None:
                self._full.add(ve.kind.name)
                self._report.refused(ve.kind)
            else:
                host.ves[ve.name] = ve
                host.changed = True
                self._report.started(ve.kind)

    def _place(self, ve: VE) -> Host | None:
        """In turns; the first host that can promise what the VE is to be promised."""
        for offset in range(len(self._hosts)):
            host = self._hosts[(self._next + offset) % len(self._hosts)]
            try:
                host.ledger.check(ve.name, ve.promise)
            except Overcommitted:
                continue
            host.ledger.hold(ve.name, ve.promise)
            self._next += offset + 1
            return host
        return None

    def _balance(self, host: Host) -> None:
        """As the daemon does after each change."""
        host.changed = False
        shares = cpu_shares(self._capacity["cpus"] // MICRO, {ve.name: ve.kind.settings for ve in host.ves.values()},
                            self._scenario.scheduler.policy)
        for ve in host.ves.values():
            weight = shares.weights.get(ve.name)
            if weight is None:  # idle
                continue
            if not ve.weight or is_off(weight, ve.weight):
                if shares.derived[""] or ve.weight:
                    self._report.moved()
                ve.weight = weight

    def _tick(self, host: Host, resource: str, capacity: int, time: float) -> None:
        ves = [ve for ve in host.ves.values() if resource in ve.kind.demand]
        if not ves or not capacity:
            return
        unit = MICRO if resource == "cpus" else 1
        wanted, fair, real = [], [], []
        for ve in ves:
            want = ve.kind.demand[resource].at(time, ve.number) * unit
            limit = _limit(ve, resource)
            usable = want if limit is None else min(want, limit * unit)
            wanted.append(want)
            fair.append(Claim(_promised(ve, resource) * unit, usable, _weight(ve, resource)))
            real.append(_kernel(ve, resource, usable, capacity))
        got = fill(capacity, real).shares
        self._report.tick(resource, capacity, [ve.kind for ve in ves], wanted, fair, fill(capacity, fair).shares, got)


def _ves(scenario: Scenario) -> Iterator[VE]:
    for kind in scenario.kinds:
        promise = promise_of(kind.settings, scenario.scheduler.policy)
        for number in range(kind.count):
            yield VE(f"{kind.name}-{number}", kind, number, promise, kind.start + kind.spread * phase(number))


def _limit(ve: VE, resource: str) -> int | None:
    settings = ve.kind.settings
    return {"cpus": settings.cpus, "memory": settings.memory, "io": settings.io_write}[resource]


def _promised(ve: VE, resource: str) -> int:
    return 0 if resource == "io" else int(getattr(ve.promise, resource))


def _weight(ve: VE, resource: str) -> int:
    settings = ve.kind.settings
    return {"cpus": fine_weight(settings.cpu_weight), "memory": 100, "io": settings.io_weight}[resource]


def _kernel(ve: VE, resource: str, usable: int, capacity: int) -> Claim:
    """What the kernel goes by."""
    if resource == "cpus":
        return Claim(0, usable, fine_weight(ve.weight))
    if resource == "io":
        return Claim(0, usable, ve.kind.settings.io_weight)
    protected = min(usable, ve.promise.memory)
    return Claim(protected, usable, max(1, min(MOST_WEIGHT, (usable - protected) * MOST_WEIGHT // max(1, capacity))))
