# SPDX-License-Identifier: GPL-2.0-or-later
"""Noticing that somebody else removes rules of ours: a firewall's reload often begins with "flush ruleset".

Until the tables are back, VEs could send from any address and the host's loopback would be open to them.
"""

from __future__ import annotations

import errno
import socket

from vemgr.kernel import netlink, packet_filter

NETLINK_NETFILTER, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES = 12, 1, 7
_NFTABLES = 10 << 8  # the subsystem, in a message's type
_NEWSETELEM, _DELSETELEM, _NEWGEN = 12, 14, 15
#: NFT_MSG_DELTABLE, DELCHAIN, DELRULE, DELSET: each has its table's name as attribute 1
_REMOVALS = {_NFTABLES | kind for kind in (2, 5, 8, 11)}
_NFGEN_SIZE = 4


class TableWatch:
    """A socket that is readable when rules are removed; `fileno` is for the event loop. Raises `OSError`."""

    def __init__(self, table: str) -> None:
        self._table = table.encode()
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
                                     NETLINK_NETFILTER)
        try:
            self._attach_filter()
            self._socket.bind((0, 0))  # without a port id of its own it would be left out as if it were the sender
            self._socket.setsockopt(netlink.SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def _attach_filter(self) -> None:
        """Let no message wake us that begins with a change of elements, as ours do at each start of a VE."""
        passed_over = (_NEWSETELEM, _DELSETELEM, _NEWGEN)
        packet_filter.attach(self._socket, [
            # The type of the first message, which BPF takes as big-endian.
            (packet_filter.LOAD_HALF, 0, 0, 4),
            *((packet_filter.JUMP_EQUAL, len(passed_over) - position, 0, socket.htons(_NFTABLES | kind))
              for position, kind in enumerate(passed_over)),
            (packet_filter.RETURN, 0, 0, packet_filter.PASS),
            (packet_filter.RETURN, 0, 0, packet_filter.DROP),
        ])

    def removed(self) -> bool:
        """Whether what has happened since the last call removed anything of our tables. Does not wait."""
        found = False
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                found = True  # too much has happened to be told
                continue
            found = found or any(kind in _REMOVALS and name == self._table for kind, name in _messages(data))


def _messages(data: bytes) -> list[tuple[int, bytes]]:
    """The messages in `data` as (type, first attribute's text)."""
    found = []
    at = 0
    while at + netlink.HEADER.size <= len(data):
        length, kind, _, _, _ = netlink.HEADER.unpack_from(data, at)
        if length < netlink.HEADER.size:
            break
        body = data[at + netlink.HEADER.size + _NFGEN_SIZE : at + length]
        found += [(kind, value.rstrip(b"\0")) for number, value in netlink.attributes(body) if number == 1][:1]
        at += netlink.align(length)
    return found
