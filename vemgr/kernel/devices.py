# SPDX-License-Identifier: GPL-2.0-or-later
"""Device access of a VE: a BPF program on its cgroup (bpf(2), cgroup v2 "Device controller").

cgroup v2 has no devices.allow file; a program of type BPF_PROG_TYPE_CGROUP_DEVICE decides each mknod and open.
One program serves every VE with the same rules, so a start costs one BPF_PROG_ATTACH.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from dataclasses import dataclass

from vemgr.kernel.libc import number, syscall

BPF_PROG_ATTACH = 8
BPF_PROG_LOAD = 5
BPF_CGROUP_DEVICE = 6
BPF_F_ALLOW_MULTI = 2
BPF_PROG_TYPE_CGROUP_DEVICE = 15
_LOAD_ATTEMPTS = 5
_ACCESS = {"m": 1, "r": 2, "w": 4}
_TYPE = {"b": 1, "c": 2}


@dataclass(frozen=True)
class DeviceRule:
    """Allow `access` (letters of "rwm") to a device; `minor` None means every minor of `major`."""

    kind: str
    major: int
    minor: int | None
    access: str = "rwm"


# What every VE may use. mknod matters only for our own set-up process: a user namespace cannot make device nodes.
DEFAULT_RULES = (
    DeviceRule("c", 1, 3),  # null
    DeviceRule("c", 1, 5),  # zero
    DeviceRule("c", 1, 7),  # full
    DeviceRule("c", 1, 8),  # random
    DeviceRule("c", 1, 9),  # urandom
    DeviceRule("c", 5, 0),  # tty
    DeviceRule("c", 5, 1, "rw"),  # console
    DeviceRule("c", 5, 2, "rw"),  # ptmx
    DeviceRule("c", 136, None, "rw"),  # pts
)


def _insn(code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    return struct.pack("<BBhi", code, src << 4 | dst, off, imm)


def assemble(rules: tuple[DeviceRule, ...]) -> bytes:
    """The program as BPF instructions: return 1 on the first rule that fits, else 0 (the kernel then says EPERM)."""
    ldxw, mov_imm, mov_reg, and_imm, rsh_imm, jne_imm, leave = 0x61, 0xB7, 0xBF, 0x57, 0x77, 0x55, 0x95
    program = [
        _insn(ldxw, 2, 1, 0),  # r2 = access << 16 | type (struct bpf_cgroup_dev_ctx)
        _insn(ldxw, 4, 1, 4),  # r4 = major
        _insn(ldxw, 5, 1, 8),  # r5 = minor
        _insn(mov_reg, 3, 2),
        _insn(and_imm, 3, imm=0xFFFF),
        _insn(rsh_imm, 2, imm=16),
    ]
    for rule in rules:
        mask = sum(_ACCESS[letter] for letter in rule.access)
        tests = [(3, _TYPE[rule.kind]), (4, rule.major)]
        if rule.minor is not None:
            tests.append((5, rule.minor))
        block = [_insn(mov_reg, 6, 2), _insn(and_imm, 6, imm=~mask)]
        tests.append((6, 0))
        length = len(block) + len(tests) + 2
        for position, (register, value) in enumerate(tests):
            # A jump skips to the next rule: the rest of the tests and the two instructions that allow.
            block.append(_insn(jne_imm, register, off=length - (2 + position) - 1, imm=value))
        block += [_insn(mov_imm, 0, imm=1), _insn(leave)]
        program += block
    program += [_insn(mov_imm, 0, imm=0), _insn(leave)]
    return b"".join(program)


class DevicePolicy:
    """A loaded device program; close it when the daemon ends (cgroups keep their own reference)."""

    def __init__(self, rules: tuple[DeviceRule, ...] = DEFAULT_RULES) -> None:
        code = ctypes.create_string_buffer(assemble(rules))
        licence = ctypes.create_string_buffer(b"GPL")
        attr = struct.pack("=IIQQIIQI", BPF_PROG_TYPE_CGROUP_DEVICE, (len(code) - 1) // 8,
                           ctypes.addressof(code), ctypes.addressof(licence), 0, 0, 0, 0)
        self._fd = _load(attr)
        os.set_inheritable(self._fd, False)

    def attach(self, cgroup_fd: int, more: tuple[DeviceRule, ...] = ()) -> None:
        """Enforce the policy on a cgroup from now on. `more`: rules that this one has beside the policy's. Raises
        `OSError`."""
        if more:
            policy = DevicePolicy(DEFAULT_RULES + more)
            try:
                policy.attach(cgroup_fd)
            finally:
                policy.close()
            return
        attr = struct.pack("=IIII", cgroup_fd, self._fd, BPF_CGROUP_DEVICE, BPF_F_ALLOW_MULTI)
        _bpf("bpf(BPF_PROG_ATTACH)", BPF_PROG_ATTACH, attr)

    def close(self) -> None:
        os.close(self._fd)


class InheritedPolicy:
    """In a VE: nobody there loads such programs, and the one on its own cgroup holds for all below."""

    def attach(self, cgroup_fd: int, more: tuple[DeviceRule, ...] = ()) -> None:
        """Nothing is to be done."""

    def close(self) -> None:
        """Nothing is open."""


def _load(attr: bytes) -> int:
    for _ in range(_LOAD_ATTEMPTS - 1):
        # The kernel's verifier gives up with EAGAIN when a signal arrives; libbpf tries again as often.
        with contextlib.suppress(BlockingIOError):
            return _bpf("bpf(BPF_PROG_LOAD)", BPF_PROG_LOAD, attr)
    return _bpf("bpf(BPF_PROG_LOAD)", BPF_PROG_LOAD, attr)


def _bpf(call: str, command: int, attr: bytes) -> int:
    buffer = ctypes.create_string_buffer(attr, 128)
    return syscall(call, number("bpf"), command, ctypes.byref(buffer), 128)
