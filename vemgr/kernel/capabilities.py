# SPDX-License-Identifier: GPL-2.0-or-later
"""Capability sets of a process entering a VE: capabilities(7), capset(2), prctl(2)."""

from __future__ import annotations

import ctypes
import struct

from vemgr.kernel.libc import check, libc, number, syscall

PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
_LINUX_CAPABILITY_VERSION_3 = 0x20080522

# Numbers of linux/capability.h in their order.
NAMES = (
    "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap",
    "linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner",
    "sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice",
    "sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write", "audit_control", "setfcap",
    "mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf",
    "checkpoint_restore",
)


def count() -> int:
    """How many capabilities this kernel has; those newer than our table are bounded too."""
    capability = 0
    while libc.prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0:
        capability += 1
    return capability


def has(name: str) -> bool:
    """Whether this process has a capability in effect."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        mask = next((int(line.split()[1], 16) for line in file if line.startswith("CapEff:")), 0)
    return bool(mask >> NAMES.index(name) & 1)


def capset_arguments(allowed: set[int]) -> tuple[bytes, bytes]:
    """The two structures of capset(2) that leave `allowed` effective and permitted, and nothing inheritable."""
    mask = sum(1 << number_ for number_ in allowed)
    halves = (mask & 0xFFFFFFFF, mask >> 32)
    return (struct.pack("=Ii", _LINUX_CAPABILITY_VERSION_3, 0),
            struct.pack("=6I", *(value for half in halves for value in (half, half, 0))))


def bound_to(keep: frozenset[str] | set[str]) -> None:
    """Drop from the bounding set, and from this process's own sets, everything that is not in `keep`.

    The inheritable and ambient sets become empty (CVE-2022-29162: inheritable capabilities that survive exec).
    Capabilities newer than our table are dropped too. python-prctl has a table of fixed length, so this is done here.
    """
    allowed = {NAMES.index(name) for name in keep}
    for capability in range(count()):
        if capability not in allowed:
            check(libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0), "prctl(PR_CAPBSET_DROP)")
    check(libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "prctl(PR_CAP_AMBIENT)")
    header, data = capset_arguments(allowed)
    syscall("capset", number("capset"), ctypes.create_string_buffer(header, 8), data)
