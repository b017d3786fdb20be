# SPDX-License-Identifier: GPL-2.0-or-later
"""Which disks really stand behind a directory: io.max has an effect only on a whole, physical block device."""

from __future__ import annotations

import os

_SYSFS = "/sys/dev/block"
_DEEPEST = 16


def disks_behind(directory: str, sysfs: str = _SYSFS) -> list[str]:
    """Device numbers "major:minor" of the disks under `directory`, through partitions, device mapper, md and loop.

    Empty where there is none (tmpfs, overlay, network file systems).
    """
    return _whole_disks(_filesystem_device(directory), sysfs, 0)


def _filesystem_device(directory: str) -> str:
    st_dev = os.stat(directory).st_dev
    if os.major(st_dev):
        return f"{os.major(st_dev)}:{os.minor(st_dev)}"
    # btrfs gives each subvolume an anonymous device; the mount table knows the real one.
    source = _mount_source(f"{os.major(st_dev)}:{os.minor(st_dev)}", directory)
    if not source.startswith("/dev/"):
        return ""
    try:
        rdev = os.stat(source).st_rdev
    except OSError:
        return ""
    return f"{os.major(rdev)}:{os.minor(rdev)}"


def _mount_source(device: str, directory: str) -> str:
    real = os.path.realpath(directory)
    best = ("", "")
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            mountpoint = left.split()[4]
            inside = real == mountpoint or real.startswith(mountpoint.rstrip("/") + "/")
            if inside and len(mountpoint) >= len(best[0]):
                best = (mountpoint, right.split()[1])
    return best[1]


def _whole_disks(device: str, sysfs: str, depth: int) -> list[str]:
    path = f"{sysfs}/{device}"
    if not device or depth > _DEEPEST or not os.path.exists(path):
        return []
    if os.path.exists(f"{path}/partition"):
        return _whole_disks(_read(f"{os.path.realpath(path)}/../dev"), sysfs, depth + 1)
    backing = _read(f"{path}/loop/backing_file")
    if backing:
        try:
            return _whole_disks(_filesystem_device(os.path.dirname(backing)), sysfs, depth + 1)
        except OSError:
            return []
    slaves = f"{path}/slaves"
    below = sorted(os.listdir(slaves)) if os.path.isdir(slaves) else []
    if not below:
        return [device]
    found: list[str] = []
    for slave in below:
        found += [disk for disk in _whole_disks(_read(f"{slaves}/{slave}/dev"), sysfs, depth + 1) if disk not in found]
    return found


def scheduler_of(device: str, sysfs: str = _SYSFS) -> str:
    """The active I/O scheduler of a disk: the word in brackets of queue/scheduler."""
    words = _read(f"{sysfs}/{device}/queue/scheduler").split()
    return next((word.strip("[]") for word in words if word.startswith("[")), "")


def name_of(device: str, sysfs: str = _SYSFS) -> str:
    return os.path.basename(os.path.realpath(f"{sysfs}/{device}"))


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return ""
