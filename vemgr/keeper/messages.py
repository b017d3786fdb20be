# SPDX-License-Identifier: GPL-2.0-or-later
"""Sending rtnetlink messages that the daemon has made, in the network namespace that the set-up process is in."""

from __future__ import annotations

import base64
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

from vemgr.keeper.program import Program, room_for
from vemgr.kernel import netlink

_ANSWER_ROOM = 4096


def send(program: Program, example: str, value: Callable[[Any], str]) -> None:
    """Send a batch (`netlink.batch`), which `value` finds in a plan in base64, as long as `example` about."""
    one = program.constant(struct.pack("=i", 1))
    content = program.parameter(room_for(example), lambda plan: base64.b64decode(value(plan)))
    length, answer = program.number(lambda plan: len(base64.b64decode(value(plan)))), program.room(_ANSWER_ROOM)
    with program.descriptor() as rtnl:
        program.call("socket", socket.AF_NETLINK, socket.SOCK_RAW | os.O_CLOEXEC, socket.NETLINK_ROUTE, into=rtnl)
        for option in (netlink.NETLINK_CAP_ACK, netlink.NETLINK_EXT_ACK):
            program.call("setsockopt", rtnl, netlink.SOL_NETLINK, option, one, 4)
        program.call("netlink", rtnl, content, length, answer, _ANSWER_ROOM)
    program.release(length)
