# SPDX-License-Identifier: GPL-2.0-or-later
"""Sending finished rtnetlink messages, with the standard library alone.

The process that sets a VE's network up runs in the VE's namespace and must stay small: importing pyroute2 costs
180 ms there, this module nothing that is not loaded already. The daemon encodes the messages
(`vemgr.kernel.network.inside_messages`), this end only sends them and reads the verdicts.

Wire format: netlink(7), rtnetlink(7), and the kernel's Documentation/userspace-api/netlink/intro.rst.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

NLMSG_ERROR = 2
NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200
NLMSGERR_ATTR_MSG = 1

SOL_NETLINK = 270
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11

#: struct nlmsghdr: length of the whole message, type, flags, sequence number, port id
HEADER = struct.Struct("=IHHII")
#: struct nlattr: length with this header, type
ATTRIBUTE = struct.Struct("=HH")
ERRNO = struct.Struct("=i")

#: Only the types that the daemon puts into a batch need a name; any other is shown as a number.
MESSAGE_NAMES = {16: "RTM_NEWLINK", 17: "RTM_DELLINK", 19: "RTM_SETLINK", 20: "RTM_NEWADDR", 24: "RTM_NEWROUTE"}


def send_batch(messages: list[bytes]) -> None:
    """Send each rtnetlink message in the current network namespace and wait for the kernel's verdict on it.

    Length, sequence number, port and the request and acknowledge flags of each header are filled in here. Stops at
    the first message that is refused: those before it have taken effect, those after it were not sent.

    Raises OSError with the kernel's errno and, as its message, the type of the message that failed and the kernel's
    own explanation; ValueError for bytes that are no single netlink message.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as rtnl:
        # The kernel answers inside sendto(), so a wait means something is badly wrong: fail, do not hang a start.
        rtnl.settimeout(5)
        rtnl.bind((0, 0))
        rtnl.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        rtnl.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        for sequence, message in enumerate(messages, start=1):
            rtnl.send(with_header(message, sequence))
            check(rtnl, sequence, kind_of(message))


def kind_of(message: bytes) -> int:
    """The type in a message's header. Raises ValueError for bytes that are no single netlink message."""
    if len(message) < HEADER.size or HEADER.unpack_from(message)[0] != len(message):
        raise ValueError(f"not a netlink message: {message[:HEADER.size].hex()}")
    return int(HEADER.unpack_from(message)[1])


def with_header(message: bytes, sequence: int, *, acknowledge: bool = True) -> bytes:
    """The message as it is sent: our sequence number, and a request that wants an acknowledgement. Without one the
    kernel answers a failure only."""
    kind = kind_of(message)
    flags = HEADER.unpack_from(message)[2] & ~NLM_F_ACK | NLM_F_REQUEST | (NLM_F_ACK if acknowledge else 0)
    return HEADER.pack(len(message), kind, flags, sequence, 0) + message[HEADER.size :]


def check(rtnl: socket.socket, sequence: int, kind: int) -> None:
    """Read answers until the one to `sequence`; raises OSError unless it says 0."""
    while True:
        answer = rtnl.recv(65536)
        _, answer_kind, flags, answered, _ = HEADER.unpack_from(answer)
        if answer_kind == NLMSG_ERROR and answered == sequence:
            break
    code = -ERRNO.unpack_from(answer, HEADER.size)[0]
    if code:
        name = MESSAGE_NAMES.get(kind, f"rtnetlink message {kind}")
        why = explanation(answer, flags) or os.strerror(code)
        raise OSError(code, f"{name}: {why}")


def failure_text(answer: bytes) -> str:
    """What an error answer is about, and why: "RTM_NEWADDR: Invalid argument". Empty for what is none."""
    if len(answer) < 2 * HEADER.size + ERRNO.size:
        return ""
    _, _, flags, _, _ = HEADER.unpack_from(answer)
    kind = HEADER.unpack_from(answer, HEADER.size + ERRNO.size)[1]
    code = -ERRNO.unpack_from(answer, HEADER.size)[0]
    name = MESSAGE_NAMES.get(kind, f"rtnetlink message {kind}")
    return f"{name}: {explanation(answer[:HEADER.unpack_from(answer)[0]], flags) or os.strerror(code)}"


def explanation(answer: bytes, flags: int) -> str:
    """The kernel's text in an error answer (extended acknowledgement), empty if it gave none."""
    if not flags & NLM_F_ACK_TLVS:
        return ""
    # After errno comes the header of the message complained about, and its body too unless the answer is capped.
    begin = HEADER.size + ERRNO.size
    complaint = HEADER.unpack_from(answer, begin)[0]
    begin += HEADER.size if flags & NLM_F_CAPPED else align(complaint)
    for kind, value in attributes(answer[begin:]):
        if kind == NLMSGERR_ATTR_MSG:
            return value.rstrip(b"\0").decode(errors="replace")
    return ""


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes in `data` as (type, value)."""
    at = 0
    while at + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, at)
        if length < ATTRIBUTE.size:
            return
        yield kind, data[at + ATTRIBUTE.size : at + length]
        at += align(length)


def align(length: int) -> int:
    """Netlink pads headers and attributes to 4 bytes."""
    return (length + 3) & ~3
