# SPDX-License-Identifier: GPL-2.0-or-later
"""The system call filter of a VE: seccomp(2), made by the daemon of `core.syscalls`, installed by who enters a VE.

The numbers are libseccomp's; what it does not know is refused. The program is our own: a binary search over ranges of
numbers, a quarter of what libseccomp writes (the kernel translates it anew for every process that enters a VE), and
arguments are compared by their lower half, which is all that the kernel looks at (CVE-2019-10063 passed the upper).
"""

from __future__ import annotations

import ctypes
import platform
import struct
from itertools import groupby

from vemgr.core import syscalls
from vemgr.core.syscalls import ENOSYS, Condition
from vemgr.kernel.libc import number, syscall

SECCOMP_SET_MODE_FILTER = 1
# linux/bpf_common.h
_LOAD, _JUMP, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _RETURN = 0x20, 0x05, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NR, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data, for little-endian machines
_FARTHEST = 255  # a conditional jump has 8 bits

Code = bytes
"""Instructions of classic BPF, 8 bytes each."""


def compile_filter(allow: frozenset[str] = frozenset()) -> Code:
    """The filter of a VE for whose setting `allow` opens what is named."""
    return assemble(tables(allow), allow)


def tables(allow: frozenset[str] = frozenset()) -> dict[int, dict[int, str]]:
    """The system calls that libseccomp knows, by number, for each architecture that a program in a VE may have."""
    import pyseccomp  # noqa: PLC0415  (only the daemon compiles; the keeper must stay small)

    native = pyseccomp.system_arch()
    arches = [native]
    if native == pyseccomp.Arch.X86_64 and syscalls.I386 in allow:
        arches.append(pyseccomp.Arch.X86)
    return {arch: table_of(arch) for arch in arches}


def table_of(arch: int) -> dict[int, str]:
    import pyseccomp  # noqa: PLC0415

    names = {}
    for nr in range(syscalls.NEWEST + 1):
        try:
            names[nr] = pyseccomp.resolve_syscall(arch, nr).decode()
        except ValueError:
            continue
    return names


def assemble(tables_: dict[int, dict[int, str]], allow: frozenset[str]) -> Code:
    """`tables_`: of each architecture, by its AUDIT_ARCH, the names by number. Every other architecture is refused, and
    so are the calls of x32, which has the architecture of x86-64 and numbers of its own."""
    refused = syscalls.refusals(allow)
    code = _instruction(_LOAD, _ARCH)
    for arch, names in tables_.items():
        actions = [_action(names.get(nr), refused, allow) for nr in range(syscalls.NEWEST + 1)]
        actions.append(_return(_ERRNO | ENOSYS))
        starts = [(next(group)[0], action) for action, group in groupby(enumerate(actions), key=lambda pair: pair[1])]
        block = _instruction(_LOAD, _NR) + _search(starts)
        code += _instruction(_IF_EQUAL, arch, 1, 0) + _instruction(_JUMP, _length(block)) + block
    return code + _return(_ERRNO | ENOSYS)


def _action(name: str | None, refused: dict[str, int], allow: frozenset[str]) -> Code:
    if name is None:
        return _return(_ERRNO | ENOSYS)
    if name in refused:
        return _return(_ERRNO | refused[name])
    conditions = (condition for condition in syscalls.CONDITIONS.get(name, ()) if condition.allow not in allow)
    return b"".join(map(_check, conditions)) + _return(_ALLOW)


def _check(condition: Condition) -> Code:
    """Return the errno where the condition does not hold, else go on behind."""
    count, compare = len(condition.values), _IF_ANY_BIT if condition.bits else _IF_EQUAL
    code = _instruction(_LOAD, _ARGUMENTS + 8 * condition.position)
    for left, value in zip(range(count - 1, -1, -1), condition.values, strict=True):
        # Behind the comparisons are the failure and, where one of the values is bad, a jump past it for all others.
        code += _instruction(compare, value, left + 1, 0)
    if condition.inverted:
        code += _instruction(_JUMP, 1)
    code += _return(_ERRNO | condition.errno)
    if condition.only_if is not None:
        argument, value = condition.only_if
        code = (_instruction(_LOAD, _ARGUMENTS + 8 * argument) + _instruction(_IF_EQUAL, value, 0, _length(code))
                + code)
    return code


def _search(starts: list[tuple[int, Code]]) -> Code:
    """Decide on the loaded number by halves. `starts`: the first number of each range, and what is done about it."""
    if len(starts) == 1:
        return starts[0][1]
    middle = len(starts) // 2
    below, above = _search(starts[:middle]), _search(starts[middle:])
    pivot, far = starts[middle][0], _length(below)
    if far <= _FARTHEST:
        return _instruction(_IF_AT_LEAST, pivot, far, 0) + below + above
    return _instruction(_IF_AT_LEAST, pivot, 0, 1) + _instruction(_JUMP, far) + below + above


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> Code:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _return(action: int) -> Code:
    return _instruction(_RETURN, action)


def _length(code: Code) -> int:
    return len(code) // 8


def digest(allow: frozenset[str] = frozenset()) -> str:
    """Names the policy: a filter that was compiled is good as long as this does not change."""
    import hashlib  # noqa: PLC0415

    policy = (syscalls.NEWEST, syscalls.REFUSED, syscalls.CONDITIONS, sorted(allow), platform.machine())
    return hashlib.sha256(repr(policy).encode()).hexdigest()[:16]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def install(filter_: bytes) -> None:
    """Put this process and all its descendants under `filter_`; needs CAP_SYS_ADMIN in its user namespace."""
    buffer = ctypes.create_string_buffer(filter_, len(filter_))
    program = _Program(len(filter_) // 8, ctypes.addressof(buffer))
    syscall("seccomp", number("seccomp"), SECCOMP_SET_MODE_FILTER, 0, ctypes.byref(program))
