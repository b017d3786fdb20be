# SPDX-License-Identifier: GPL-2.0-or-later
"""Holding ports of the host for VEs, so that no service of the host can have them at the same time.

A published port is taken by rules before a socket could see its packets. A socket that is bound, and never listens,
makes the kernel refuse the port to others, and tells us when somebody has it already: with all of bind(2)'s rules on
wildcards and families, and in microseconds.
"""

from __future__ import annotations

import errno
import os
import re
import socket

from vemgr.core.errors import AddressInUse, BadValue, SystemFailure
from vemgr.core.links import Publication

IP_FREEBIND, IPV6_FREEBIND = 15, 78
_TCP_LISTEN, _UDP_BOUND = "0A", "07"


def hold(publication: Publication, *, ipv6: bool, anticipate: bool = False) -> list[socket.socket]:
    """Sockets that hold the port of `publication`, for IPv6 only with `ipv6`, until they are closed.

    `anticipate`: the address may be one that the host does not have yet. Raises `AddressInUse` naming who has the
    port, `BadValue` for an address that is not the host's, `SystemFailure`.
    """
    held: list[socket.socket] = []
    try:
        for version in publication.families:
            if version == 4 or ipv6:
                held.append(_bind(publication, version, anticipate))
    except OSError as error:
        release(held)
        raise _failure(publication, error) from error
    return held


def release(held: list[socket.socket]) -> None:
    for each in held:
        each.close()


def _bind(publication: Publication, version: int, anticipate: bool) -> socket.socket:
    family, level, freebind = {4: (socket.AF_INET, socket.IPPROTO_IP, IP_FREEBIND),
                               6: (socket.AF_INET6, socket.IPPROTO_IPV6, IPV6_FREEBIND)}[version]
    stream = publication.protocol == "tcp"
    bound = socket.socket(family, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM)
    try:
        if version == 6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if stream:  # connections of a service that has just ended are in nobody's way
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        else:  # nothing reads what comes by a way that is not redirected
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
        if anticipate:
            bound.setsockopt(level, freebind, 1)
        bound.bind((publication.address or {4: "0.0.0.0", 6: "::"}[version], publication.port))  # noqa: S104
        # With it, another socket that has it too could be bound besides.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except BaseException:
        bound.close()
        raise
    return bound


def _failure(publication: Publication, error: OSError) -> Exception:
    if error.errno == errno.EADDRINUSE:
        user = who_has(publication.protocol, publication.port) or "another program"
        return AddressInUse(f"port {publication.port}/{publication.protocol} of the host is taken by {user}",
                            remedy="choose another port of the host", port=publication.port, user=user)
    if error.errno == errno.EADDRNOTAVAIL:
        return BadValue("publish", str(publication), f"{publication.address} is not an address of this host")
    return SystemFailure(f"cannot hold port {publication.port}/{publication.protocol}: {error.strerror}",
                         errno=error.errno)


def who_has(protocol: str, port: int) -> str:
    """The process that has a port, as "nginx (process 815)", or "" if it cannot be found. Takes a while."""
    inodes = {inode for name in (protocol, f"{protocol}6") for inode in _sockets(f"/proc/self/net/{name}", port)}
    for pid in sorted(filter(str.isdecimal, os.listdir("/proc")), key=int) if inodes else ():
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{fd}"))
                if match and match[1] in inodes:
                    with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
                        return f"{file.read().strip()} (process {pid})"
        except OSError:
            continue  # it has ended
    return ""


def _sockets(path: str, port: int) -> list[str]:
    """The inodes of the sockets in a table such as /proc/net/tcp that wait on a port: proc_net_tcp.rst."""
    try:
        with open(path, encoding="ascii") as file:
            rows = [line.split() for line in file.readlines()[1:]]
    except OSError:
        return []
    return [row[9] for row in rows
            if row[3] in (_TCP_LISTEN, _UDP_BOUND) and int(row[1].rpartition(":")[2], 16) == port]
