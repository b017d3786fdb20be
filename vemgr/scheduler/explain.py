# SPDX-License-Identifier: GPL-2.0-or-later
"""Why each file of a VE's cgroup has the value it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vemgr.core import resources as units
from vemgr.core.config import Settings
from vemgr.core.groups import Group, group_key, shown
from vemgr.core.parsing import AUTOMATIC, IDLE
from vemgr.core.scheduling import Policy, SchedulerConfig
from vemgr.scheduler import knobs
from vemgr.scheduler.admission import promise_of
from vemgr.scheduler.shares import CpuShares


@dataclass(frozen=True, slots=True)
class Knob:
    """`wanted`: what the file should hold."""

    file: str
    wanted: str
    reason: str


def knobs_of(ve: str, settings: Settings, shares: CpuShares, config: SchedulerConfig, page: int) -> list[Knob]:
    """`shares`: of all VEs that run, this one among them. `page`: bytes."""
    weight = [] if settings.cpu_weight == IDLE else [_weight(ve, settings, shares, config.policy)]
    return [*weight, *own_knobs(settings, config, page)]


def own_knobs(settings: Settings, config: SchedulerConfig, page: int) -> list[Knob]:
    """Those that do not depend on other VEs."""
    return [_idle(settings), _cpu_max(settings), *_burst(settings), *_protection(settings, config, page),
            _memory_max(settings, page), Knob("memory.high", "max", "never a limit: it would freeze the VE"),
            _swap(settings, page), _pids(settings)]


def group_knobs(group: Group, shares: CpuShares, protected: int, config: SchedulerConfig, page: int) -> list[Knob]:
    """Those of the cgroup of a group. `protected`: bytes that it and what is in it were promised."""
    key, settings = group_key(group.name), replace(group.settings, group=group.parent)
    return [_weight(key, settings, shares, config.policy), *own_group_knobs(settings, protected, config, page)]


def own_group_knobs(settings: Settings, protected: int, config: SchedulerConfig, page: int) -> list[Knob]:
    """Those that do not depend on others but what is in the group."""
    what = f"{units.format_size(protected)} for the group or VEs in it" if protected else "nothing in it is guaranteed"
    certain = knobs.certain(protected, config.factor("memory"))
    less = f", divided by the overcommit of {config.factor('memory') / 1000:g}" if certain != protected else ""
    return [_idle(settings), _cpu_max(settings), Knob("memory.min", str(knobs.protection(certain, page)), what + less),
            Knob("memory.low", str(knobs.protection(protected, page)), what), _memory_max(settings, page),
            Knob("memory.high", "max", "never a limit: it would freeze the VEs"), _swap(settings, page),
            _pids(settings)]


#: Setting and key in io.max, in the order of the file.
IO_KEYS = {"io_read": "rbps", "io_write": "wbps", "iops_read": "riops", "iops_write": "wiops"}


def io_knobs(settings: Settings, devices: Sequence[str], weight_file: str) -> list[Knob]:
    """`devices`: numbers of the disks that limits are for. `weight_file`: "" where no weight is in force."""
    values = {key: getattr(settings, name) for name, key in IO_KEYS.items()}
    text = " ".join(f"{key}={'max' if value is None else value}" for key, value in values.items())
    limited = any(value is not None for value in values.values())
    found = [Knob("io.max", "\n".join(f"{device} {text}" for device in devices),
                  "limits of the disks that the VE's data is on" if limited else "no limit")] if devices else []
    if weight_file:
        found.append(Knob(weight_file, f"default {settings.io_weight}", f"weight of {settings.io_weight}, as given"))
    return found


def agrees(file: str, value: str, wanted: str) -> bool:
    """Whether a file that holds `value` does what `wanted` would. Limits of other disks are others' affair."""
    if file == "cpuset.cpus":
        return bool(value) and units.expand_cpu_mask(value) == units.expand_cpu_mask(wanted)
    if file == "io.max":
        held = _lines(value)
        return all(held.get(device, set()) == limits for device, limits in _lines(wanted).items())
    if file in ("io.weight", "io.bfq.weight"):
        return value.partition("\n")[0].split()[-1:] == wanted.split()[-1:]
    return value == wanted


def _lines(text: str) -> dict[str, set[str]]:
    """Of an io.max, by device: what is limited."""
    rows = (line.split() for line in text.splitlines())
    return {device: {pair for pair in pairs if not pair.endswith("=max")} for device, *pairs in rows}


def _weight(ve: str, settings: Settings, shares: CpuShares, policy: Policy) -> Knob:
    promised = promise_of(settings, policy).cpus
    group = group_key(settings.group)
    if not shares.derived[group]:
        reason = "as given: no VE that runs has a CPU guarantee" + (f" in {shown(group)}" if group else "")
    else:
        level = float(shares.levels[group]) / 1e6
        reason = (f"guarantee {units.format_cpus(promised)} + {level:.6f} CPUs for each unit of weight x "
                  f"{settings.cpu_weight}, scaled for the largest to be {knobs.MOST_WEIGHT}")
    return Knob("cpu.weight", str(shares.weights[ve]), reason)


def _cpu_max(settings: Settings) -> Knob:
    reason = "no limit" if settings.cpus is None else f"limit of {units.format_cpus(settings.cpus)} CPUs"
    wanted = knobs.cpu_max(settings.cpus)
    return Knob("cpu.max", f"max {knobs.PERIOD}" if wanted == "max" else wanted, reason)


def _idle(settings: Settings) -> Knob:
    idle = settings.cpu_weight == IDLE
    return Knob("cpu.idle", "1" if idle else "0", "runs only on CPUs that no other wants" if idle else "has a weight")


def _burst(settings: Settings) -> list[Knob]:
    """A kernel before 5.14 has no such file."""
    if not settings.cpu_burst:
        return []
    burst = knobs.cpu_burst(settings.cpus, settings.cpu_burst)
    less = ", cut to the quota" if burst < settings.cpu_burst else ""
    return [Knob("cpu.max.burst", str(burst), f"burst of {settings.cpu_burst} us{less}")]


def _protection(settings: Settings, config: SchedulerConfig, page: int) -> list[Knob]:
    promised, factor = promise_of(settings, config.policy).memory, config.factor("memory")
    certain = knobs.certain(promised, factor)
    reason = f"guarantee of {units.format_size(promised)}" if promised else "no guarantee"
    if promised and not settings.memory_guarantee:
        reason = f"limit of {units.format_size(promised)}, which policy '{config.policy}' guarantees"
    less = f", divided by the overcommit of {factor / 1000:g}" if certain != promised else ""
    return [Knob("memory.min", str(knobs.protection(certain, page)), reason + less),
            Knob("memory.low", str(knobs.protection(promised, page)), reason)]


def _memory_max(settings: Settings, page: int) -> Knob:
    reason = "no limit" if settings.memory is None else f"limit of {units.format_size(settings.memory)}"
    return Knob("memory.max", _limit(settings.memory, page), reason)


def _swap(settings: Settings, page: int) -> Knob:
    if settings.swap != AUTOMATIC:
        return Knob("memory.swap.max", _limit(settings.swap, page), f"swap is {units.format_size(settings.swap)}")
    if settings.memory is None:
        return Knob("memory.swap.max", "max", "neither memory nor swap is limited")
    return Knob("memory.swap.max", "0", "memory is limited and swap was not given: none")


def _pids(settings: Settings) -> Knob:
    if settings.pids is None:
        return Knob("pids.max", "max", "no limit")
    return Knob("pids.max", str(settings.pids), f"limit of {settings.pids} processes and threads")


def _limit(size: int | None, page: int) -> str:
    return "max" if size is None else str(knobs.cap(size, page))
