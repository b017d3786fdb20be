# SPDX-License-Identifier: GPL-2.0-or-later
"""What a change of settings would come to in cgroups, told without making it."""

from __future__ import annotations

from dataclasses import replace
from mmap import PAGESIZE
from typing import Any

from vemgr.core.config import Settings, changed
from vemgr.core.groups import shown
from vemgr.core.resources import chosen_cpus, format_cpu_mask
from vemgr.runtime.instances import Instance, Parts
from vemgr.scheduler.explain import Knob, io_knobs, knobs_of
from vemgr.scheduler.knobs import is_off
from vemgr.scheduler.shares import CpuShares, cpu_shares


def preview(parts: Parts, instance: Instance, settings: Settings) -> dict[str, Any]:
    """From what is in force, or would be after a start, to what `settings` make of it. Raises `NotEnforceable`,
    `BadValue`, and `Overcommitted` where the VE runs, as a `set` does."""
    parts.limits.check(settings)
    running, defined = instance.running, instance.definition.settings
    before = instance.in_force if running else defined
    after = replace(settings, group=before.group) if running else settings
    if running:
        parts.promises.check(instance.name, after)
    else:
        parts.promises.check_group(after)
    shares = [_shares(parts, instance.name, each) for each in (before, after)]
    old, new = (_knobs(parts, instance.name, *each) for each in zip((before, after), shares, strict=True))
    weights = [each.weights for each in shares]
    moved = [key for key in weights[1] if key != instance.name and is_off(weights[1][key], weights[0][key])]
    live = parts.disks.live(instance.name, settings)
    return {
        "changes": [{"file": file, "old": old[file].wanted if file in old else "", "new": knob.wanted,
                     "reason": knob.reason} for file, knob in new.items()
                    if file not in old or old[file].wanted != knob.wanted],
        "others": [{"file": "cpu.weight", "of": shown(key), "old": str(weights[0][key]),
                    "new": str(weights[1][key])} for key in moved] if running else [],
        "pending": [setting.key for setting in changed(defined, settings)
                    if running and not setting.live and setting.key not in live],
    }


def _shares(parts: Parts, name: str, settings: Settings) -> CpuShares:
    promises = parts.promises
    capacity = promises.ledger.capacity["cpus"]
    return cpu_shares(capacity.total - capacity.reserve, {**promises.running, name: settings}, promises.config.policy,
                      promises.groups)


def _knobs(parts: Parts, name: str, settings: Settings, shares: CpuShares) -> dict[str, Knob]:
    disks = parts.limits.disks()
    found = [*knobs_of(name, settings, shares, parts.promises.config, PAGESIZE),
             Knob("cpuset.cpus", _mask(parts, name, settings), "the CPUs that it may use"),
             *io_knobs(settings, disks.devices, disks.weight_file)]
    return {knob.file: knob for knob in found}


def _mask(parts: Parts, name: str, settings: Settings) -> str:
    if not chosen_cpus(settings.cpu_mask):
        return settings.cpu_mask or ""
    return format_cpu_mask(parts.limits.placements.shown(name, settings, parts.limits.usable_cpus()).cpus)
