# SPDX-License-Identifier: GPL-2.0-or-later
"""Classic BPF on a socket: the kernel passes over what is none of our business, and nobody is woken for it.

Instructions: Documentation/networking/filter.rst; the ancillary data (`AD_...`): linux/filter.h.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Sequence

SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
LOAD_WORD, LOAD_HALF, LOAD_BYTE = 0x20, 0x28, 0x30
LOAD_WORD_AT_X, LOAD_BYTE_AT_X, LOAD_IMMEDIATE, LOAD_X_IMMEDIATE = 0x40, 0x50, 0x00, 0x01
JUMP_EQUAL, RETURN, COPY_TO_X = 0x15, 0x06, 0x07
_AD = 0xFFFFF000
#: Loads the place of the netlink attribute of type X from the place in A on, 0 for none.
AD_ATTRIBUTE = _AD + 12
#: Loads whether the frame had a VLAN tag, which the kernel has taken off already.
AD_VLAN_TAGGED = _AD + 48
PASS, DROP = 0xFFFFFFFF, 0

#: struct sock_filter: code, jump if true, jump if false, operand
_INSTRUCTION = struct.Struct("=HBBI")
Instruction = tuple[int, int, int, int]


def attach(to: socket.socket, program: Sequence[Instruction]) -> None:
    """From now on `to` receives only what `program` returns other than 0 for. Raises OSError."""
    code = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*instruction) for instruction in program))
    to.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(code)))
