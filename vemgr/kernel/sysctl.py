# SPDX-License-Identifier: GPL-2.0-or-later
"""Network settings below /proc/sys, which shows each reader its own network namespace."""

from __future__ import annotations

import os

from vemgr.core.errors import SystemFailure


def forwarding() -> int:
    """net.ipv4.ip_forward, to be recorded before it is changed. Raises SystemFailure."""
    return int(read_setting("net/ipv4/ip_forward"))


def enable_forwarding() -> int:
    """Let the host route IPv4, if it does not; returns the previous value of net.ipv4.ip_forward.

    Must come before `ensure_bridge`: the kernel resets every interface's settings when this value changes.
    """
    previous = forwarding()
    if previous == 0:
        write_setting("net/ipv4/ip_forward", 1)
    return previous


def restore_forwarding(previous: int) -> None:
    """Undo `enable_forwarding`, given what `forwarding` was before."""
    if previous == 0:
        write_setting("net/ipv4/ip_forward", 0)


def read_setting(path: str) -> str:
    """A file below /proc/sys, which shows the reader's own network namespace. Raises SystemFailure."""
    try:
        with open(f"/proc/sys/{path}", encoding="ascii") as file:
            return file.read().strip()
    except OSError as error:
        raise _failed("read", path, error) from None


def write_setting(path: str, value: int) -> None:
    """Write a file below /proc/sys unless it has the value already. Raises SystemFailure."""
    if read_setting(path) == str(value):
        return
    try:
        with open(f"/proc/sys/{path}", "w", encoding="ascii") as file:
            file.write(str(value))
    except OSError as error:
        raise _failed("write", path, error) from None


def has_setting(path: str) -> bool:
    """Whether there is such a file or directory: a kernel without IPv6 has no net/ipv6."""
    return os.path.exists(f"/proc/sys/{path}")


def _failed(verb: str, path: str, error: OSError) -> SystemFailure:
    return SystemFailure(
        f"cannot {verb} /proc/sys/{path}: {error.strerror}",
        remedy="/proc/sys must be writable for vemgr" if verb == "write" else "",
        call=verb, path=f"/proc/sys/{path}", errno=error.errno,
    )
