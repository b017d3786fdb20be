# SPDX-License-Identifier: GPL-2.0-or-later
"""Which devices of the host may be given to a VE, and how they are put into the plan."""

from __future__ import annotations

import errno
import os
import stat

from vemgr.core.errors import BadValue
from vemgr.core.plan import Directory, HostDevice, Operation
from vemgr.core.privileges import FEATURE_DEVICES, PassedDevice
from vemgr.kernel.devices import DeviceRule

_MISC = 10
_OPEN = 0o666
_PRIVATE = 0o600
# Documentation/admin-guide/devices.txt. What leads past everything that stands between VEs and host.
_MEMORY = {1: "memory of the host", 2: "memory of the host", 4: "ports of the host", 11: "the host's kernel log",
           12: "memory of the host"}
_MEM_MAJOR, _VT_MAJOR, _LAST_VT, _TTY_MAJOR, _VCS_MAJOR, _MSR_MAJOR = 1, 4, 63, 5, 7, 202
#: By their names in /proc/misc, since the numbers of most are given out as they come.
_NEVER_MISC = {
    "nvram": "memory of the host's firmware", "snapshot": "memory of the host", "mcelog": "the host's hardware errors",
    "uinput": "it types into the host's console", "uhid": "it makes keyboards of the host",
    "watchdog": "it resets the host", "loop-control": "it takes loop devices of the host away",
    "device-mapper": "it makes disks of the host", "btrfs-control": "it makes the host read disks",
    "userfaultfd": "it is closed by the system call filter, with reason", "autofs": "it mounts on the host",
    "cpu_dma_latency": "it is a setting of the whole host", "vsock": "it leads to the hypervisor",
}


def device_operations(features: tuple[str, ...], devices: tuple[PassedDevice, ...]) -> tuple[Operation, ...]:
    """Raises `BadValue` for what is not there or must not be in a VE. It asks the kernel, not the device."""
    if not features and not devices:
        return ()
    nodes = [_feature(feature) for feature in features if feature in FEATURE_DEVICES]
    nodes += [_passed(device) for device in devices]
    parents = {name.rpartition("/")[0] for name in (node.name for node in nodes)}
    directories = sorted({"/".join(parent.split("/")[:count]) for parent in parents if parent
                          for count in range(1, parent.count("/") + 2)})
    return (*(Directory(f"dev/{directory}") for directory in directories), *nodes)


def device_rules(operations: tuple[Operation, ...]) -> tuple[DeviceRule, ...]:
    """What the VE's device program allows for them. Making the node is for our own set-up process: no VE can."""
    return tuple(DeviceRule("b" if node.block else "c", node.major, node.minor, "".join(sorted({*node.access, "m"})))
                 for node in operations if isinstance(node, HostDevice))


def _feature(feature: str) -> HostDevice:
    name, major, minor = FEATURE_DEVICES[feature]
    try:
        found = os.stat(f"/dev/{name}")
    except OSError as error:
        raise BadValue("feature", feature, f"/dev/{name}: {(error.strerror or str(error)).lower()}",
                       remedy=f"modprobe {feature}") from None
    if not stat.S_ISCHR(found.st_mode) or found.st_rdev != os.makedev(major, minor):
        raise BadValue("feature", feature, f"/dev/{name} is something else on this host")
    return HostDevice(name, major, minor, mode=_OPEN)


def _passed(device: PassedDevice) -> HostDevice:
    try:
        found = os.stat(device.path)  # by its links, as /dev/disk/by-id: /dev is the host's own
    except OSError as error:
        raise _refused(device, (error.strerror or str(error)).lower()) from None
    kind, major, minor = stat.S_IFMT(found.st_mode), os.major(found.st_rdev), os.minor(found.st_rdev)
    if kind not in (stat.S_IFCHR, stat.S_IFBLK):
        raise _refused(device, "not a device", "--mount shows files and directories of the host")
    block = kind == stat.S_IFBLK
    if not block and (why := _never(major, minor)):
        raise _refused(device, f"not for VEs: {why}")
    if not device.force:
        _check_idle(device, block=block, major=major)
    return HostDevice(device.path.removeprefix("/dev/"), major, minor, block, _PRIVATE, device.access)


def _never(major: int, minor: int) -> str:
    if major == _MEM_MAJOR:
        return _MEMORY.get(minor, "")
    if major == _VT_MAJOR and minor <= _LAST_VT:
        return "a console of the host"
    if major in (_TTY_MAJOR, _VCS_MAJOR):
        return "a console of the host"
    if major == _MSR_MAJOR:
        return "registers of the host's CPUs"
    return _NEVER_MISC.get(_misc_name(minor).rstrip("0123456789"), "") if major == _MISC else ""


def _misc_name(minor: int) -> str:
    with open("/proc/misc", encoding="ascii", errors="replace") as file:
        return next((name for number, name in map(str.split, file) if int(number) == minor), "")


def _check_idle(device: PassedDevice, *, block: bool, major: int) -> None:
    """A disk that two write to is destroyed, and who writes to one that is mounted can take over the host."""
    remedy = f"{device.path}:{device.access}:force gives it all the same"
    if not block:
        if _driver(major) in ("sg", "bsg"):
            raise _refused(device, "it reaches a disk past the kernel, which may have it mounted", remedy)
        return
    try:
        # open(2), O_EXCL on a block device: it fails where a mount, swap, RAID or device mapper has it or a part of it.
        os.close(os.open(device.path, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise _refused(device, "the host uses it or a part of it: mounted, for swap, or by another device",
                           remedy) from None
        if error.errno != errno.ENOMEDIUM:
            raise _refused(device, (error.strerror or str(error)).lower()) from None


def _driver(major: int) -> str:
    with open("/proc/devices", encoding="ascii", errors="replace") as file:
        words = (line.split() for line in file.read().partition("Block devices:")[0].splitlines())
        return next((word[1] for word in words if len(word) == 2 and word[0] == str(major)), "")


def _refused(device: PassedDevice, why: str, remedy: str = "") -> BadValue:
    return BadValue("device", device.path, why, remedy=remedy)
