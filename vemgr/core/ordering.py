# SPDX-License-Identifier: GPL-2.0-or-later
"""In which order VEs start and stop: higher priority first, and none before those that it comes after.

As systemd's After=, "after" orders and does not pull in: a name that nobody has, or that is not being started, holds up
nobody. So a VE can be destroyed without a look at who names it. Cycles are refused where settings are changed
(`find_cycle`); what comes in by another way, such as a file edited by hand, is cut open and told (`Sequence.cut`).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter


@dataclass(frozen=True)
class Node:
    """`after`: names of those that must have settled before this one begins."""

    name: str
    priority: int = 0
    after: tuple[str, ...] = ()


def find_cycle(after: Mapping[str, Collection[str]], name: str) -> list[str]:
    """The shortest way from `name` by what comes before it back to `name`, both ends included; [] if there is none."""
    came_from: dict[str, str] = {}
    queue = deque([name])
    while queue:
        here = queue.popleft()
        for before in after.get(here, ()):
            if before == name:
                way = [name]
                while here != name:
                    way.append(here)
                    here = came_from[here]
                way.append(name)
                return way[::-1]
            if before not in came_from:
                came_from[before] = here
                queue.append(before)
    return []


def reverse(nodes: Iterable[Node]) -> list[Node]:
    """For a stop: who came last goes first."""
    found = {node.name: replace(node, priority=-node.priority, after=()) for node in nodes}
    followers: dict[str, list[str]] = {name: [] for name in found}
    for node in nodes:
        for before in node.after:
            if before in followers:
                followers[before].append(node.name)
    return [replace(node, after=tuple(followers[name])) for name, node in found.items()]


class Sequence:
    """What may begin next. `cut`: the cycles that were there, each from a name that no longer waits
    for the next one in it.

    What a VE of high priority comes after has at least that priority, too: it would be of no use to be urgent, and then
    to wait for one that is not.
    """

    def __init__(self, nodes: Iterable[Node]) -> None:
        by_name = {node.name: node for node in nodes}
        self._after = {name: {before for before in node.after if before in by_name}
                       for name, node in by_name.items()}
        self.cut: list[list[str]] = []
        self._sorter = self._without_cycles({name: node.priority for name, node in by_name.items()})
        self._priority = {name: node.priority for name, node in by_name.items()}
        self._chain = dict.fromkeys(by_name, 1)
        for name in reversed([*TopologicalSorter(self._after).static_order()]):
            for before in self._after[name]:
                self._priority[before] = max(self._priority[before], self._priority[name])
                self._chain[before] = max(self._chain[before], self._chain[name] + 1)
        self._ready: list[tuple[int, str]] = []
        self.remaining = len(by_name)

    def _without_cycles(self, priority: Mapping[str, int]) -> TopologicalSorter[str]:
        while True:
            sorter = TopologicalSorter(self._after)
            try:
                sorter.prepare()
            except CycleError as error:
                cycle: list[str] = error.args[1][:-1]  # each comes before the next one
                first = min(cycle, key=lambda name: (-priority[name], name))
                at = cycle.index(first)
                self.cut.append([*cycle[at:], *cycle[:at], first][::-1])
                self._after[first].discard(cycle[at - 1])
            else:
                return sorter

    def take(self, room: int) -> list[str]:
        """At most `room` of those that nothing holds up any more, the most urgent first. They are begun now."""
        for name in self._sorter.get_ready():
            heapq.heappush(self._ready, (-self._priority[name], name))
        return [heapq.heappop(self._ready)[1] for _ in range(min(room, len(self._ready)))]

    def settled(self, name: str) -> None:
        """One that was begun holds up nobody any more, whatever has come of it."""
        self._sorter.done(name)
        self.remaining -= 1

    def chain(self, name: str) -> int:
        """How many have to settle one after another from this one on, itself included."""
        return self._chain[name]

    def waits_for(self, name: str) -> set[str]:
        return self._after[name]
