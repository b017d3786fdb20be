# SPDX-License-Identifier: GPL-2.0-or-later
"""Admission: what has been promised to the VEs that run must fit the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vemgr.core.config import MIB, Settings
from vemgr.core.errors import Overcommitted
from vemgr.core.groups import called, is_group_key, shown
from vemgr.core.parsing import IDLE
from vemgr.core.rates import show_bits
from vemgr.core.resources import format_cpus
from vemgr.core.scheduling import Policy, SchedulerConfig

_MOST_NAMED = 5  # holders in the text of a refusal; all are in its facts


@dataclass(frozen=True, slots=True)
class Promise:
    """What a VE can count on: thousandths of a CPU, bytes, bit/s of the uplink."""

    cpus: int = 0
    memory: int = 0
    network: int = 0

    def __bool__(self) -> bool:
        return bool(self.cpus or self.memory or self.network)


def promise_of(settings: Settings, policy: Policy) -> Promise:
    """What settings promise: the guarantees, or, where the policy says so, the limits for want of guarantees. Who has
    only the CPUs that others leave is promised none."""
    cpus, memory = settings.cpu_guarantee, settings.memory_guarantee
    if policy == Policy.GUARANTEED:
        memory = memory or settings.memory or 0
        if settings.cpu_weight != IDLE:
            cpus = cpus or settings.cpus or 0
    return Promise(cpus, memory, settings.network_guarantee)


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


RESOURCES = (Resource("cpus", "cpu-guarantee", _show_cpus), Resource("memory", "memory-guarantee", _show_memory),
             Resource("network", "network-guarantee", lambda bits: f"{show_bits(bits)}bit/s"))


def capacities(config: SchedulerConfig, cpus: int, memory: int) -> dict[str, Capacity]:
    """Of a host with so many thousandths of CPUs and bytes of memory, and no uplink that is known."""
    found = {name: Capacity(total, config.reserve(name).of(total), config.factor(name))
             for name, total in (("cpus", cpus), ("memory", memory))}
    return found | {"network": Capacity(0, 0, 1000)}


class Ledger:
    """Who has been promised what: VEs by their names, and groups, which have what is theirs whether a VE of them runs
    or not, by their keys (`core.groups`). The sums are kept, so that admission does not cost more with more VEs.

    What is promised in a group with a guarantee comes out of that. In a group without, it comes out of what the group
    is in, at most as much as the group's limit.
    """

    def __init__(self, capacity: Mapping[str, Capacity]) -> None:
        self.capacity = dict(capacity)
        self.held: dict[str, Promise] = {}
        self._limits: dict[str, Mapping[str, int | None]] = {}  # of groups
        self._parents: dict[str, str] = {}  # of groups, and of VEs in groups that were promised something
        self._sums = {"": dict.fromkeys(capacity, 0)}  # of what is in each group; "" is the host

    def promised(self, resource: str, group: str = "") -> int:
        return self._sums[group][resource]

    def claimed(self, holder: str, resource: str) -> int:
        """What a VE or group takes up where it is: a group without guarantee what was promised in it."""
        own: int = getattr(self.held.get(holder, Promise()), resource)
        return max(own, self._sums[holder][resource]) if holder in self._sums else own

    def free(self, resource: str, group: str = "") -> int:
        """What can still be promised in a group. Never negative, though promises from before a change of the
        configuration may be more than it allows."""
        left: list[int] = []
        while group:
            guarantee, limit = getattr(self.held.get(group, Promise()), resource), self._limits[group][resource]
            if guarantee:
                left.append(guarantee - self._sums[group][resource])
                break
            if limit is not None:
                left.append(limit - self._sums[group][resource])
            group = self._parents[group]
        else:
            left.append(self.capacity[resource].promisable - self._sums[""][resource])
        return max(0, min(left))

    def check(self, ve: str, promise: Promise, group: str = "") -> None:
        """Raises `Overcommitted` if `ve` asks for more than it has in this group, and more than is left there."""
        if not promise:
            return
        before, was = self.held.get(ve, Promise()), self._parents.get(ve, "")
        self.hold(ve, Promise(), was)
        try:
            for resource in RESOURCES:
                asked, has = getattr(promise, resource.name), getattr(before, resource.name)
                less = was == group and asked <= has
                if asked and not less and asked > self.free(resource.name, group):
                    raise self._refusal(ve, resource, asked, group)
        finally:
            self.hold(ve, before, was)

    def hold(self, ve: str, promise: Promise, group: str = "") -> None:
        """Write down what `ve` has now, and in which group, instead of what it had; whether there is room is `check`'s
        to say."""
        if promise or ve in self.held:
            self._take(ve)
            self._put(ve, promise, group)

    def check_group(self, group: str, promise: Promise, limits: Mapping[str, int | None], parent: str = "") -> None:
        """Raises `Overcommitted` if it would have less than was promised in it, or more than is left where it is."""
        for resource in RESOURCES:
            name = resource.name
            asked, inside = getattr(promise, name), self._sums.get(group, {}).get(name, 0)
            has, limit = self.claimed(group, name), limits[name]
            for bound in (asked or None, limit):
                if bound is not None and bound < inside:
                    raise self._too_little(group, resource, bound, inside)
            more = max(asked, inside) - has
            if more > 0 and more > self.free(name, parent):
                raise self._refusal(group, resource, asked, parent, has)

    def hold_group(self, group: str, promise: Promise, limits: Mapping[str, int | None], parent: str = "") -> None:
        self._sums.setdefault(group, dict.fromkeys(self.capacity, 0))
        self._limits[group] = limits
        self._take(group)
        self._put(group, promise, parent)

    def drop_group(self, group: str) -> None:
        """One that nothing is in."""
        self._take(group)
        for known in (self.held, self._limits, self._parents, self._sums):
            known.pop(group, None)

    def _take(self, holder: str) -> None:
        for resource in self.capacity:
            self._add(self._parents.get(holder, ""), resource, -self.claimed(holder, resource))

    def _put(self, holder: str, promise: Promise, group: str) -> None:
        if promise:
            self.held[holder] = promise
        else:
            self.held.pop(holder, None)
        if is_group_key(holder) or (group and promise):
            self._parents[holder] = group
        else:
            self._parents.pop(holder, None)
        for resource in self.capacity:
            self._add(group, resource, self.claimed(holder, resource))

    def _add(self, group: str, resource: str, amount: int) -> None:
        """To the sum of a group, and of those that it is in as far as it takes up more there."""
        while amount:
            before = self.claimed(group, resource) if group else 0
            self._sums[group][resource] += amount
            if not group:
                return
            amount = self.claimed(group, resource) - before
            group = self._parents[group]

    def holders(self, resource: str, group: str = "") -> list[tuple[str, int]]:
        """What a group, or the host, was to share out: to which VEs and groups. Largest first."""
        found = [(holder, self.claimed(holder, resource)) for holder in {**self.held, **self._limits}
                 if self._parents.get(holder, "") == group]
        return sorted(((holder, amount) for holder, amount in found if amount), key=lambda each: (-each[1], each[0]))

    def fitting(self, promise: Promise, group: str = "") -> tuple[int | None, str]:
        """How many more VEs with this promise there is room for, and the resource that ends first; None for as many
        as one likes, when it asks for nothing."""
        counts = [(self.free(resource.name, group) // amount, resource.name) for resource in RESOURCES
                  if (amount := getattr(promise, resource.name))]
        return min(counts, key=lambda each: each[0]) if counts else (None, "")

    def _refusal(self, holder: str, resource: Resource, asked: int, group: str, has: int = 0) -> Overcommitted:
        """`has`: what it has already and would keep. The sums are those of the place where there is too little."""
        show, name = resource.show, resource.name
        fits = self.free(name, group) + has
        scarce = self._scarce(name, group)
        holders = [each for each in self.holders(name, scarce) if each[0] != holder]
        others = sum(amount for _, amount in holders)
        facts: dict[str, object] = {}
        if scarce:
            guarantee = getattr(self.held.get(scarce, Promise()), name)
            there = guarantee or self._limits[scarce][name] or 0
            where = f"{shown(scarce)} {'is guaranteed' if guarantee else 'is limited to'} {show(there)}"
            facts |= {"group": scarce[1:], "promisable": there}
        else:
            capacity = self.capacity[name]
            times = f", {capacity.factor / 1000:g} times over" if capacity.factor != 1000 else ""
            where = (f"the host has {show(capacity.total)}, keeps {show(capacity.reserve)} for itself, and can promise "
                     f"{show(capacity.promisable)}{times}")
            facts |= {"total": capacity.total, "reserve": capacity.reserve, "factor": capacity.factor,
                      "promisable": capacity.promisable}
        return Overcommitted(
            f"{called(holder)} cannot be guaranteed {show(asked)}: {where}; promised to others: {show(others)}"
            + _named(holders, show),
            remedy=f"{show(fits)} would fit: ask for that, or stop or change one of the others",
            field=resource.setting, ve=holder, asked=asked, promised=others, fits=fits,
            holders=",".join(f"{holder}={amount}" for holder, amount in holders), **facts)

    def _scarce(self, resource: str, group: str) -> str:
        """Which of the groups around, or the host, has least left of what can be promised in `group`."""
        left = self.free(resource, group)
        while group:
            guarantee, limit = getattr(self.held.get(group, Promise()), resource), self._limits[group][resource]
            bound = guarantee or limit
            if guarantee or (bound is not None and bound - self._sums[group][resource] <= left):
                return group
            group = self._parents[group]
        return ""

    def _too_little(self, group: str, resource: Resource, asked: int, inside: int) -> Overcommitted:
        show, holders = resource.show, self.holders(resource.name, group)
        return Overcommitted(
            f"{called(group)} cannot have {show(asked)}: {show(inside)} are promised in it" + _named(holders, show),
            remedy=f"{show(inside)} or more would do: ask for that, or stop or change what is in the group",
            field=resource.setting, group=group[1:], asked=asked, promised=inside, fits=inside,
            holders=",".join(f"{holder}={amount}" for holder, amount in holders))


def _named(holders: list[tuple[str, int]], show: Callable[[int], str]) -> str:
    named = ", ".join(f"{shown(holder)} {show(amount)}" for holder, amount in holders[:_MOST_NAMED])
    more = f" and {len(holders) - _MOST_NAMED} more" if len(holders) > _MOST_NAMED else ""
    return f" ({named}{more})" if holders else ""
