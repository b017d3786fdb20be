# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VE may be given beyond what each has, or be refused of that: features, devices of the host, capabilities."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from vemgr.core.errors import BadValue

# What root of a VE may do *to its own VE*. Left out: loading modules, hardware, the clock, the kernel log, device
# nodes, BPF and performance events, mandatory access control.
CAPABILITIES = (
    "audit_write", "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "ipc_lock", "ipc_owner", "kill",
    "lease", "linux_immutable", "net_admin", "net_bind_service", "net_broadcast", "net_raw", "setfcap", "setgid",
    "setpcap", "setuid", "sys_admin", "sys_boot", "sys_chroot", "sys_nice", "sys_pacct", "sys_ptrace", "sys_resource",
    "sys_tty_config",
)
#: Those that give a VE's root power over his own user namespace only, or none: programs ask whether they have them.
ADDABLE = ("checkpoint_restore", "mknod")
_HOSTS = "what it allows concerns the whole host"
NOT_ADDABLE = {
    "audit_control": "the audit is the host's", "audit_read": "the audit is the host's",
    "block_suspend": _HOSTS, "bpf": "it looks into the kernel, which all share", "mac_admin": _HOSTS,
    "mac_override": _HOSTS, "perfmon": "it looks into the kernel, which all share",
    "sys_module": "it loads code into the kernel, which all share", "sys_rawio": "the hardware is the host's",
    "sys_time": "the clock is the host's", "syslog": "the kernel's log is the host's", "wake_alarm": _HOSTS,
}
NOT_REMOVABLE = ("setgid", "setuid")

NESTING = "nesting"
FEATURES = ("fuse", NESTING, "tun")
#: The words of the setting `allow` that a feature opens too.
_OPENED = {NESTING: ("nesting",)}
#: The device that a feature is: name below /dev, major and minor (Documentation/admin-guide/devices.txt).
FEATURE_DEVICES = {"fuse": ("fuse", 10, 229), "tun": ("net/tun", 10, 200)}

NONE = "none"
MOST_DEVICES = 32
_LONGEST = 200
_CAPABILITY = re.compile(r"([+-])(?:cap_)?([a-z_]+)")
_ACCESS = re.compile(r"r?w?m?")
#: What vemgr itself makes in a VE's /dev, and keeps for itself there.
_OURS = frozenset(("null", "zero", "full", "random", "urandom", "tty", "console", "ptmx", "pts", "shm", "mqueue", "fd",
                   "stdin", "stdout", "stderr", ".vemgr"))
_SPELLING = "write it as /dev/ttyUSB0 or /dev/sdb:r, of the letters r, w and m"
_FORCE = "force"


@dataclass(frozen=True)
class PassedDevice:
    """A device of the host, found by `path` there at each start and seen as `path` in the VE. `force`: also a disk that
    is in use."""

    path: str
    access: str = "rwm"
    force: bool = False

    def __str__(self) -> str:
        access = f":{self.access}" if self.force or self.access != "rwm" else ""
        return f"{self.path}{access}{f':{_FORCE}' if self.force else ''}"


def parse_devices(field: str, text: str) -> tuple[PassedDevice, ...]:
    words = text.split()
    if words == [NONE]:
        return ()
    if len(words) > MOST_DEVICES:
        raise BadValue(field, text[:80], f"more than {MOST_DEVICES} devices")
    found = sorted((_parse_device(field, word) for word in words), key=lambda device: device.path)
    if len({device.path for device in found}) != len(found):
        raise BadValue(field, text[:80], "a device is given twice")
    return tuple(found)


def _parse_device(field: str, text: str) -> PassedDevice:
    path, *options = text.split(":")
    force = options[-1:] == [_FORCE]
    if force:
        options.pop()
    access = options[0] if options else "rwm"
    if len(options) > 1 or not access or not _ACCESS.fullmatch(access):
        raise BadValue(field, text[:80], "not a device", remedy=_SPELLING)
    parts = path.split("/")
    if parts[:2] != ["", "dev"] or len(parts) < 3 or {"", ".", ".."} & set(parts[1:]):
        raise BadValue(field, text[:80], "not a path below /dev", remedy=_SPELLING)
    if len(path.encode(errors="surrogateescape")) > _LONGEST or not path.isprintable():
        raise BadValue(field, ascii(text)[:80], f"a path has at most {_LONGEST} bytes, all of them printable")
    if parts[2] in _OURS:
        raise BadValue(field, text, f"/dev/{parts[2]} is made by vemgr itself")
    for feature, (name, _, _) in FEATURE_DEVICES.items():
        if path == f"/dev/{name}":
            raise BadValue(field, text, f"this is what the feature {feature} gives", remedy=f"use --feature {feature}")
    return PassedDevice(path, access, force)


def show_devices(devices: Iterable[PassedDevice]) -> str:
    return " ".join(map(str, devices)) or NONE


def parse_features(field: str, text: str) -> tuple[str, ...]:
    words = {*text.replace(",", " ").split()} - {NONE}
    if unknown := words - set(FEATURES):
        raise BadValue(field, " ".join(sorted(unknown))[:80], "not a feature",
                       remedy=f"there are: {', '.join(FEATURES)}")
    return tuple(sorted(words))


def parse_capabilities(field: str, text: str) -> tuple[str, ...]:
    """"+NAME" for each that is added, "-NAME" for each that is taken away."""
    found: dict[str, str] = {}
    for word in text.replace(",", " ").lower().split():
        if word == NONE:
            continue
        match = _CAPABILITY.fullmatch(word)
        if not match:
            raise BadValue(field, word[:80], "not a capability with a sign", remedy="write it as +mknod or -net_raw")
        sign, name = match.groups()
        _check_capability(field, word, sign, name)
        if found.setdefault(name, sign) != sign:
            raise BadValue(field, text[:80], f"{name} is both added and taken away")
    return tuple(sorted(f"{sign}{name}" for name, sign in found.items()))


def _check_capability(field: str, word: str, sign: str, name: str) -> None:
    if name not in (*CAPABILITIES, *ADDABLE, *NOT_ADDABLE):
        raise BadValue(field, word[:80], "there is no such capability", remedy="capabilities(7) has those there are")
    if sign == "+" and name in NOT_ADDABLE:
        raise BadValue(field, word, f"not for VEs: {NOT_ADDABLE[name]}")
    if sign == "-" and name in NOT_REMOVABLE:
        raise BadValue(field, word, "commands that come into a VE need it to become the user that they run as")


def effective(changes: tuple[str, ...]) -> tuple[str, ...]:
    """The capabilities of a VE with these changes."""
    if not changes:
        return CAPABILITIES
    signs = {change[1:]: change[0] for change in changes}
    kept = {name for name in CAPABILITIES if signs.get(name) != "-"}
    return tuple(sorted(kept | {name for name, sign in signs.items() if sign == "+"}))


def opened(allow: tuple[str, ...], features: tuple[str, ...]) -> tuple[str, ...]:
    """The groups of system calls that are open (`core.syscalls`)."""
    return tuple(sorted({*allow, *(word for feature in features for word in _OPENED.get(feature, ()))}))
