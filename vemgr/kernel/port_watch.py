# SPDX-License-Identifier: GPL-2.0-or-later
"""Knowing which ports of bridges are not VEs': a physical interface, a virtual machine's, another program's veth.

Asking at each start would cost more with each VE there is. So they are listed once, and then the kernel tells of
changes; those of VEs' own ports are filtered in the kernel.
"""

from __future__ import annotations

import errno
import socket
import sys

from vemgr.kernel import netlink, packet_filter
from vemgr.kernel.packet_filter import Instruction
from vemgr.kernel.veth import IFINFO, IFLA_IFNAME, IFLA_MASTER, RTM_DELLINK, RTM_NEWLINK

NETLINK_ADD_MEMBERSHIP, RTNLGRP_LINK = 1, 1
RTM_GETLINK, NLM_F_DUMP, NLMSG_DONE = 18, 0x300, 3
AF_BRIDGE = 7
IFF_RUNNING = 0x40
_ROOM = 1 << 16


class PortWatch:
    """Of all bridges; `fileno` is for the event loop. `prefix`: what the names of VEs' ports begin with.

    Raises OSError.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._ports: dict[int, tuple[int, str]] = {}  # those with a carrier: index of the port; of its bridge, name
        self._socket = self._listed()

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def foreign(self, bridge: str) -> list[str]:
        """The names of this bridge's ports with a carrier that are no VE's. Does not wait."""
        self.read()
        if not self._ports:
            return []
        try:
            index = socket.if_nametoindex(bridge)
        except OSError:  # somebody has deleted it
            return []
        return sorted(name for master, name in self._ports.values() if master == index)

    def read(self) -> None:
        """Take in what the kernel has told."""
        while True:
            try:
                self._take(self._socket.recv(_ROOM))
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._again()  # too much has happened to be told

    def _again(self) -> None:
        """Ask anew. The descriptor keeps its number, by which the event loop knows it."""
        self._ports.clear()
        self._socket.setsockopt(socket.SOL_SOCKET, packet_filter.SO_DETACH_FILTER, 0)
        self._list(self._socket)

    def _listed(self) -> socket.socket:
        watching = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
                                 socket.NETLINK_ROUTE)
        try:
            watching.bind((0, 0))
            # First the news, then the list: what happens in between is told.
            watching.setsockopt(netlink.SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, RTNLGRP_LINK)
            self._list(watching)
        except OSError:
            watching.close()
            raise
        return watching

    def _list(self, watching: socket.socket) -> None:
        """Without the filter, which would judge a whole part of the list by its first port."""
        question = netlink.message(RTM_GETLINK, IFINFO.pack(AF_BRIDGE, 0, 0, 0, 0), NLM_F_DUMP)
        watching.send(netlink.with_header(question, 1, acknowledge=False))
        while not self._take(watching.recv(_ROOM)):  # the kernel puts the next part there while one is read
            pass
        packet_filter.attach(watching, _not_ours(self._prefix))

    def _take(self, data: bytes) -> bool:
        """Whether it was the end of a list."""
        at = 0
        while at + netlink.HEADER.size <= len(data):
            length, kind, _, _, _ = netlink.HEADER.unpack_from(data, at)
            if kind == NLMSG_DONE or length < netlink.HEADER.size:
                return True
            if kind in (RTM_NEWLINK, RTM_DELLINK):
                self._note(kind, data[at + netlink.HEADER.size : at + length])
            at += netlink.align(length)
        return False

    def _note(self, kind: int, body: bytes) -> None:
        family, _, index, flags, _ = IFINFO.unpack_from(body)
        found = dict(netlink.attributes(body[IFINFO.size:]))
        if family != AF_BRIDGE or IFLA_MASTER not in found:
            return
        name = found.get(IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
        master = int.from_bytes(found[IFLA_MASTER], sys.byteorder)
        self._ports.pop(index, None)
        if kind == RTM_NEWLINK and flags & IFF_RUNNING and index != master and not name.startswith(self._prefix):
            self._ports[index] = (master, name)


def _not_ours(prefix: str) -> list[Instruction]:
    """Passes what is about ports of bridges, unless the port's name begins with `prefix`."""
    begin = prefix.encode()
    letters: list[Instruction] = []
    for position, letter in enumerate(begin):
        to_the_pass = 2 * (len(begin) - position) - 1
        letters += [(packet_filter.LOAD_BYTE_AT_X, 0, 0, netlink.ATTRIBUTE.size + position),
                    (packet_filter.JUMP_EQUAL, 0, to_the_pass, letter)]
    return [
        (packet_filter.LOAD_BYTE, 0, 0, netlink.HEADER.size),
        (packet_filter.JUMP_EQUAL, 0, len(letters) + 5, AF_BRIDGE),  # to the drop
        (packet_filter.LOAD_IMMEDIATE, 0, 0, netlink.HEADER.size + IFINFO.size),
        (packet_filter.LOAD_X_IMMEDIATE, 0, 0, IFLA_IFNAME),
        (packet_filter.LOAD_WORD, 0, 0, packet_filter.AD_ATTRIBUTE),
        (packet_filter.JUMP_EQUAL, len(letters) + 2, 0, 0),  # without a name: to the pass
        (packet_filter.COPY_TO_X, 0, 0, 0),
        *letters,
        (packet_filter.RETURN, 0, 0, packet_filter.DROP),
        (packet_filter.RETURN, 0, 0, packet_filter.PASS),
    ]
