# SPDX-License-Identifier: GPL-2.0-or-later
"""Queueing disciplines and classes of links, as rtnetlink has them (tc(8), linux/pkt_sched.h, linux/gen_stats.h)."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from vemgr.kernel.netlink import HEADER, NLMSG_ERROR, attributes, pad

NLM_F_REPLACE, NLM_F_EXCL, _NLM_F_DUMP = 0x100, 0x200, 0x300
_NLMSG_DONE = 3
RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38
RTM_NEWTCLASS, RTM_DELTCLASS, RTM_GETTCLASS = 40, 41, 42
TC_H_ROOT = 0xFFFFFFFF
TCA_KIND, TCA_OPTIONS, _TCA_STATS2, _TCA_STATS_QUEUE = 1, 2, 7, 3
#: struct tcmsg: family, index, handle, parent, info
TCMSG = struct.Struct("=BxxxiIII")
#: struct tc_ratespec: cell_log, linklayer, overhead, cell_align, mpu, rate
RATESPEC = struct.Struct("=BBHhHI")
ETHERNET = 1
#: struct gnet_stats_queue: qlen, backlog, drops, requeues, overlimits
_QUEUE = struct.Struct("=IIIII")


#: By the link's name and the parent, which is TC_H_ROOT or a class.
Drops = dict[tuple[str, int], int]


class Found(NamedTuple):
    """One of a dump. `link`: its index. `dropped`: packets since it was made."""

    link: int
    handle: int
    parent: int
    kind: str
    dropped: int


def listed(kind: int, index: int = 0) -> Iterator[Found]:
    """A dump of RTM_GETQDISC or RTM_GETTCLASS, of one link or of all. Raises `OSError`."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as asked:
        body = TCMSG.pack(socket.AF_UNSPEC, index, 0, 0, 0)
        asked.send(pad(HEADER.pack(HEADER.size + len(body), kind, _NLM_F_DUMP | 1, 1, 0) + body))
        while True:
            answer = asked.recv(1 << 16)
            while len(answer) >= HEADER.size:
                length, type_, *_ = HEADER.unpack_from(answer)
                if type_ == _NLMSG_DONE:
                    return
                if type_ == NLMSG_ERROR:
                    code = -struct.unpack_from("=i", answer, HEADER.size)[0]
                    raise OSError(code, os.strerror(code))
                yield _parse(answer[HEADER.size:length])
                answer = answer[(length + 3) & ~3:]


def _parse(content: bytes) -> Found:
    _, index, handle, parent, _ = TCMSG.unpack_from(content)
    parts = dict(attributes(content[TCMSG.size:]))
    queue = dict(attributes(parts.get(_TCA_STATS2, b""))).get(_TCA_STATS_QUEUE, bytes(_QUEUE.size))
    kind = parts.get(TCA_KIND, b"").rstrip(b"\0").decode(errors="replace")
    return Found(index, handle, parent, kind, _QUEUE.unpack_from(queue)[2])


def drops() -> Drops:
    """Packets that queues had no room for: the link's own counters do not have them. Raises `OSError`."""
    names = dict(socket.if_nameindex())
    return {(names.get(found.link, ""), found.parent): found.dropped for found in listed(RTM_GETQDISC)}
