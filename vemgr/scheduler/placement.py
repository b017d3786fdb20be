# SPDX-License-Identifier: GPL-2.0-or-later
"""Which CPUs a VE gets that is to have some of its own choosing: in one NUMA node where they fit, in whole cores, where
least is pinned already.

The load of a CPU is what the VEs pinned to it may use of it at most, in thousandths of its time; VEs that may run
everywhere load all alike, and are left out. What VEs really use is no measure: one that is idle when another starts
would be surprised by it later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vemgr.core.config import Settings
from vemgr.core.resources import mask_size

WHOLE = 1000  # of a CPU
#: By how much the fullest CPU of a VE must become emptier for a move to be worth the caches that it costs.
_WORTH = WHOLE // 2


@dataclass(frozen=True, slots=True)
class Place:
    """Where a CPU is: `core` is the same for the threads of one."""

    node: int
    core: int


Topology = Mapping[int, Place]
Loads = Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Placement:
    cpus: frozenset[int]
    reason: str


@dataclass(frozen=True, slots=True)
class Pinned:
    """A VE that runs on some CPUs only. `demand`: on each of them. `movable`: they were chosen. `count`: how many it is
    to have; 0 for as many as there are."""

    cpus: frozenset[int]
    demand: int
    movable: bool
    count: int = 0


def demand_of(settings: Settings) -> int:
    """What a VE with a mask may use of each of its CPUs."""
    most = WHOLE * mask_size(settings.cpu_mask or "0")
    return min(most, most if settings.cpus is None else settings.cpus) * WHOLE // most


def loads(topology: Topology, pinned: Mapping[str, Pinned]) -> dict[int, int]:
    found = dict.fromkeys(topology, 0)
    for each in pinned.values():
        for cpu in each.cpus & topology.keys():
            found[cpu] += each.demand
    return found


def place(topology: Topology, count: int, load: Loads) -> Placement:
    """`count` CPUs, of `load`. There must be as many."""
    nodes: dict[int, list[int]] = {}
    for cpu in sorted(topology):
        nodes.setdefault(topology[cpu].node, []).append(cpu)
    fitting = [cpus for cpus in nodes.values() if len(cpus) >= count]
    if fitting:
        picked = [(_pick(topology, cpus, count, load), cpus) for cpus in fitting]
        chosen, _ = min(picked, key=lambda each: (_cost(each[0], load), _cost(each[1], load)))
        where = f"of node {topology[chosen[0]].node}" if len(nodes) > 1 else ""
    else:
        chosen = _over_nodes(topology, [*nodes.values()], count, load)
        where = f"of {len({topology[cpu].node for cpu in chosen})} nodes, since none has so many"
    cores = len({topology[cpu].core for cpu in chosen})
    fullest = max(load[cpu] for cpu in chosen)
    pinned = f"what may use {fullest / WHOLE:g} of one" if fullest else "nothing"
    parts = [f"{count} CPU{'s' * (count > 1)} on {cores} core{'s' * (cores > 1)}", where]
    return Placement(frozenset(chosen), " ".join(filter(None, parts)) + f"; {pinned} was pinned to them")


def _cost(cpus: list[int], load: Loads) -> tuple[int, int]:
    return max(load[cpu] for cpu in cpus), sum(load[cpu] for cpu in cpus)


def _pick(topology: Topology, cpus: list[int], count: int, load: Loads) -> list[int]:
    """Whole cores first, the emptiest before others; what is left over from a core that has least on it."""
    cores: dict[int, list[int]] = {}
    for cpu in cpus:
        cores.setdefault(topology[cpu].core, []).append(cpu)
    waiting, chosen = sorted(cores.values(), key=lambda core: _cost(core, load)), list[int]()
    while len(chosen) < count:
        left = count - len(chosen)
        core = next((each for each in waiting if len(each) <= left), waiting[0])
        waiting.remove(core)
        chosen += sorted(core, key=lambda cpu: (load[cpu], cpu))[:left]
    return chosen


def _over_nodes(topology: Topology, nodes: list[list[int]], count: int, load: Loads) -> list[int]:
    """As few nodes as can be: whole ones, the largest first, and the rest from one."""
    chosen: list[int] = []
    waiting = sorted(nodes, key=lambda cpus: (-len(cpus), _cost(cpus, load)))
    while len(chosen) < count:
        left = count - len(chosen)
        enough = [cpus for cpus in waiting if len(cpus) >= left]
        if enough:
            return chosen + min((_pick(topology, cpus, left, load) for cpus in enough),
                                key=lambda cpus: _cost(cpus, load))
        chosen += waiting.pop(0)
    return chosen


def better(topology: Topology, pinned: Mapping[str, Pinned]) -> tuple[str, Placement] | None:
    """The one move, within the nodes that a VE is in, that empties the fullest CPU of a VE by most; None where none is
    worth it. Each makes that CPU's load smaller and no other as large, so that moves come to an end. One that has not
    the CPUs it is to have comes before all others: some have gone offline, or come back."""
    total = loads(topology, pinned)
    found: list[tuple[int, str, Placement]] = []
    for ve, each in pinned.items():
        if not each.movable:
            continue
        count = min(each.count or len(each.cpus), len(topology))
        if len(each.cpus) != count or not each.cpus <= topology.keys():
            return ve, _anew(topology, each, count, total)
        fullest = max(total[cpu] for cpu in each.cpus)
        if fullest - each.demand < _WORTH:
            continue  # nothing there but its own
        nodes = {topology[cpu].node for cpu in each.cpus}
        near = {cpu: where for cpu, where in topology.items() if where.node in nodes}
        without = {cpu: total[cpu] - each.demand * (cpu in each.cpus) for cpu in near}
        if fullest - sorted(without.values())[count - 1] - each.demand < _WORTH:
            continue  # wherever it goes: `place` costs more than this look
        other = place(near, count, without)
        gain = fullest - max(without[cpu] + each.demand for cpu in other.cpus)
        if gain >= _WORTH:
            found.append((gain, ve, other))
    if not found:
        return None
    _, ve, other = max(found, key=lambda move: (move[0], move[1]))
    return ve, other


def _anew(topology: Topology, each: Pinned, count: int, total: Loads) -> Placement:
    """In the nodes where it still is, if there are enough CPUs."""
    without = {cpu: total[cpu] - each.demand * (cpu in each.cpus) for cpu in topology}
    nodes = {topology[cpu].node for cpu in each.cpus if cpu in topology}
    near = {cpu: where for cpu, where in topology.items() if where.node in nodes}
    found = place(near if len(near) >= count else topology, count, without)
    return Placement(found.cpus, f"{found.reason}; those it had were not {count} that VEs can use")
