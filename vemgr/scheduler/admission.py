# SPDX-License-Identifier: GPL-2.0-or-later
"""Admission: what has been promised to the VEs that run must fit the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vemgr.core.config import MIB, Settings
from vemgr.core.errors import Overcommitted
from vemgr.core.resources import format_cpus
from vemgr.core.scheduling import Policy, SchedulerConfig

_MOST_NAMED = 5  # holders in the text of a refusal; all are in its facts


@dataclass(frozen=True, slots=True)
class Promise:
    """What a VE can count on: thousandths of a CPU, bytes."""

    cpus: int = 0
    memory: int = 0

    def __bool__(self) -> bool:
        return bool(self.cpus or self.memory)


def promise_of(settings: Settings, policy: Policy) -> Promise:
    """What settings promise: the guarantees, or, where the policy says so, the limits for want of guarantees."""
    cpus, memory = settings.cpu_guarantee, settings.memory_guarantee
    if policy == Policy.GUARANTEED:
        cpus, memory = cpus or settings.cpus or 0, memory or settings.memory or 0
    return Promise(cpus, memory)


@dataclass(frozen=True, slots=True)
class Capacity:
    """Of one resource, in its unit; `factor`: how many times over it may be promised, in thousandths."""

    total: int
    reserve: int
    factor: int

    @property
    def promisable(self) -> int:
        return (self.total - self.reserve) * self.factor // 1000


@dataclass(frozen=True, slots=True)
class Resource:
    """How a resource is called in settings, and printed."""

    name: str
    setting: str
    show: Callable[[int], str]


def _show_cpus(millicpus: int) -> str:
    return f"{format_cpus(millicpus)} CPU{'' if millicpus == 1000 else 's'}"


def _show_memory(size: int) -> str:
    """Whole mebibytes: sums of a host are not round."""
    return f"{size // MIB}M"


RESOURCES = (Resource("cpus", "cpu-guarantee", _show_cpus), Resource("memory", "memory-guarantee", _show_memory))


def capacities(config: SchedulerConfig, cpus: int, memory: int) -> dict[str, Capacity]:
    """Of a host with so many thousandths of CPUs and bytes of memory."""
    return {name: Capacity(total, config.reserve(name).of(total), config.factor(name))
            for name, total in (("cpus", cpus), ("memory", memory))}


class Ledger:
    """Who has been promised what. The sums are kept, so that admission does not cost more with more VEs."""

    def __init__(self, capacity: Mapping[str, Capacity]) -> None:
        self.capacity = capacity
        self.held: dict[str, Promise] = {}
        self._sums = dict.fromkeys(capacity, 0)

    def promised(self, resource: str) -> int:
        return self._sums[resource]

    def free(self, resource: str) -> int:
        """Never negative, though promises from before a change of the configuration may be more than it allows."""
        return max(0, self.capacity[resource].promisable - self._sums[resource])

    def check(self, ve: str, promise: Promise) -> None:
        """Raises `Overcommitted` if `ve` asks for more than it has, and more than is left."""
        before = self.held.get(ve, Promise())
        for resource in RESOURCES:
            asked, has = getattr(promise, resource.name), getattr(before, resource.name)
            if asked > has and asked - has > self.free(resource.name):
                raise self._refusal(ve, resource, asked, has)

    def hold(self, ve: str, promise: Promise) -> None:
        """Write down what `ve` has now, instead of what it had; whether there is room is `check`'s to say."""
        before = self.held.get(ve, Promise())
        for resource in RESOURCES:
            self._sums[resource.name] += getattr(promise, resource.name) - getattr(before, resource.name)
        if promise:
            self.held[ve] = promise
        else:
            self.held.pop(ve, None)

    def holders(self, resource: str) -> list[tuple[str, int]]:
        """Largest first."""
        found = [(ve, getattr(promise, resource)) for ve, promise in self.held.items()]
        return sorted(((ve, amount) for ve, amount in found if amount), key=lambda each: (-each[1], each[0]))

    def fitting(self, promise: Promise) -> tuple[int | None, str]:
        """How many more VEs with this promise there is room for, and the resource that ends first; None for as many
        as one likes, when it asks for nothing."""
        counts = [(self.free(resource.name) // amount, resource.name) for resource in RESOURCES
                  if (amount := getattr(promise, resource.name))]
        return min(counts, key=lambda each: each[0]) if counts else (None, "")

    def _refusal(self, ve: str, resource: Resource, asked: int, has: int) -> Overcommitted:
        capacity, show = self.capacity[resource.name], resource.show
        fits = self.free(resource.name) + has
        holders = [each for each in self.holders(resource.name) if each[0] != ve]
        named = ", ".join(f"{name} {show(amount)}" for name, amount in holders[:_MOST_NAMED])
        more = f" and {len(holders) - _MOST_NAMED} more" if len(holders) > _MOST_NAMED else ""
        times = f", {capacity.factor / 1000:g} times over" if capacity.factor != 1000 else ""
        return Overcommitted(
            f"VE {ve} cannot be guaranteed {show(asked)}: the host has {show(capacity.total)}, keeps "
            f"{show(capacity.reserve)} for itself, and can promise {show(capacity.promisable)}{times}; promised to "
            f"others: {show(self.promised(resource.name) - has)}" + (f" ({named}{more})" if holders else ""),
            remedy=f"{show(fits)} would fit: ask for that, or stop or change one of the others",
            field=resource.setting, ve=ve, asked=asked, total=capacity.total, reserve=capacity.reserve,
            factor=capacity.factor, promisable=capacity.promisable, promised=self.promised(resource.name) - has,
            fits=fits, holders=",".join(f"{name}={amount}" for name, amount in holders))
