# SPDX-License-Identifier: GPL-2.0-or-later
"""Sending rtnetlink messages that the daemon has made, in the network namespace that their sender is in.

They come by the channel, as a datagram, while the VE's namespaces and mounts are made: what the daemon has to do for
them, and for the VE's limits, it does meanwhile.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from vemgr.keeper.program import CHANNEL, Program
from vemgr.kernel import netlink

BATCH_BOUND = 32768  # bytes: about a hundred links
_ANSWER_ROOM = 4096


def receive_and_send(program: Program, *, required: bool) -> None:
    """Wait for a batch (`netlink.batch`) and send it. An empty one is none, which is a failure where it is `required`;
    so is the end of the channel, which looks the same."""
    content, count = program.room(BATCH_BOUND), program.register()
    program.call("recvfrom", CHANNEL, content, BATCH_BOUND, 0, 0, 0, into=count)
    empty = program.call("same", count, 0)
    if required:
        program.call("exit", errno.ECANCELED)
    program.expect(empty, errno.EINVAL)
    one, answer = program.constant(struct.pack("=i", 1)), program.room(_ANSWER_ROOM)
    with program.descriptor() as rtnl:
        program.call("socket", socket.AF_NETLINK, socket.SOCK_RAW | os.O_CLOEXEC, socket.NETLINK_ROUTE, into=rtnl)
        for option in (netlink.NETLINK_CAP_ACK, netlink.NETLINK_EXT_ACK):
            program.call("setsockopt", rtnl, netlink.SOL_NETLINK, option, one, 4)
        program.call("netlink", rtnl, content, count, answer, _ANSWER_ROOM)
    if not required:
        program.else_(empty)
    program.release(count)
