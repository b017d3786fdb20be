# SPDX-License-Identifier: GPL-2.0-or-later
"""The VEs' part of the cgroup v2 tree (Documentation/admin-guide/cgroup-v2.rst).

cgroupspy knows only v1 controllers, but its node tree and its file interfaces are generic: `VECgroup` is its
`Controller` with the files of v2. One directory per VE; the VE's root owns it as far as delegation goes (its
cgroup.procs, cgroup.threads and cgroup.subtree_control, never the files that hold its limits).
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence
from typing import Any

from cgroupspy.controllers import Controller
from cgroupspy.interfaces import BaseFileInterface, DictFile, FlagFile, IntegerFile, MultiLineIntegerFile
from cgroupspy.nodes import Node

from vemgr.core.errors import SHORTAGES

CONTROLLERS = ("cpu", "cpuset", "memory", "io", "pids")
_DELEGATED = ("cgroup.procs", "cgroup.threads", "cgroup.subtree_control")
_EXEC_LEAF = ".vemgr"
_GROUP_MARK = "_"  # first in the name of a group's directory, and of no other
_DEEPEST = 32
_ENDLESS = 2**63 - 4096  # what the kernel takes as "max", in whole pages
_MOST_DESCENDANTS = 2000


class LimitFile(BaseFileInterface):  # type: ignore[misc]
    """A number, or "max" for none."""

    def sanitize_get(self, value: str) -> int | None:
        return None if value == "max" else int(value)

    def sanitize_set(self, value: int | None) -> str:
        return "max" if value is None else str(value)


class VECgroup(Controller):  # type: ignore[misc]
    """The files of one VE's cgroup as attributes. Reading or writing raises `OSError`."""

    procs = MultiLineIntegerFile("cgroup.procs")
    events = DictFile("cgroup.events", readonly=True)
    freeze = FlagFile("cgroup.freeze")
    kill = FlagFile("cgroup.kill", writeonly=True)
    cpu_max_burst = IntegerFile("cpu.max.burst")
    cpu_max = BaseFileInterface("cpu.max")
    cpu_weight = IntegerFile("cpu.weight")
    cpu_idle = IntegerFile("cpu.idle")
    cpu_stat = DictFile("cpu.stat", readonly=True)
    cpuset_cpus = BaseFileInterface("cpuset.cpus")
    memory_min = LimitFile("memory.min")
    memory_low = LimitFile("memory.low")
    memory_max = LimitFile("memory.max")
    memory_high = LimitFile("memory.high")
    memory_current = IntegerFile("memory.current", readonly=True)
    memory_events = DictFile("memory.events", readonly=True)
    memory_reclaim = IntegerFile("memory.reclaim", writeonly=True)
    memory_swap_max = LimitFile("memory.swap.max")
    memory_swap_current = IntegerFile("memory.swap.current", readonly=True)
    pids_max = LimitFile("pids.max")
    pids_current = IntegerFile("pids.current", readonly=True)
    io_max = BaseFileInterface("io.max")
    io_weight = BaseFileInterface("io.weight")
    io_bfq_weight = BaseFileInterface("io.bfq.weight")

    def get_property(self, filename: bytes) -> str:
        with open(self.filepath(filename), encoding="ascii") as file:
            return file.read().strip()

    def set_property(self, filename: bytes, value: object) -> None:
        _command(self.filepath(filename).decode(), str(value))

    def has(self, filename: str) -> bool:
        return os.path.exists(self.filepath(filename.encode()))


class CgroupTree:
    """All VEs' cgroups, below `top`/ve (made here), or there in those of groups, whose names begin with "_".
    `controllers`: those that limits can be set with.

    Where a VE's or a group's cgroup is, is known here alone: a VE that runs stays in the group in which it began.
    """

    def __init__(self, top: str) -> None:
        self.base = f"{top}/ve"
        os.makedirs(self.base, exist_ok=True)
        self.controllers = self._enable_controllers(top)
        self._found: dict[str, int] = {}  # protection of cgroups above ours, as others have set it
        self._protects: dict[str, int] = {}  # what the files must hold at least, by path
        self._places: dict[str, str] = {}  # below `base`: of groups that are in use, and of VEs in groups
        self._find("")

    def _find(self, group: str) -> None:
        """What an earlier daemon has left in groups."""
        for entry in os.scandir(f"{self.base}/{group}"):
            if entry.is_dir(follow_symlinks=False) and (group or entry.name.startswith(_GROUP_MARK)):
                self._places[entry.name] = f"{group}{entry.name}"
                if entry.name.startswith(_GROUP_MARK):
                    self._find(f"{group}{entry.name}/")

    def _enable_controllers(self, top: str) -> frozenset[str]:
        """Hand the controllers down to the VEs as far as this place in the tree has them.

        What systemd has delegated to us begins at `top`. Where nobody has, it hangs directly below the root of the
        tree, which is then ours to open; what is open there already stays as it is.
        """
        above = os.path.dirname(top)
        ours = [] if os.path.exists(f"{above}/cgroup.events") else [above]  # only the root has no such file
        for directory in (*ours, top, self.base):
            _hand_down(directory)
        return frozenset(_words(f"{self.base}/cgroup.subtree_control")) & frozenset(CONTROLLERS)

    def usable_cpus(self) -> str:
        """What VEs can run on, as a list. Raises `OSError` without the controller."""
        with open(f"{self.base}/cpuset.cpus.effective", encoding="ascii") as file:
            return file.read().strip()

    def place(self, name: str) -> str:
        """The path of a VE's or group's cgroup below `base`."""
        return self._places.get(name, name)

    def path(self, name: str) -> str:
        return f"{self.base}/{self.place(name)}"

    def group_of(self, name: str) -> str:
        """The innermost group that a VE's cgroup is in, as a key; "" for none."""
        return self._places.get(name, "").rpartition("/")[0].rpartition("/")[2]

    def __getitem__(self, name: str) -> VECgroup:
        return VECgroup(Node(self.path(name)))

    def names(self) -> list[str]:
        """The VEs that have a cgroup."""
        alone = {entry.name for entry in os.scandir(self.base) if entry.is_dir(follow_symlinks=False)}
        return sorted(name for name in {*alone, *self._places} if not name.startswith(_GROUP_MARK))

    def groups(self) -> list[str]:
        """The groups that have a cgroup, each after the one that it is in."""
        return sorted((name for name in self._places if name.startswith(_GROUP_MARK)), key=self.place)

    def __contains__(self, name: str) -> bool:
        return os.path.isdir(self.path(name))

    def settle(self, ve: str, groups: Sequence[str]) -> None:
        """From now on the VE's cgroup is in that of the last of `groups`, which are in each other. It must have none.
        Its groups stay from now on, until it is removed."""
        if groups:
            self._places[ve] = "/".join((*groups, ve))

    def make_group(self, group: str, above: Sequence[str]) -> bool:
        """Have the cgroup of a group, in those of the groups `above`; whether nobody used it before. No VE owns any of
        it, and no process is in it, so that controllers can be handed on. Raises `OSError`."""
        new = group not in self._places
        self._places[group] = "/".join((*above, group))
        try:
            os.mkdir(self.path(group), 0o755)
        except FileExistsError:
            if not new:
                return False
        _hand_down(self.path(group))
        return True

    def create(self, ve: str, owner: int) -> None:
        """Make the cgroup and delegate it to id `owner` of the host (cgroup-v2.rst, "Delegation")."""
        path = self.path(ve)
        os.mkdir(path, 0o755)
        try:
            for name in ("", *_DELEGATED):
                os.chown(f"{path}/{name}", owner, owner)
            # Without bounds a VE could make a tree that takes the host minutes to remove, or is too deep to.
            _command(f"{path}/cgroup.max.depth", str(_DEEPEST))
            _command(f"{path}/cgroup.max.descendants", str(_MOST_DESCENDANTS))
        except OSError:
            os.rmdir(path)
            raise

    def open(self, ve: str) -> int:
        """A descriptor to be born into (CLONE_INTO_CGROUP)."""
        return os.open(self.path(ve), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def open_for_exec(self, ve: str) -> int:
        """The same for a command from outside. A VE that has distributed its controllers (systemd does) can have no
        process in its own top cgroup, so the command goes into a leaf beside the VE's own."""
        path = self.path(ve)
        if _words(f"{path}/cgroup.subtree_control"):
            path = f"{path}/{_EXEC_LEAF}"
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o755)
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def populated(self, ve: str) -> bool:
        """Whether any process lives in it; one that is gone has none. Raises `OSError`."""
        try:
            events: dict[str, int] = self[ve].events
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):
                return False
            raise
        return bool(events.get("populated"))

    def kill(self, ve: str) -> None:
        """Kill all that is in it. Raises `OSError`, but not when it is gone."""
        with contextlib.suppress(FileNotFoundError):
            _command(f"{self.path(ve)}/cgroup.kill", "1")

    def remove_empty(self, ve: str) -> bool:
        """Remove the cgroup if nothing is in it, neither a process nor another cgroup; whether it is gone."""
        try:
            os.rmdir(self.path(ve))
        except FileNotFoundError:
            pass
        except OSError:
            return False
        return True

    def remove(self, ve: str) -> None:
        """Remove the cgroup and what the VE has made below it, bottom up. Raises `OSError` EBUSY while populated."""
        for directory, _, _ in os.walk(self.path(ve), topdown=False):
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(directory)

    def leave(self, ve: str) -> None:
        """A VE has no cgroup any more, or gets none: with it go the groups that have no other."""
        group = self._places.pop(ve, "").rpartition("/")[0]
        while group and not self._is_used(group):
            with contextlib.suppress(OSError):
                os.rmdir(f"{self.base}/{group}")
            group, _, name = group.rpartition("/")
            self._places.pop(name, None)

    def _is_used(self, group: str) -> bool:
        return any(place.startswith(f"{group}/") for place in tuple(self._places.values()))

    def tidy_groups(self) -> None:
        """Remove those that an earlier daemon has left without a VE. Others stay, and what resists."""
        for name in reversed(self.groups()):
            if not self._is_used(self._places[name]):
                with contextlib.suppress(OSError):
                    os.rmdir(self.path(name))
                del self._places[name]

    def protect(self, certain: int, promised: int) -> None:
        """Give the VEs' part of the tree the sum of its VEs' memory.min and memory.low (cgroup-v2.rst: "memory.min ...
        is limited by the effective protection of all ancestor cgroups"). Above it, where systemd and others set
        their own, a value is only raised, and goes back to what it was found as. Raises `OSError`."""
        for name, amount in (("memory.low", promised), ("memory.min", certain)):
            _command(f"{self.base}/{name}", str(amount))
            self._protects[f"{self.base}/{name}"] = amount
            path = os.path.dirname(self.base)
            # The root has no such file, nor have cgroups above that the controller does not reach.
            while os.path.exists(f"{path}/{name}"):
                file = f"{path}/{name}"
                found = self._found.setdefault(file, _protection(file))
                _command(file, str(max(found, amount)))
                self._protects[file] = amount
                path = os.path.dirname(path)

    def weakened(self) -> str:
        """The first file with less than what `protect` has written, "" if there is none."""
        for path, amount in self._protects.items():
            with contextlib.suppress(OSError):
                if amount and _protection(path) < amount:
                    return path
        return ""

    def destroy(self) -> None:
        """Remove our part of the tree. What is still in use stays: under systemd the directory above is its own."""
        for path in (self.base, os.path.dirname(self.base)):
            with contextlib.suppress(OSError):
                os.rmdir(path)


def _hand_down(directory: str) -> None:
    available, given = _words(f"{directory}/cgroup.controllers"), _words(f"{directory}/cgroup.subtree_control")
    for controller in CONTROLLERS:
        if controller in available and controller not in given:
            # EBUSY: processes live in `directory` itself; the controller is then simply not there for VEs.
            with contextlib.suppress(OSError):
                _command(f"{directory}/cgroup.subtree_control", f"+{controller}")


def find_top(keeper_pid: int, name: str) -> str:
    """Where the VEs' cgroups go.

    Below the keeper's own service where systemd runs it (Delegate=yes makes that subtree ours; the keeper itself
    moves to a leaf, for the no-internal-process rule), else a top-level directory `name` of the cgroup2 mount.
    Raises `FileNotFoundError` when no cgroup2 is mounted.
    """
    mountpoint = cgroup2_mountpoint()
    place = _own_cgroup(keeper_pid)
    if place.endswith("vemgr-keeper.service/keeper"):
        return f"{mountpoint}{place.removesuffix('/keeper')}"
    if place.endswith("/vemgr-keeper.service"):
        leaf = f"{mountpoint}{place}/keeper"
        os.makedirs(leaf, exist_ok=True)
        _command(f"{leaf}/cgroup.procs", str(keeper_pid))
        return f"{mountpoint}{place}"
    return f"{mountpoint}/{name}"


def cgroup2_mountpoint() -> str:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields, _, rest = line.partition(" - ")
            if rest.startswith("cgroup2 "):
                return fields.split()[4]
    raise FileNotFoundError(2, "no cgroup2 file system is mounted", "/sys/fs/cgroup")


def protection_recurses() -> bool:
    """Whether a cgroup's memory protection is that of all below it as well (mount option memory_recursiveprot)."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return any("memory_recursiveprot" in line.split()[-1].split(",") for line in file if " - cgroup2 " in line)


def _own_cgroup(pid: int) -> str:
    with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            if line.startswith("0::"):
                return line[3:].strip()
    return "/"


def _words(path: str) -> list[str]:
    """Empty where there is no such file. Raises `OSError` when that cannot be known."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read().split()
    except OSError as error:
        if error.errno in SHORTAGES:
            raise
        return []


def _protection(path: str) -> int:
    with open(path, encoding="ascii") as file:
        text = file.read().strip()
    return _ENDLESS if text == "max" else int(text)


def _command(path: str, text: str) -> None:
    """One unbuffered write: the kernel takes each write as a whole command and answers with errno."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)


def io_max_of(text: str, device: str) -> dict[str, str]:
    """The limits of one device in an io.max file: {"rbps": "max", "wbps": "2097152", ...}."""
    for line in text.splitlines():
        name, *pairs = line.split()
        if name == device:
            return dict(pair.split("=", 1) for pair in pairs)
    return {}


def readings(cgroup: VECgroup) -> dict[str, Any]:
    """What the kernel says of a VE now; a figure whose controller is missing is left out."""
    found: dict[str, Any] = {}
    for name in ("memory_current", "memory_swap_current", "pids_current", "cpu_stat", "memory_events"):
        with contextlib.suppress(OSError):
            found[name] = getattr(cgroup, name)
    return found
