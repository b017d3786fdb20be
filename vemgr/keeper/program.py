# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs of system calls, as the spawner executes them (spawner.c): encoded here, without a policy of their own.

A program is straight on, but for failures that are expected: each call may name up to two errors, and how many calls
each of them skips. Arguments are numbers, bytes (a pointer to them, with a zero byte behind), `Data` and `Register`.

Building and encoding one takes milliseconds, so it is done once for all VEs that differ in values only: these are
parameters, which `Encoded.fill` puts in.
"""

from __future__ import annotations

import contextlib
import errno
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NewType

from vemgr.kernel.libc import number
from vemgr.kernel.namespaces import CLONE_PARENT

# What a program is made of beside system calls; the numbers are those of spawner.c.
_SPECIAL = {
    "load32": -1, "store32": -2, "store64": -3, "decimal": -4, "clone": -5, "wait": -6, "netlink": -7, "same": -8,
    "equal": -9, "exit": -10, "stay": -11, "jump": -12, "report_to": -13,
}
_OPERATION = struct.Struct("<hBBHH3B6B7x6q")
_HEADER = struct.Struct("<IIII")
_NOWHERE = 255
_REGISTERS = 96
_LONGEST_SKIP = 255
_ANY_ERROR = 0x7FFF
_SIGCHLD = 17
_IMMEDIATE, _DATA, _REGISTER = 0, 1, 2

Register = NewType("Register", tuple[int])  # a tuple, so that it is told from a number without a class of its own


@dataclass(frozen=True, slots=True)
class Data:
    """`offset`: in the program's data, or with `scratch` in what lies behind it."""

    offset: int
    scratch: bool = False

    def plus(self, bytes_: int) -> Data:
        return Data(self.offset + bytes_, self.scratch)


Value = Callable[[Any], bytes]
Argument = int | bytes | Data | Register

ANY_ERROR = -1
CHANNEL, CGROUP = Register((0,)), Register((1,))  # given by the spawner: descriptors


class Encoded:
    """A program without its parameters."""

    def __init__(self, content: bytes, parameters: list[tuple[int, int, Value]],
                 steps: list[tuple[int, str | int]]) -> None:
        self._content = content
        self._parameters = parameters
        self._steps = steps

    def fill(self, plan: Any) -> bytearray:
        """The program for one VE. Raises `OSError` ENAMETOOLONG."""
        program = bytearray(self._content)
        for offset, size, value in self._parameters:
            content = value(plan)
            if len(content) > size:
                raise OSError(errno.ENAMETOOLONG, f"longer than {size} bytes", content.decode(errors="replace"))
            program[offset:offset + len(content)] = content
        return program

    def subject(self, position: int) -> str | int:
        """The step that the call at `position` belongs to."""
        found: str | int = ""
        for first, subject in self._steps:
            if first > position:
                break
            found = subject
        return found


class _Call:
    """`errors`: up to two, with the call to go on with after each."""

    __slots__ = ("arguments", "errors", "into", "log", "number", "on_success")

    def __init__(self, number_: int, arguments: tuple[Argument, ...], into: Register | None,
                 log: Register | None) -> None:
        self.number = number_
        self.arguments = arguments
        self.into = into
        self.log = log
        self.errors: list[tuple[int, int]] = []
        self.on_success = 0


class Program:
    """Built call by call, then encoded. `step` names what a range of calls is about, for who reads a failure."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._data = bytearray()
        self._known: dict[bytes, Data] = {}
        self._scratch = 0
        self._registers = 2
        self._free: list[Register] = []
        self._steps: list[tuple[int, str | int]] = []
        self._parameters: list[tuple[int, int, Value]] = []

    def step(self, subject: str | int) -> None:
        """What follows is about this: text, or the number of an operation."""
        self._steps.append((len(self._calls), subject))

    def parameter(self, size: int, value: Value) -> Data:
        """`size` bytes that are different for each VE; `value` says which, of its plan."""
        found = self.buffer(bytes(size))
        self._parameters.append((found.offset, size, value))
        return found

    def number(self, value: Callable[[Any], int]) -> Register:
        """A number that is different for each VE, of 32 bits."""
        register = self.register()
        place = self.parameter(4, lambda plan: struct.pack("=I", value(plan)))
        self.call("load32", place, into=register)
        return register

    def register(self) -> Register:
        if self._free:
            return self._free.pop()
        if self._registers >= _REGISTERS:
            raise OverflowError("the program needs more registers than there are")
        self._registers += 1
        return Register((self._registers - 1,))

    @contextlib.contextmanager
    def descriptor(self) -> Iterator[Register]:
        """A register for a descriptor that is closed at the end of the block."""
        register = self.register()
        yield register
        self.call("close", register)
        self._free.append(register)

    @contextlib.contextmanager
    def optional_descriptor(self) -> Iterator[Register]:
        """The same; if the first call of the block says that there is no such file, nothing of it happens."""
        first = self.position
        with self.descriptor() as register:
            yield register
        self.expect(first, errno.ENOENT)

    def release(self, *registers: Register) -> None:
        self._free += registers

    def call(self, name: str, *arguments: Argument, into: Register | None = None, log: Register | None = None) -> int:
        """Append a call; returns its position. `log`: what to read for the kernel's explanation of a failure."""
        special = _SPECIAL.get(name)
        self._calls.append(_Call(number(name) if special is None else special, arguments, into, log))
        return len(self._calls) - 1

    @property
    def position(self) -> int:
        """Of the next call."""
        return len(self._calls)

    @contextlib.contextmanager
    def forked(self, pid: Register, flags: int = 0, pidfd: Data | None = None) -> Iterator[None]:
        """The block is done by a child, which then ends: clone3(2) with `flags`. It gets a copy of all registers."""
        arguments = self.buffer(struct.pack("=11Q", flags, 0, 0, 0, 0 if flags & CLONE_PARENT else _SIGCHLD,
                                            0, 0, 0, 0, 0, 0))
        if pidfd is not None:
            self.call("store64", arguments.plus(8), pidfd)
        self.call("clone", arguments, 88, self.position + 2, into=pid)
        jump = self.call("jump", 0)
        yield
        self.call("exit", 0)
        self.land(jump)

    def land(self, jump: int) -> None:
        """The target of the call "jump" at position `jump` is here."""
        self._calls[jump].arguments = (self.position,)

    def expect(self, call: int, error: int) -> None:
        """If `call` fails with `error` (or with any, for `ANY_ERROR`), go on here."""
        self._calls[call].errors.append((_ANY_ERROR if error == ANY_ERROR else error, self.position))

    def else_(self, call: int) -> None:
        """If `call` succeeds, go on here: what is between is for its expected failure."""
        self._calls[call].on_success = self.position - call - 1

    def constant(self, content: bytes) -> Data:
        """Constant data; the same is there once. Aligned for any structure."""
        found = self._known.get(content)
        if found is None:
            found = self._known[content] = self.buffer(content)
        return found

    def buffer(self, content: bytes) -> Data:
        """Data that the program changes."""
        found = Data(len(self._data))
        self._data += content
        self._data += bytes(-len(self._data) % 8)
        return found

    def room(self, size: int) -> Data:
        """Bytes of any content, behind the program."""
        found = Data(self._scratch, scratch=True)
        self._scratch += size + -size % 8
        return found

    def pointers(self, targets: list[bytes]) -> Data:
        """An array of pointers with a null at its end, as argv is."""
        array = self.room(8 * (len(targets) + 1))
        for position, target in enumerate(targets):
            self.call("store64", array.plus(8 * position), target)
        self.call("store64", array.plus(8 * len(targets)), 0)
        return array

    def encode(self) -> Encoded:
        """The program as the spawner takes it. Raises `OverflowError` when a skip is too long."""
        for call in self._calls:
            for argument in call.arguments:
                if isinstance(argument, bytes):
                    self.constant(argument + b"\0")
        base = _HEADER.size + _OPERATION.size * len(self._calls)
        size = base + len(self._data)
        behind = size + -size % 8
        code = b"".join(self._encode(position, call, base, behind) for position, call in enumerate(self._calls))
        data = bytes(self._data) + bytes(behind - size)
        content = _HEADER.pack(len(self._calls), behind, self._scratch, 0) + code + data
        return Encoded(content, [(base + offset, size, value) for offset, size, value in self._parameters], self._steps)

    def _encode(self, position: int, call: _Call, base: int, behind: int) -> bytes:
        kinds, values = [0] * 6, [0] * 6
        for index, argument in enumerate(call.arguments):
            if isinstance(argument, int):
                values[index] = argument
            elif isinstance(argument, tuple):
                kinds[index], values[index] = _REGISTER, argument[0]
            else:
                data = self._known[argument + b"\0"] if isinstance(argument, bytes) else argument
                assert isinstance(data, Data)
                kinds[index], values[index] = _DATA, data.offset + (behind if data.scratch else base)
        errors = [*call.errors, (0, 0), (0, 0)][:2]
        skips = [max(0, target - position - 1) for _, target in errors]
        if max(*skips, call.on_success) > _LONGEST_SKIP:
            raise OverflowError(f"call {position} skips more than {_LONGEST_SKIP} calls")
        into = _NOWHERE if call.into is None else call.into[0]
        log = _NOWHERE if call.log is None else call.log[0]
        return _OPERATION.pack(call.number, into, log, errors[0][0], errors[1][0], *skips, call.on_success, *kinds,
                               *values)


def encoded(text: str) -> bytes:
    """Surrogates are the bytes that they stand for (PEP 383). Raises `OSError`."""
    encoded = text.encode("utf-8", "surrogateescape")
    if b"\0" in encoded:
        raise OSError(errno.EINVAL, "a zero byte in a text", text)
    return encoded


def room_for(text: str) -> int:
    """Bytes for a parameter whose value is now `text`, and in other VEs about as long."""
    return max(64, 1 << len(encoded(text)).bit_length())
