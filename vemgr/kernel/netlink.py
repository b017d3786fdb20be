# SPDX-License-Identifier: GPL-2.0-or-later
"""Netlink messages by hand, with the standard library alone: for what is done at each start of a VE.

The process that sets a VE's network up runs in the VE's namespace and must stay small: importing pyroute2 costs
180 ms there, this module nothing that is not loaded already. The daemon encodes the messages
(`vemgr.kernel.veth`), this end only sends them and reads the verdicts.

Wire format: netlink(7), rtnetlink(7), and the kernel's Documentation/userspace-api/netlink/intro.rst.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence

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
MESSAGE_NAMES = {16: "RTM_NEWLINK", 17: "RTM_DELLINK", 19: "RTM_SETLINK", 20: "RTM_NEWADDR", 24: "RTM_NEWROUTE",
                 2572: "NFT_MSG_NEWSETELEM", 2574: "NFT_MSG_DELSETELEM"}


class Requests:
    """A netlink socket of the namespace in which it is made. Raises OSError."""

    def __init__(self, protocol: int = socket.NETLINK_ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        try:
            self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
            self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        except OSError:
            self._socket.close()
            raise
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def send(self, messages: Sequence[bytes], acknowledged: int = -1) -> None:
        """Send messages with one system call and read the kernel's verdict on all.

        Sequence number, port and the request flag of each header are filled in here. The kernel goes on after a
        message that it refuses. Raises OSError for the first of those, with the kernel's errno and, as its message,
        the type of the message and the kernel's own explanation; ValueError for bytes that are no single netlink
        message.

        An error is always answered, success by the message `acknowledged` alone, which saves a call for each. (The
        last but one of an nf_tables transaction, whose end is not answered before Linux 6.10.)
        """
        if not messages:
            return
        first = self._sequence + 1
        self._sequence += len(messages)
        awaited = acknowledged % len(messages)
        self._socket.send(batch(messages, first, awaited))
        check(self._socket, first, len(messages), awaited)


def batch(messages: Sequence[bytes], first: int = 1, acknowledged: int = -1) -> bytes:
    """Messages as one datagram, numbered from `first`; success is answered for one of them only."""
    awaited = acknowledged % len(messages)
    return b"".join(with_header(message, first + position, acknowledge=position == awaited)
                    for position, message in enumerate(messages))


def send_batch(messages: Sequence[bytes]) -> None:
    """As `Requests.send`, in the current network namespace."""
    requests = Requests()
    try:
        requests.send(messages)
    finally:
        requests.close()


def kind_of(message: bytes) -> int:
    """The type in a message's header. Raises ValueError for bytes that are no single netlink message."""
    if len(message) < HEADER.size or HEADER.unpack_from(message)[0] != len(message):
        raise ValueError(f"not a netlink message: {message[:HEADER.size].hex()}")
    return int(HEADER.unpack_from(message)[1])


def with_header(message: bytes, sequence: int, *, acknowledge: bool = True) -> bytes:
    """The message as it is sent, padded: our sequence number, and a request that wants an acknowledgement. Without one
    the kernel answers a failure only."""
    kind = kind_of(message)
    flags = HEADER.unpack_from(message)[2] & ~NLM_F_ACK | NLM_F_REQUEST | (NLM_F_ACK if acknowledge else 0)
    return pad(HEADER.pack(len(message), kind, flags, sequence, 0) + message[HEADER.size :])


def check(answers: socket.socket, first: int, count: int, awaited: int = -1) -> None:
    """Read the answers to `count` messages, numbered from `first` on, up to that to number `awaited` of them.

    Raises OSError for the first error.
    """
    failure: OSError | None = None
    while True:
        try:
            # The kernel has done its work inside send(): what is not there now will not come.
            answer = answers.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            raise failure or TimeoutError(errno.ETIMEDOUT, "no answer from the kernel") from None
        _, kind, _, answered, _ = HEADER.unpack_from(answer)
        position = answered - first
        if kind != NLMSG_ERROR or not 0 <= position < count:
            continue
        code = -ERRNO.unpack_from(answer, HEADER.size)[0]
        if code and failure is None:
            failure = OSError(code, failure_text(answer))
        if position == awaited % count:
            break
    if failure is not None:
        raise failure


def failure_text(answer: bytes) -> str:
    """What an error answer is about, and why: "RTM_NEWADDR: Invalid argument". Empty for what is none."""
    if len(answer) < 2 * HEADER.size + ERRNO.size:
        return ""
    _, _, flags, _, _ = HEADER.unpack_from(answer)
    kind = HEADER.unpack_from(answer, HEADER.size + ERRNO.size)[1]
    code = -ERRNO.unpack_from(answer, HEADER.size)[0]
    name = MESSAGE_NAMES.get(kind, f"netlink message {kind}")
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


def message(kind: int, body: bytes, flags: int = 0) -> bytes:
    """A message without a sequence number, which it gets when it is sent."""
    return HEADER.pack(HEADER.size + len(body), kind, flags | NLM_F_REQUEST | NLM_F_ACK, 0, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return pad(ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + value)


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def number(kind: int, value: int) -> bytes:
    """A 32-bit number in the host's byte order."""
    return attribute(kind, struct.pack("=I", value))


def pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def align(length: int) -> int:
    """Netlink pads headers and attributes to 4 bytes."""
    return (length + 3) & ~3
