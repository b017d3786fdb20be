# SPDX-License-Identifier: GPL-2.0-or-later
"""From settings to cgroup files: what is enforced, how it is changed live, and what the kernel says is in force."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from mmap import PAGESIZE
from typing import Any

from vemgr.core import resources as units
from vemgr.core.config import BY_KEY, DEFAULTS, MIB, Setting, Settings, changed
from vemgr.core.errors import BadValue, LimitNotReached, NotEnforceable, SystemFailure
from vemgr.core.groups import called
from vemgr.core.parsing import AUTOMATIC, IDLE
from vemgr.core.scheduling import Policy, SchedulerConfig
from vemgr.kernel import blockdev, cgroups, topology
from vemgr.kernel.cgroups import CgroupTree
from vemgr.runtime.scheduling.placements import Placements
from vemgr.scheduler import knobs
from vemgr.scheduler.admission import promise_of
from vemgr.scheduler.explain import IO_KEYS
from vemgr.scheduler.placement import Placement

_RECLAIM_STEP = 32 * MIB
_RECLAIM_PATIENCE = 5  # steps without progress before we say that there is no more to be had
_CONTROLLER_REMEDY = (
    "boot with cgroup v2 alone (systemd.unified_cgroup_hierarchy=1) and delegate the controller to vemgr-keeper.service"
)


# cgroupspy's interfaces are descriptors without annotations: to mypy an attribute would be the interface itself.
Writer = Callable[[Any, Settings], None]


@dataclass(frozen=True)
class Disks:
    """The disks behind the VEs' data, and which file weighs them ("" where none is in force)."""

    devices: tuple[str, ...]
    weight_file: str

    @staticmethod
    def behind(directory: str) -> Disks:
        devices = tuple(blockdev.disks_behind(directory))
        if devices and all(blockdev.scheduler_of(device) == "bfq" for device in devices):
            return Disks(devices, "io.bfq.weight")
        if devices and all(_iocost_enabled(device) for device in devices):
            return Disks(devices, "io.weight")
        return Disks(devices, "")


def _iocost_enabled(device: str) -> bool:
    try:
        with open(f"{cgroups.cgroup2_mountpoint()}/io.cost.qos", encoding="ascii") as file:
            return any(line.startswith(f"{device} enable=1") for line in file)
    except OSError:
        return False


class Limits:
    """Applies settings to VEs' cgroups. `data`: the directory whose disk a VE's I/O goes to. `placements`: the CPUs
    that were chosen for VEs."""

    def __init__(self, tree: CgroupTree, data: str, scheduler: SchedulerConfig | None = None,
                 placements: Placements | None = None) -> None:
        self._tree = tree
        self._data = data
        self._scheduler = scheduler or SchedulerConfig()
        self.placements = placements or Placements({})

    def check(self, settings: Settings) -> None:
        """Refuse what this host cannot enforce. Raises `NotEnforceable` or `BadValue`; changes nothing."""
        for setting in changed(DEFAULTS, settings):
            if setting.controller:
                self._check_controller(setting)
        if settings.cpu_mask is not None:
            self._check_cpus(settings.cpu_mask)
        wants_io = any(getattr(settings, name) is not None for name in IO_KEYS)
        wants_weight = settings.io_weight != DEFAULTS.io_weight
        if wants_io or wants_weight:
            self._check_disks(wants_weight)

    def _check_cpus(self, mask: str) -> None:
        if units.chosen_cpus(mask):
            usable = len(self.usable_cpus())
            if units.chosen_cpus(mask) > usable:
                raise BadValue("cpu-mask", mask, f"there are {usable} CPUs for VEs")
            return
        missing = units.expand_cpu_mask(mask) - topology.online()
        if missing:
            raise BadValue("cpu-mask", mask, f"this host has no CPU {min(missing)}")

    def usable_cpus(self) -> set[int]:
        """Those that the cgroup above the VEs has: a container's vemgr has not all of the host's."""
        try:
            return units.expand_cpu_mask(self._tree.usable_cpus())
        except (OSError, ValueError):
            return topology.online()

    def _check_controller(self, setting: Setting) -> None:
        if setting.controller not in self._tree.controllers:
            raise NotEnforceable(setting.key, f"cgroup v2 has no {setting.controller} controller here",
                                 _CONTROLLER_REMEDY)

    def _check_disks(self, weight: bool) -> None:
        disks = Disks.behind(self._data)
        if not disks.devices:
            raise NotEnforceable("io-weight" if weight else "io limits", f"no disk stands behind {self._data}",
                                 "put the state directory on a file system of a local disk")
        if weight and not disks.weight_file:
            names = ", ".join(blockdev.name_of(device) for device in disks.devices)
            raise NotEnforceable(
                "io-weight", f"neither BFQ nor io.cost is active on {names}",
                f"echo bfq > /sys/block/{blockdev.name_of(disks.devices[0])}/queue/scheduler (modprobe bfq)")

    async def apply(self, ve: str, settings: Settings, before: Settings = DEFAULTS) -> None:
        """Bring a VE's cgroup from `before` to `settings`. On failure what was written is put back."""
        group = self._tree[ve]
        undo: list[tuple[Writer, Settings]] = []
        differing = {setting.attribute for setting in changed(before, settings)}
        before, placed = self.placements.resolved(ve, before), self.placements.of(ve)
        if "cpu_mask" in differing:
            self.placements.choose(ve, settings, self.usable_cpus())
        settings = self.placements.resolved(ve, settings)
        try:
            if "memory" in differing:
                await self._change_memory(group, before.memory, settings.memory)
                undo.append((_write_memory, before))
            if before.cpu_burst and {"cpus", "cpu_burst"} & differing:
                undo.append((_write_cpus, before))
                group.cpu_max_burst = 0  # the kernel refuses a quota below it
            for names, write in self._writers():
                if names & differing:
                    undo.append((write, before))
                    write(group, settings)
        except BaseException as error:
            self._put_back(group, undo)
            self.placements.put_back(ve, placed)
            if isinstance(error, OSError):
                raise SystemFailure(f"a limit of {called(ve)} cannot be set: {error.strerror}", path=error.filename,
                                    errno=error.errno) from error
            raise

    def _put_back(self, group: Any, undo: list[tuple[Writer, Settings]]) -> None:
        for write, settings in reversed(undo):
            with contextlib.suppress(OSError):
                write(group, settings)

    async def restore(self, ve: str, settings: Settings, attributes: set[str]) -> None:
        """Write again what follows from these settings, whatever is there now. Raises `OSError`, `LimitNotReached`."""
        group, settings = self._tree[ve], self.placements.resolved(ve, settings)
        if "memory" in attributes:
            await self._change_memory(group, None, settings.memory)
        for names, write in self._writers():
            if names & attributes:
                write(group, settings)

    def reclaim(self, ve: str, amount: int) -> int:
        """Have the kernel take so much from a VE that it has not used lately; returns how much less is in use then.
        May take seconds. Raises `OSError`."""
        group: Any = self._tree[ve]
        before: int = group.memory_current
        with contextlib.suppress(BlockingIOError):  # less than asked was to be had
            group.memory_reclaim = amount
        return max(0, before - int(group.memory_current))

    def adopt(self, ve: str, settings: Settings) -> None:
        """Of a VE that runs already: the CPUs that were chosen for it."""
        with contextlib.suppress(OSError, ValueError):
            if units.chosen_cpus(settings.cpu_mask):
                self.placements.adopt(ve, self._tree[ve].cpuset_cpus)

    def move(self, ve: str, to: Placement) -> None:
        """Raises `OSError`."""
        group: Any = self._tree[ve]
        group.cpuset_cpus = units.format_cpu_mask(to.cpus)
        self.placements.move(ve, to)

    def use(self, scheduler: SchedulerConfig) -> None:
        """Another policy: what is written from now on follows from it."""
        self._scheduler = scheduler

    def _writers(self) -> list[tuple[set[str], Writer]]:
        protecting = {"memory_guarantee"}
        if self._scheduler.policy == Policy.GUARANTEED:
            protecting.add("memory")  # a limit is a guarantee
        return [
            (protecting, self._write_protection),
            ({"cpus", "cpu_burst"}, _write_cpus), ({"cpu_weight"}, _write_cpu_weight), ({"cpu_mask"}, _write_cpu_mask),
            ({"swap", "memory"}, self._write_swap), ({"pids"}, _write_pids), (set(IO_KEYS), self._write_io),
            ({"io_weight"}, self._write_io_weight),
        ]

    def _write_protection(self, group: Any, settings: Settings) -> None:
        """memory.low is all that was promised, and memory.min what is certain: with more in memory.min than there is,
        the kernel would have nothing left but to kill."""
        promised = promise_of(settings, self._scheduler.policy).memory
        group.memory_low = knobs.protection(promised, PAGESIZE)
        group.memory_min = knobs.protection(self._certain(promised), PAGESIZE)

    def write_cpu_weights(self, weights: Mapping[str, int]) -> list[str]:
        """Give VEs the weights that follow from their guarantees; returns those that have got theirs. One whose
        cgroup is not there yet, or not any more, is left out, and one that somebody has made idle: that must not cost
        the others theirs."""
        written = []
        for ve, weight in weights.items():
            group: Any = self._tree[ve]
            try:
                group.cpu_weight = weight
            except OSError as error:
                idle = error.errno == errno.EINVAL and group.cpu_idle
                if not idle and error.errno not in (errno.ENOENT, errno.ENODEV):
                    raise
            else:
                written.append(ve)
        return written

    def disks(self) -> Disks:
        """None where they cannot be limited or found."""
        with contextlib.suppress(OSError):
            if "io" in self._tree.controllers:
                return Disks.behind(self._data)
        return Disks((), "")

    @property
    def controllers(self) -> frozenset[str]:
        return self._tree.controllers

    def protect(self, promised: int, group: str = "") -> None:
        """Let the memory.low and memory.min of VEs, all or those of a group, take effect, `promised` bytes together: a
        cgroup is protected as far as those above it are. Raises `OSError`, but not for a group without a cgroup."""
        certain, low = (knobs.protection(each, PAGESIZE) for each in (self._certain(promised), promised))
        if not group:
            self._tree.protect(certain, low)
            return
        with contextlib.suppress(FileNotFoundError):
            cgroup: Any = self._tree[group]
            cgroup.memory_low, cgroup.memory_min = low, certain

    def _certain(self, promised: int) -> int:
        return knobs.certain(promised, self._scheduler.factor("memory"))

    def _write_swap(self, group: Any, settings: Settings) -> None:
        # A memory limit alone would let the VE go on in the host's swap: with a limit, no swap unless asked for.
        swap = settings.swap
        if swap == AUTOMATIC:
            swap = 0 if settings.memory is not None else None
        if group.has("memory.swap.max"):
            group.memory_swap_max = swap
        elif settings.swap not in (None, AUTOMATIC):
            raise NotEnforceable("swap", "the kernel does not account swap (memory.swap.max is missing)",
                                 "boot with swapaccount=1")

    def _write_io(self, group: Any, settings: Settings) -> None:
        values = ((key, getattr(settings, name)) for name, key in IO_KEYS.items())
        text = " ".join(f"{key}={'max' if value is None else value}" for key, value in values)
        for device in Disks.behind(self._data).devices:
            group.io_max = f"{device} {text}"

    def _write_io_weight(self, group: Any, settings: Settings) -> None:
        file = Disks.behind(self._data).weight_file
        if file == "io.bfq.weight":
            group.io_bfq_weight = settings.io_weight
        elif file:
            group.io_weight = f"default {settings.io_weight}"

    async def _change_memory(self, group: Any, before: int | None, after: int | None) -> None:
        """Set memory.max, shrinking by reclaim first where more is in use: a limit written below what is in use makes
        the kernel kill. The old limit stays in force until the new one holds.

        memory.high holds back new allocations meanwhile; it is lifted again in every case, as it would freeze the VE.
        """
        if after is not None and (before is None or after < before) and group.memory_current > _target(after):
            if not group.has("memory.reclaim"):
                raise NotEnforceable("memory", "more is in use, and this kernel cannot reclaim on demand",
                                     "stop the VE first (memory.reclaim needs Linux 5.19)")
            group.memory_high = _target(after)
            try:
                await self._reclaim_to(group, after)
                group.memory_max = after
            finally:
                group.memory_high = None
        else:
            group.memory_max = after

    async def _reclaim_to(self, group: Any, target: int) -> None:
        patience, least = _RECLAIM_PATIENCE, group.memory_current
        while (current := group.memory_current) > _target(target):
            if current < least:
                patience, least = _RECLAIM_PATIENCE, current
            elif not patience:
                raise LimitNotReached(
                    f"memory cannot be limited to {units.format_size(target)}: {current // MIB}M is in use and cannot "
                    "be reclaimed; the old limit stays in force",
                    remedy="end something in the VE, or allow it swap", field="memory", used=current, wanted=target)
            patience -= 1
            # EAGAIN: less than asked was reclaimed; the next round looks again.
            with contextlib.suppress(BlockingIOError):
                await asyncio.to_thread(_reclaim, group, min(current - _target(target), _RECLAIM_STEP))
            await asyncio.sleep(0.01)

    def settle(self, ve: str) -> None:
        """Lift a memory.high that a daemon killed in the middle of a change has left: it would freeze the VE."""
        with contextlib.suppress(OSError):
            group: Any = self._tree[ve]
            group.memory_high = None

    def in_force(self, ve: str) -> dict[str, str]:
        """The limits as the kernel has them, in the settings' own units."""
        group: Any = self._tree[ve]
        found: dict[str, str] = {}
        for key, read in _READERS.items():
            with contextlib.suppress(OSError, ValueError):
                found[key] = read(group)
        disks = Disks.behind(self._data)
        with contextlib.suppress(OSError):  # without the controller there are no such files
            if disks.weight_file:
                text = group.io_bfq_weight if disks.weight_file == "io.bfq.weight" else group.io_weight
                found["io-weight"] = str(text).splitlines()[0].split()[-1]
            text = group.io_max
            for device in disks.devices[:1]:
                values = cgroups.io_max_of(text, device)
                for name, key in IO_KEYS.items():
                    found[name.replace("_", "-")] = _io_text(name, values.get(key, "max"))
        return found


def _target(limit: int) -> int:
    """What use must fall to before a limit is written: memory.high lets a single large system call pass, and what it
    takes in the last moment must not make the new limit kill."""
    return limit - min(limit // 64, 4 * MIB)


def _reclaim(group: Any, amount: int) -> None:
    group.memory_reclaim = amount


def _write_cpus(group: Any, settings: Settings) -> None:
    burst = knobs.cpu_burst(settings.cpus, settings.cpu_burst)
    if burst and not group.has("cpu.max.burst"):
        raise NotEnforceable("cpu-burst", "the kernel has no cpu.max.burst", "Linux 5.14 has it")
    if burst:
        group.cpu_max_burst = 0
    group.cpu_max = knobs.cpu_max(settings.cpus)
    if burst:
        group.cpu_max_burst = burst


def _write_cpu_weight(group: Any, settings: Settings) -> None:
    if group.has("cpu.idle"):
        group.cpu_idle = int(settings.cpu_weight == IDLE)
    elif settings.cpu_weight == IDLE:
        raise NotEnforceable("cpu-weight", "the kernel has no cpu.idle", "Linux 5.15 has it; or give it a small weight")
    if settings.cpu_weight != IDLE:  # of an idle one the kernel refuses it
        group.cpu_weight = settings.cpu_weight


def _write_cpu_mask(group: Any, settings: Settings) -> None:
    # Back to "as the parent" is refused (ENOSPC) while the VE has processes: all CPUs there are come to the same.
    every = units.format_cpu_mask(topology.online()) if group.cpuset_cpus else "\n"
    group.cpuset_cpus = settings.cpu_mask or every


def _write_memory(group: Any, settings: Settings) -> None:
    group.memory_max = settings.memory


def _write_pids(group: Any, settings: Settings) -> None:
    group.pids_max = settings.pids


def _cpus_text(group: Any) -> str:
    quota, period = group.cpu_max.split()
    return units.UNLIMITED if quota == "max" else units.format_cpus(int(quota) * 1000 // int(period))


def _weight_text(group: Any) -> str:
    return "idle" if group.has("cpu.idle") and group.cpu_idle else str(group.cpu_weight)


def _io_text(name: str, value: str) -> str:
    if value == "max":
        return units.UNLIMITED
    return value if name.startswith("iops") else units.format_rate(int(value))


_READERS: dict[str, Callable[[Any], str]] = {
    "cpus": _cpus_text,
    "cpu-burst": lambda group: BY_KEY["cpu-burst"].show(group.cpu_max_burst),
    "cpu-weight": _weight_text,
    "cpu-mask": lambda group: group.cpuset_cpus or "all",
    "memory-guarantee": lambda group: units.format_size(group.memory_low),
    "memory": lambda group: units.format_size(group.memory_max),
    "swap": lambda group: units.format_size(group.memory_swap_max),
    "pids": lambda group: "unlimited" if group.pids_max is None else str(group.pids_max),
}
