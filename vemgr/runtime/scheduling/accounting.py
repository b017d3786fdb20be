# SPDX-License-Identifier: GPL-2.0-or-later
"""What the scheduler can tell: the host's capacity, what still fits, and why a VE has what it has."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from mmap import PAGESIZE
from typing import Any

from vemgr.core import resources as units
from vemgr.core.config import DEFAULTS, Settings, parse_settings
from vemgr.core.events import SCHEDULER
from vemgr.core.groups import group_key, line_of, shown
from vemgr.core.rates import show_bits
from vemgr.kernel.usage import cpu_ticks, memory_used
from vemgr.runtime.instances import Instance, Parts
from vemgr.runtime.scheduling import readings
from vemgr.scheduler.admission import RESOURCES, Promise, Resource, promise_of
from vemgr.scheduler.explain import IO_KEYS, Knob, agrees, group_knobs, io_knobs, knobs_of
from vemgr.scheduler.knobs import is_off
from vemgr.scheduler.shares import cpu_shares, memory_shares, uplink_share

_LOOK = 0.2  # seconds over which CPU use is measured
_DECISIONS = 5  # that are shown with a VE


class Accounting:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def capacity(self) -> dict[str, Any]:
        """Sums of promises, and what the whole host uses."""
        cpus = self._parts.promises.ledger.capacity["cpus"].total
        uplink = self._parts.networking.uplink
        uplink.look()
        before, began = uplink.sent(), time.monotonic()
        used = {"cpus": await _busy(cpus), "memory": memory_used()}
        used["network"] = int((uplink.sent() - before) * 8 / (time.monotonic() - began))
        return {"policy": str(self._parts.promises.config.policy),
                "resources": [self._resource(each, used[each.name]) for each in RESOURCES
                              if self._parts.promises.ledger.capacity[each.name].total]}

    def _resource(self, resource: Resource, used: int) -> dict[str, Any]:
        ledger, name = self._parts.promises.ledger, resource.name
        capacity = ledger.capacity[name]
        return {"resource": name, "total": capacity.total, "reserve": capacity.reserve,
                "overcommit": capacity.factor / 1000, "promisable": capacity.promisable,
                "promised": ledger.promised(name), "free": ledger.free(name), "used": used,
                "holders": [{"ve": shown(holder), "amount": amount} for holder, amount in ledger.holders(name)]}

    def fitting(self, cpus: str, memory: str, network: str = "", group: str = "") -> dict[str, Any]:
        """How many more VEs with such guarantees can be started, in a group. Raises `BadValue`, `NoSuchGroup`."""
        asked = parse_settings({"cpu-guarantee": cpus or "0", "memory-guarantee": memory or "0",
                                "network-guarantee": network or "0"})
        self._parts.promises.check_group(replace(asked, group=group))
        if asked.network_guarantee:
            self._parts.networking.uplink.check()
        promise = Promise(asked.cpu_guarantee, asked.memory_guarantee, asked.network_guarantee)
        count, scarce = self._parts.promises.ledger.fitting(promise, group_key(group))
        return {"unlimited": count is None, "count": count or 0, "scarce": scarce}

    async def explain(self, instance: Instance) -> dict[str, Any]:
        """A VE that does not run is explained as if it had been started now."""
        name, running = instance.name, instance.running
        settings = instance.in_force if running else instance.definition.settings
        used = await self._used(name) if running else {}
        ves = {**self._parts.promises.running, name: settings}
        ledger, config = self._parts.promises.ledger, self._parts.promises.config
        capacity = {each.name: ledger.capacity[each.name] for each in RESOURCES}
        groups = self._parts.promises.groups
        cpus = cpu_shares(capacity["cpus"].total - capacity["cpus"].reserve, ves, config.policy, groups)
        memory = memory_shares(capacity["memory"].total - capacity["memory"].reserve, ves, config.policy, groups)
        promise = promise_of(settings, config.policy)
        wanted = [*knobs_of(name, settings, cpus, config, PAGESIZE), *self._given(name, settings)]
        above = ""
        for group in reversed(line_of(groups, settings.group)):
            above += "../"
            protected = ledger.claimed(group_key(group.name), "memory")
            wanted += [Knob(f"{above}{knob.file}", knob.wanted, f"group {group.name}: {knob.reason}")
                       for knob in group_knobs(group, cpus, protected, config, PAGESIZE)]
        return {
            "name": name, "state": str(instance.state), "policy": str(config.policy), "group": settings.group,
            "shares": [
                _share("cpus", units.format_cpus(promise.cpus), units.format_cpus(settings.cpus), settings.cpu_weight,
                       units.format_cpus(cpus.entitled[name] // 1000), used.get("cpus", "")),
                _share("memory", units.format_size(promise.memory), units.format_size(settings.memory), 0,
                       f"{memory[name] >> 20}M", used.get("memory", "")),
                *self._uplink(name, settings, ves),
            ],
            "workingSet": self._working_set(name) if running else None,
            "knobs": [_described(knob, self._value(name, knob.file) if running else "") for knob in wanted],
            "decisions": [asdict(event) for event in self._parts.journal.latest(name, SCHEDULER, _DECISIONS)],
        }

    def _uplink(self, name: str, settings: Settings, ves: Mapping[str, Settings]) -> list[dict[str, Any]]:
        capacity = self._parts.promises.ledger.capacity["network"]
        if not capacity.total or not settings.shares_uplink:
            return []
        limit = settings.network_rate.outgoing
        return [_share("network", show_bits(settings.network_guarantee), show_bits(limit) if limit else units.UNLIMITED,
                       settings.network_weight,
                       show_bits(uplink_share(name, capacity.total - capacity.reserve, ves)), "")]

    def _given(self, name: str, settings: Settings) -> list[Knob]:
        """Those of CPUs and disks, where the VE has any."""
        found = []
        if settings.cpu_mask is not None:
            mask, reason = settings.cpu_mask, "the CPUs that it may use, as given"
            if units.chosen_cpus(mask):
                limits = self._parts.limits
                placed = limits.placements.shown(name, settings, limits.usable_cpus())
                mask, reason = units.format_cpu_mask(placed.cpus), placed.reason
            found.append(Knob("cpuset.cpus", mask, reason))
        if settings.io_weight != DEFAULTS.io_weight or any(getattr(settings, name) is not None for name in IO_KEYS):
            disks = self._parts.limits.disks()
            found += io_knobs(settings, disks.devices, disks.weight_file)
        return found

    def _working_set(self, ve: str) -> int | None:
        """Bytes that are in use and not idle, as the kernel's lists of pages tell."""
        directory = self._parts.tree.path(ve)
        held = readings.text_of(f"{directory}/memory.current")
        return None if held is None else max(0, int(held) - readings.idle_of(directory, readings.swap_left())[0])

    async def _used(self, ve: str) -> dict[str, str]:
        group: Any = self._parts.tree[ve]
        found = {}
        with contextlib.suppress(OSError):  # no controller, or the VE has just ended
            before, began = group.cpu_stat["usage_usec"], time.monotonic()
            await asyncio.sleep(_LOOK)
            share = (group.cpu_stat["usage_usec"] - before) / (time.monotonic() - began) / 1e6
            found["cpus"] = f"{share:.3f}"
        with contextlib.suppress(OSError):
            found["memory"] = f"{group.memory_current >> 20}M"
        return found

    def _value(self, ve: str, file: str) -> str:
        """What is in the file, "" where there is none."""
        try:
            with open(f"{self._parts.tree.path(ve)}/{file}", encoding="ascii") as stream:
                return stream.read().strip()
        except OSError:
            return ""


def _share(resource: str, guarantee: str, limit: str, weight: int, entitled: str, used: str) -> dict[str, Any]:
    return {"resource": resource, "guarantee": guarantee, "limit": limit, "weight": weight, "entitled": entitled,
            "used": used}


def _described(knob: Knob, value: str) -> dict[str, str]:
    near = knob.file.endswith("cpu.weight") and value and not is_off(int(knob.wanted), int(value))
    near = near or (bool(value) and agrees(knob.file, value, knob.wanted))
    return {"file": knob.file, "value": value, "wanted": value if near else knob.wanted, "reason": knob.reason}


async def _busy(cpus: int) -> int:
    """How much of so many thousandths of CPUs is busy now."""
    busy, ticks = cpu_ticks()
    await asyncio.sleep(_LOOK)
    busy_later, ticks_later = cpu_ticks()
    return (busy_later - busy) * cpus // max(1, ticks_later - ticks)
