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


def forwarding6() -> list[str] | None:
    """What `enable_forwarding6` is going to change, to be recorded before: the interfaces that heed router
    advertisements as long as the host does not forward, or None where it does."""
    if int(read_setting("net/ipv6/conf/all/forwarding")):
        return None
    return [name for name in sorted(os.listdir("/proc/sys/net/ipv6/conf"))
            if name not in ("all", "lo") and _accepts_ra(name)]


def enable_forwarding6() -> None:
    """Let the host route IPv6, if it does not.

    A host that forwards does not heed router advertisements any more (ip-sysctl.rst, accept_ra), and would lose its
    own default route: 2 means "heed them all the same".
    """
    for name in forwarding6() or []:
        write_setting(f"net/ipv6/conf/{name}/accept_ra", 2)
    write_setting("net/ipv6/conf/all/forwarding", 1)


def _accepts_ra(interface: str) -> bool:
    try:
        return read_setting(f"net/ipv6/conf/{interface}/accept_ra") == "1"
    except SystemFailure:
        return False  # it went away meanwhile


def restore_forwarding6(changed: list[str] | None) -> None:
    """Undo `enable_forwarding6`, given what `forwarding6` was before."""
    if changed is None:
        return
    write_setting("net/ipv6/conf/all/forwarding", 0)
    for name in changed:
        path = f"net/ipv6/conf/{name}/accept_ra"
        if has_setting(path) and read_setting(path) == "2":
            write_setting(path, 1)


def has_ipv6() -> bool:
    return has_setting("net/ipv6")


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
