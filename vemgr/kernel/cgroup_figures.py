# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel has counted for each of many cgroups (Documentation/admin-guide/cgroup-v2.rst).

Three system calls for a file: hundreds of VEs are read in the time that one command line takes to start. Paths are
looked up below one descriptor, files that this kernel does not have are asked for once, and a descriptor for each VE
or file, which would save one call in three, is not worth a thousand descriptors.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

_FILES = {
    "": ("cpu.stat",),  # there without any controller
    "memory": ("memory.current", "memory.peak", "memory.events", "memory.swap.current", "memory.swap.peak",
               "memory.swap.events"),
    "pids": ("pids.current", "pids.peak", "pids.events"),
    "io": ("io.stat",),
}
_PAGE, _LONGEST = 4096, 65536  # bytes; the latter is io.stat with a thousand disks


class CgroupFigures:
    """Those of the cgroups below `base`, as far as `controllers` are there."""

    def __init__(self, base: str, controllers: frozenset[str]) -> None:
        self._base = base
        self._files = [file for controller, files in _FILES.items() if controller in ("", *controllers)
                       for file in files]
        self._lacking: set[str] = set()  # of them on this kernel
        self._certain = False  # whether these are all

    def read(self, places: Mapping[str, str]) -> dict[str, dict[str, int]]:
        """`places`: paths below `base`, by name. By name: figures by file, or by file and key: "memory.current",
        "cpu.stat.usage_usec". One that cannot be read is left out, and so is a cgroup that has gone. Raises `OSError`
        when `base` is gone."""
        return self._read(places, self._there())

    def without_peak(self, places: Mapping[str, str]) -> dict[str, dict[str, int]]:
        """Only what this kernel keeps no maximum of; the first time, to find that out, all. Raises `OSError` as
        `read` does."""
        return self._read(places, self._there() if not self._certain else [
            file for file in self._there()
            if file.endswith(".current") and file.replace(".current", ".peak") not in self._there()])

    def _there(self) -> list[str]:
        return [file for file in self._files if file not in self._lacking]

    def _read(self, places: Mapping[str, str], files: list[str]) -> dict[str, dict[str, int]]:
        base = os.open(self._base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        layered: dict[str, bool] = {}
        try:
            read = {name: found for name, place in places.items()
                    if (found := self._read_one(base, place, files, layered))}
        finally:
            os.close(base)
        self._certain = self._certain or bool(read)
        return read

    def _read_one(self, base: int, name: str, files: list[str], layered: dict[str, bool]) -> dict[str, int]:
        found: dict[str, int] = {}
        for file in files:
            if file in self._lacking:
                continue
            try:
                fd = os.open(f"{name}/{file}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=base)
            except FileNotFoundError:
                if not found or not _is_there(base, name):
                    return {}  # the VE has ended
                self._lacking.add(file)  # this kernel is older; another thread may have found out as well
                continue
            try:
                text = os.read(fd, _LONGEST if file == "io.stat" else _PAGE).decode("ascii")
            except OSError:
                continue
            finally:
                os.close(fd)
            if file == "io.stat":
                found.update(io_sums(text, layered))
            elif " " in text:
                for line in text.splitlines():
                    key, _, value = line.partition(" ")
                    found[f"{file}.{key}"] = int(value)
            else:
                found[file] = int(text)
        return found


def _is_there(base: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=base)
    except OSError:
        return False
    return True


def io_sums(text: str, layered: dict[str, bool]) -> dict[str, int]:
    """The sums over all disks of io.stat. What goes through a loop device or a device mapper is counted there and on
    the disk below, so only the disks at the bottom count. `layered`: what is known of devices, by number."""
    sums = dict.fromkeys(("rbytes", "wbytes", "rios", "wios"), 0)
    for line in text.splitlines():
        device, *pairs = line.split()
        if device not in layered:
            layered[device] = _is_layered(device)
        if not layered[device]:
            for pair in pairs:
                key, _, value = pair.partition("=")
                if key in sums:
                    sums[key] += int(value)
    return {f"io.stat.{key}": value for key, value in sums.items()}


def _is_layered(device: str) -> bool:
    path = f"/sys/dev/block/{device}"
    try:
        return os.path.isdir(f"{path}/loop") or bool(os.listdir(f"{path}/slaves"))
    except OSError:
        return False
