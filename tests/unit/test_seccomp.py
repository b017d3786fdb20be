# SPDX-License-Identifier: GPL-2.0-or-later
"""The filter's program, run by an interpreter of classic BPF: what becomes of every number on every architecture."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vemgr.core import syscalls
from vemgr.core.config import parse_settings
from vemgr.core.errors import BadValue
from vemgr.kernel import seccomp

X86_64, I386, AARCH64, X32_BIT = 0xC000003E, 0x40000003, 0xC00000B7, 0x40000000  # linux/audit.h
ALLOW, ERRNO = 0x7FFF0000, 0x50000
TABLES = {arch: seccomp.table_of(arch) for arch in (X86_64, I386, AARCH64)}
NUMBERS = {arch: {name: nr for nr, name in names.items()} for arch, names in TABLES.items()}
DEFAULT = {arch: seccomp.assemble({arch: TABLES[arch]}, frozenset()) for arch in (X86_64, AARCH64)}


def answer(program, arch, nr, *arguments):
    """What the kernel does about a call: (the action, instructions run)."""
    data = struct.pack("=IIQ6Q", nr, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    instructions = list(struct.iter_unpack("=HBBI", program))
    at = accumulator = steps = 0
    while True:
        steps += 1
        code, if_true, if_false, value = instructions[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif code == 0x05:
            at += value
        elif code == 0x15:
            at += if_true if accumulator == value else if_false
        elif code == 0x35:
            at += if_true if accumulator >= value else if_false
        elif code == 0x45:
            at += if_true if accumulator & value else if_false
        else:
            assert code == 0x06
            return value, steps


@pytest.mark.parametrize("arch", DEFAULT, ids=hex)
@pytest.mark.parametrize("allow", [(), ("keyrings", "nesting"), syscalls.ALLOWABLE], ids=str)
def test_every_number_gets_what_the_table_says(arch, allow):
    program = seccomp.assemble({arch: TABLES[arch]}, frozenset(allow))
    refused = syscalls.refusals(frozenset(allow))
    for nr in range(1024):
        name = TABLES[arch].get(nr)
        if name in syscalls.CONDITIONS:
            continue
        expected = ALLOW if name is not None and name not in refused else ERRNO | refused.get(name, syscalls.ENOSYS)
        action, steps = answer(program, arch, nr)
        assert action == expected, (nr, name)
        assert steps < 16


def test_nothing_newer_than_what_somebody_has_thought_about():
    table = {**TABLES[X86_64], syscalls.NEWEST + 1: "brand_new", 4000: "newer_still"}
    program = seccomp.assemble({X86_64: table}, frozenset())
    for nr in (syscalls.NEWEST + 1, 4000, 2**31, 2**32 - 1):
        assert answer(program, X86_64, nr)[0] == ERRNO | syscalls.ENOSYS
    assert answer(program, X86_64, NUMBERS[X86_64]["fchmodat2"])[0] == ALLOW
    assert NUMBERS[X86_64]["fchmodat2"] == syscalls.NEWEST


def test_foreign_abis_are_refused_whole():
    """x32 has the architecture of x86-64 and numbers of its own; i386 is another architecture."""
    for nr in range(600):
        assert answer(DEFAULT[X86_64], X86_64, X32_BIT | nr)[0] == ERRNO | syscalls.ENOSYS
        assert answer(DEFAULT[X86_64], I386, nr)[0] == ERRNO | syscalls.ENOSYS
        assert answer(DEFAULT[AARCH64], 0x40000028, nr)[0] == ERRNO | syscalls.ENOSYS  # 32-bit ARM


def test_i386_is_opened_by_its_word_and_has_the_same_table():
    program = seccomp.assemble({arch: TABLES[arch] for arch in (X86_64, I386)}, frozenset({"i386"}))
    refused = syscalls.refusals(frozenset())
    for nr, name in TABLES[I386].items():
        if name not in syscalls.CONDITIONS:
            expected = ERRNO | refused[name] if name in refused else ALLOW
            assert answer(program, I386, nr)[0] == expected, name
    assert answer(program, X86_64, X32_BIT | 1)[0] == ERRNO | syscalls.ENOSYS
    assert answer(program, I386, NUMBERS[I386]["keyctl"])[0] == ERRNO | syscalls.ENOSYS


@pytest.mark.parametrize(("name", "arguments", "expected"), [
    ("socket", (1, 1, 0), 0), ("socket", (2, 3, 1), 0), ("socket", (10, 1, 0), 0), ("socket", (17, 3, 0), 0),
    ("socket", (16, 3, 0), 0), ("socket", (16, 3, 12), 0), ("socket", (16, 3, 9), syscalls.EPROTONOSUPPORT),
    ("socket", (40, 1, 0), syscalls.EAFNOSUPPORT), ("socket", (38, 5, 0), syscalls.EAFNOSUPPORT),
    ("socket", (44, 3, 0), syscalls.EAFNOSUPPORT), ("socketpair", (1, 1, 0), 0),
    ("socketpair", (30, 1, 0), syscalls.EAFNOSUPPORT),
    ("socket", (2, 0x80801, 6), 0), ("socket", (10, 0x80802, 17), 0), ("socket", (2, 3, 89), 0),
    ("socket", (2, 1, 262), 0), ("socket", (1, 5, 0), 0), ("socket", (17, 10, 0), 0),
    ("socket", (2, 1, 132), syscalls.EPROTONOSUPPORT), ("socket", (10, 0x80001, 132), syscalls.EPROTONOSUPPORT),
    ("socket", (2, 2, 115), syscalls.EPROTONOSUPPORT), ("socket", (10, 2, 33), syscalls.EPROTONOSUPPORT),
    ("socket", (2, 6, 0), syscalls.ESOCKTNOSUPPORT), ("socket", (10, 0x80805, 0), syscalls.ESOCKTNOSUPPORT),
    ("socket", (2, 10, 0), syscalls.ESOCKTNOSUPPORT), ("socketpair", (2, 6, 33), syscalls.EAFNOSUPPORT),
    ("ioctl", (0, 0x5413, 0), 0), ("ioctl", (0, 0x5412, 0), syscalls.EPERM), ("ioctl", (0, 0x541C, 0), syscalls.EPERM),
    ("ioctl", (0, 0x5423, 0), syscalls.EPERM), ("clone", (0x01200011,), 0), ("clone", (0x7FFF7FFF,), 0),
    ("clone", (0x8000,), syscalls.EINVAL), ("clone", (0x0120C011,), syscalls.EINVAL),
    ("prctl", (15, 0), 0), ("prctl", (35, 1), syscalls.EPERM),
    ("personality", (0,), 0), ("personality", (8,), 0), ("personality", (0xFFFFFFFF,), 0),
    ("personality", (0x0400000,), syscalls.EPERM), ("personality", (0x0040000,), syscalls.EPERM),
])
@pytest.mark.parametrize("arch", DEFAULT, ids=hex)
def test_arguments(arch, name, arguments, expected):
    """With anything in the upper half of a register, which the kernel does not look at (CVE-2019-10063)."""
    for high in (0, 1 << 32, 0xFFFFFFFF << 32):
        action, _ = answer(DEFAULT[arch], arch, NUMBERS[arch][name], *(high | argument for argument in arguments))
        assert action == (ERRNO | expected if expected else ALLOW), (high, arguments)


@given(st.sampled_from(sorted(DEFAULT)), st.integers(0, 2**32 - 1), st.lists(st.integers(0, 2**64 - 1), max_size=6))
def test_any_call_gets_an_answer(arch, nr, arguments):
    action, _ = answer(DEFAULT[arch], arch, nr, *arguments)
    assert action == ALLOW or ERRNO < action < ERRNO + 200


def test_it_is_small():
    """The kernel checks and translates it for every process that enters a VE: libseccomp wrote 841 instructions."""
    assert len(DEFAULT[X86_64]) // 8 < 256
    assert len(DEFAULT[AARCH64]) // 8 < 256


def test_every_refused_name_exists_somewhere():
    """A name that is misspelt refuses nothing. PowerPC's and Alpha's are the exceptions."""
    known = {name for names in TABLES.values() for name in names.values()}
    assert set(syscalls.refusals(frozenset())) - known <= {"pciconfig_iobase", "pciconfig_read", "pciconfig_write"}


def test_a_policy_has_a_name_of_its_own():
    digests = {seccomp.digest(frozenset(allow)) for allow in ((), ("i386",), ("nesting",), ("i386", "nesting"))}
    assert len(digests) == 4


def test_the_setting():
    assert parse_settings({"allow": "nesting, i386"}).allow == ("i386", "nesting")
    assert parse_settings({"allow": ""}).allow == ()
    with pytest.raises(BadValue, match="bpf"):
        parse_settings({"allow": "nesting,bpf"})
    assert parse_settings({"user-namespaces": "0"}).user_namespaces == 0
