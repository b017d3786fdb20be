# SPDX-License-Identifier: GPL-2.0-or-later
"""The CPUs that were chosen for VEs. What is remembered here is in force in their cgroups, and a daemon that comes
reads it there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vemgr.core.config import Settings
from vemgr.core.resources import chosen_cpus, expand_cpu_mask, format_cpu_mask
from vemgr.kernel import topology
from vemgr.scheduler import placement
from vemgr.scheduler.placement import Pinned, Place, Placement, Topology


class Placements:
    """`running`: the settings of all VEs that run or are about to."""

    def __init__(self, running: Mapping[str, Settings]) -> None:
        self._running = running
        self._placed: dict[str, Placement] = {}
        self._topology: Topology = {}
        self._settled: tuple[Topology, dict[str, Pinned]] | None = None  # where no move was worth it

    def choose(self, ve: str, settings: Settings, cpus: set[int]) -> None:
        """Place a VE, among `cpus`, that starts or is to have another number of them."""
        self._placed = {name: each for name, each in self._placed.items() if name in self._running and name != ve}
        if chosen_cpus(settings.cpu_mask):
            self._placed[ve] = self.proposed(ve, settings, cpus)

    def proposed(self, ve: str, settings: Settings, cpus: set[int]) -> Placement:
        """What `choose` would do."""
        where = self._places(cpus)
        others = {name: each for name, each in self._pinned().items() if name != ve}
        count = min(chosen_cpus(settings.cpu_mask), len(where))  # one may have gone offline since it was checked
        return placement.place(where, count, placement.loads(where, others))

    def of(self, ve: str) -> Placement | None:
        return self._placed.get(ve)

    def shown(self, ve: str, settings: Settings, cpus: set[int]) -> Placement:
        """What was chosen, or would be if the VE were started now."""
        placed = self._placed.get(ve)
        if placed is None or ve not in self._running or len(placed.cpus) != min(chosen_cpus(settings.cpu_mask),
                                                                                len(cpus)):
            return self.proposed(ve, settings, cpus)
        return placed

    def put_back(self, ve: str, placed: Placement | None) -> None:
        """What was chosen has not come into force."""
        self._placed.pop(ve, None)
        if placed is not None:
            self._placed[ve] = placed

    def resolved(self, ve: str, settings: Settings) -> Settings:
        """With the CPUs by number."""
        placed = self._placed.get(ve)
        if placed is None or not chosen_cpus(settings.cpu_mask):
            return settings
        return replace(settings, cpu_mask=format_cpu_mask(placed.cpus))

    def adopt(self, ve: str, mask: str) -> None:
        """A VE that runs already. If they are not as many as it is to have, `better` chooses anew: a daemon before may
        have been killed in the middle of a change."""
        self._placed[ve] = Placement(frozenset(expand_cpu_mask(mask) if mask else ()), "chosen before this daemon came")

    @property
    def any(self) -> bool:
        return bool(self._placed)

    def better(self, cpus: set[int]) -> tuple[str, Placement] | None:
        """The move that is worth most. To find that there is none takes milliseconds with hundreds of VEs, so it is not
        looked for again before something has changed."""
        now = self._places(cpus), self._pinned()
        if now == self._settled:
            return None
        found = placement.better(*now)
        self._settled = None if found else now
        return found

    def move(self, ve: str, to: Placement) -> None:
        self._placed[ve] = to

    def _places(self, cpus: set[int]) -> Topology:
        if self._topology.keys() != cpus:
            self._topology = {cpu: Place(*where) for cpu, where in topology.places(sorted(cpus)).items()}
        return self._topology

    def _pinned(self) -> dict[str, Pinned]:
        found = {}
        for ve, settings in self._running.items():
            if settings.cpu_mask is None:
                continue
            placed = self._placed.get(ve)
            if chosen_cpus(settings.cpu_mask):
                if placed is not None:
                    found[ve] = Pinned(placed.cpus, placement.demand_of(settings), movable=True,
                                       count=chosen_cpus(settings.cpu_mask))
            else:
                cpus = frozenset(expand_cpu_mask(settings.cpu_mask))
                found[ve] = Pinned(cpus, placement.demand_of(settings), movable=False)
        return found
