# SPDX-License-Identifier: GPL-2.0-or-later
"""Shares of the host's way out: classes of HTB on the uplink (tc-htb(8), linux/pkt_sched.h).

    root handle:  htb, whose default is the host's own class
      handle:ffff the whole rate
        handle:fffe the host itself, with its reserve
        handle:fffd all VEs that have no class of their own
        handle:N    a VE: its guarantee, and by its weight a share of what is left over

A packet finds its class by its priority (skb->priority), which the rule of vemgr's firewall table sets where it is
forwarded: before its source address is translated, with one look-up in a hash table, and no filter on the device.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from zlib import crc32

from vemgr.kernel.netlink import Requests, attribute, message, text
from vemgr.kernel.qdiscs import (
    ETHERNET,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    RATESPEC,
    RTM_DELQDISC,
    RTM_DELTCLASS,
    RTM_GETQDISC,
    RTM_GETTCLASS,
    RTM_NEWQDISC,
    RTM_NEWTCLASS,
    TC_H_ROOT,
    TCA_KIND,
    TCA_OPTIONS,
    TCMSG,
    listed,
)
from vemgr.kernel.veth import NLM_F_CREATE

TCA_HTB_PARMS, TCA_HTB_INIT, TCA_HTB_RATE64, TCA_HTB_CEIL64 = 1, 2, 6, 7
WHOLE, HOST, OTHERS = 0xFFFF, 0xFFFE, 0xFFFD
LEAST_RESERVED = OTHERS
#: Weight of the host's own class, and of all VEs without a class together.
COMMON_WEIGHT = 100
_HTB_VERSION = 3
_LEAST_RATE = 1000  # bytes/s: HTB has no class without one
#: Bytes that a class may send in its turn, for each unit of weight: with the common weight a packet of the largest
#: size, 64 KiB. A class whose turn is shorter than its packets gets more than its share.
_TURN = 656
_LEAST_TURN = 1514
_LEAST_BURST, _BURST = 1 << 15, 0.01  # bytes; seconds at the rate
_WAIT = 0.05  # seconds at the uplink's rate that a class without fq_codel may keep waiting
_TICK = 64  # nanoseconds (PSCHED_SHIFT in net/pkt_sched.h)
_GONE = (errno.ENOENT, errno.ENODEV, errno.EINVAL)


def handle_of(instance: str) -> int:
    """The upper half of our handles: as others do not choose it, and another vemgr on the same host has another."""
    return 0x7000 | crc32(instance.encode()) & 0xFFF


def default_device() -> str:
    """The interface of the default route with the lowest metric, IPv4 before IPv6, "" for none (/proc/net)."""
    found: list[tuple[int, int, str]] = []
    with open("/proc/self/net/route", encoding="ascii") as file:
        for line in file.readlines()[1:]:
            words = line.split()
            if words[1] == words[7] == "00000000" and int(words[3], 16) & 1:
                found.append((4, int(words[6]), words[0]))
    try:
        with open("/proc/self/net/ipv6_route", encoding="ascii") as file:
            for line in file:
                words = line.split()
                if words[1] == "00" and int(words[0], 16) == 0 and words[9] != "lo":
                    found.append((6, int(words[5], 16), words[9]))
    except FileNotFoundError:
        pass
    return min(found)[2] if found else ""


def speed(device: str) -> int | None:
    """bit/s of a device's link as its driver tells, None where it does not: of virtual ones it is invented."""
    try:
        if not os.path.exists(f"/sys/class/net/{device}/device"):
            return None
        with open(f"/sys/class/net/{device}/speed", encoding="ascii") as file:
            megabits = int(file.read())
    except (OSError, ValueError):
        return None
    return megabits * 1_000_000 if megabits > 0 else None


def roots() -> dict[int, tuple[str, int]]:
    """By index of the device the kind and handle of its root qdisc; a handle 0 is of one that the kernel chose."""
    found = {}
    for one in listed(RTM_GETQDISC):
        if one.parent == TC_H_ROOT:
            found[one.link] = one.kind, one.handle >> 16
    return found


def classes(index: int) -> set[int]:
    """The minor numbers of a device's HTB classes."""
    return {one.handle & 0xFFFF for one in listed(RTM_GETTCLASS, index) if one.kind == "htb"}


class Tree:
    """The classes on one device. Every method raises `OSError`, and may be repeated."""

    def __init__(self, device: str, handle: int, rate: int) -> None:
        """`rate`: bit/s of the uplink."""
        self.device = device
        self.rate = rate
        self._index = socket.if_nametoindex(device)
        self._handle = handle

    def root(self) -> tuple[str, int] | None:
        return roots().get(self._index)

    def plant(self, reserve: int) -> None:
        """The root, and the classes that are no VE's; what there was goes. `reserve`: bit/s for the host itself."""
        # struct tc_htb_glob: version, rate2quantum, defcls, debug, direct_pkts
        options = attribute(TCA_HTB_INIT, struct.pack("=IIIII", _HTB_VERSION, 10, HOST, 0, 0))
        requests = Requests()
        try:
            if self.root() != ("htb", self._handle):
                requests.send([self._message(RTM_NEWQDISC, self._handle << 16, TC_H_ROOT, "htb", options,
                                             NLM_F_CREATE | NLM_F_REPLACE)])
            requests.send([self._class(WHOLE, self._handle << 16, self.rate, COMMON_WEIGHT)])
            for minor, rate in ((HOST, reserve), (OTHERS, 0)):
                self._branch(requests, minor, rate, COMMON_WEIGHT)
        finally:
            requests.close()

    def branch(self, minor: int, guarantee: int, weight: int) -> None:
        """Make or change a VE's class. `guarantee`: bit/s."""
        requests = Requests()
        try:
            self._branch(requests, minor, guarantee, weight)
        finally:
            requests.close()

    def cut(self, minor: int) -> None:
        self._delete(self._message(RTM_DELTCLASS, self._handle << 16 | minor, 0))

    def fell(self) -> None:
        """Take the root away; the kernel puts its default there."""
        self._delete(self._message(RTM_DELQDISC, self._handle << 16, TC_H_ROOT))

    def minors(self) -> set[int]:
        """Of the VEs' classes."""
        return {minor for minor in classes(self._index) if minor < LEAST_RESERVED}

    @staticmethod
    def _delete(one: bytes) -> None:
        requests = Requests()
        try:
            requests.send([one])
        except OSError as error:
            if error.errno not in _GONE:
                raise
        finally:
            requests.close()

    def _branch(self, requests: Requests, minor: int, guarantee: int, weight: int) -> None:
        handle = self._handle << 16 | minor
        requests.send([self._class(minor, self._handle << 16 | WHOLE, guarantee, weight)])
        limit = max(1 << 16, int(self.rate / 8 * _WAIT))
        # fq_codel: flows of one VE do not starve each other, and none waits long. Small kernels lack it.
        for name, options in (("fq_codel", b""), ("bfifo", struct.pack("=I", limit))):
            try:
                requests.send([self._message(RTM_NEWQDISC, 0, handle, name, options, NLM_F_CREATE | NLM_F_EXCL)])
            except OSError as error:
                if error.errno == errno.EEXIST:  # from when the class was made
                    return
                if error.errno != errno.ENOENT:
                    raise
            else:
                return

    def _class(self, minor: int, parent: int, guarantee: int, weight: int) -> bytes:
        rate, ceiling = max(_LEAST_RATE, guarantee // 8), self.rate // 8
        turn = max(_LEAST_TURN, _TURN * weight)
        # struct tc_htb_opt: rate, ceil, buffer, cbuffer, quantum, level, prio
        parameters = (_spec(rate) + _spec(ceiling)
                      + struct.pack("=IIIII", _burst(rate), _burst(ceiling), turn, 0, 0))
        options = attribute(TCA_HTB_PARMS, parameters)
        for kind, amount in ((TCA_HTB_RATE64, rate), (TCA_HTB_CEIL64, ceiling)):
            if amount > 0xFFFFFFFF:
                options += attribute(kind, struct.pack("=Q", amount))
        return self._message(RTM_NEWTCLASS, self._handle << 16 | minor, parent, "htb", options, NLM_F_CREATE)

    def _message(self, kind: int, handle: int, parent: int, name: str = "", options: bytes = b"",
                 flags: int = 0) -> bytes:
        body = TCMSG.pack(socket.AF_UNSPEC, self._index, handle, parent, 0)
        if name:
            body += text(TCA_KIND, name)
        if options:
            body += attribute(TCA_OPTIONS, options)
        return message(kind, body, flags)


def fell_strangers(handle: int, kept: str) -> list[str]:
    """Take away roots of ours from all devices but one, as after a change of the configuration; their names. Raises
    `OSError`."""
    felled = []
    for index, root in roots().items():
        if root == ("htb", handle):
            name = socket.if_indextoname(index)
            if name != kept:
                Tree(name, handle, 0).fell()
                felled.append(name)
    return felled


def _spec(rate: int) -> bytes:
    return RATESPEC.pack(0, ETHERNET, 0, 0, 0, min(rate, 0xFFFFFFFF))


def _burst(rate: int) -> int:
    """In ticks that its bytes take at this rate."""
    return min(0xFFFFFFFF, max(_LEAST_BURST, int(rate * _BURST)) * 10**9 // rate // _TICK)
