# SPDX-License-Identifier: GPL-2.0-or-later
"""Kill a process at its N-th system call, counted over all its threads (ptrace(2)).

`strace -e inject=all:signal=KILL:when=N` does not do: it counts each system call by its name and each thread apart, so
N is the first of them of which there have been N, and most points are never reached.

SIGKILL comes at the entry of the call, which then is not carried out (ptrace(2), "Syscall-stops"): the world is as the
calls before it have left it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import select
import signal
import struct
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import pyseccomp

_CONT, _SYSCALL_STOPS, _SEIZE, _INTERRUPT, _GET_SYSCALL_INFO = 7, 24, 0x4206, 0x4207, 0x420E
_TRACESYSGOOD, _FOLLOW = 1, 0x2 | 0x4 | 0x8  # fork, vfork, clone
_EVENT_STOP = 128
_SYSCALL_STOP = signal.SIGTRAP | 0x80
_ENTRY = 1
_WALL = 0x40000000
_LONGEST = 60  # seconds

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long
_info = ctypes.create_string_buffer(88)


@dataclass
class Traced:
    """`calls`: how many were counted. `killed`: the process that was killed at the last of them, 0 if the work came to
    its end untouched. `call`: the name of that system call."""

    calls: int = 0
    killed: int = 0
    call: str = ""


def trace(pid: int, at: int, begin: Callable[[], object], finished: Callable[[], bool], wake: int | None = None, *,
          children: Sequence[int] | None = None) -> Traced:
    """Let process `pid` work from `begin` until `finished`, and kill it when it enters its call number `at`.

    With `children` these and all that are born meanwhile, of them and of `pid`, are counted together, and the one that
    makes the call is killed; `pid` itself is left alone. `wake` is a descriptor whose readiness means that `finished`
    is worth asking.

    In a process of its own, whose end lets go of all that it has traced. Raises `TimeoutError`.
    """
    reader, writer = os.pipe()
    tracer = os.fork()
    if tracer == 0:
        try:
            os.close(reader)
            result = _Tracer(pid, at, children).run(begin, finished, wake)
            os.write(writer, json.dumps(asdict(result)).encode())
        except BaseException as error:
            os.write(writer, json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        told = json.loads(file.read() or b'{"error": "the tracer died"}')
    os.waitpid(tracer, 0)
    if "error" in told:
        raise TimeoutError(f"it does not come to an end under the tracer: {told['error']}")
    return Traced(**told)


class _Tracer:
    def __init__(self, pid: int, at: int, children: Sequence[int] | None) -> None:
        self._pid = pid
        self._at = at
        self._children = children is not None
        self._others = children or ()
        self._result = Traced()

    def run(self, begin: Callable[[], object], finished: Callable[[], bool], wake: int | None) -> Traced:
        signal.alarm(_LONGEST)
        woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._seize()
        begin()
        descriptors = [woken] if wake is None else [woken, wake]
        while not self._result.killed and not finished():
            try:
                tid, status = os.waitpid(-1, os.WNOHANG | _WALL)
            except ChildProcessError:
                break  # all that we traced has ended by itself
            if tid:
                self._on_change(tid, status)
            else:
                select.select(descriptors, [], [], 0.02 if wake is None else 1.0)
                _drain(woken)
        return self._result

    def _seize(self) -> None:
        """All threads, each stopped and set going again, so that its next system call is reported."""
        options = _TRACESYSGOOD | _FOLLOW if self._children else _TRACESYSGOOD | 0x8
        threads = [int(name) for name in os.listdir(f"/proc/{self._pid}/task")] + [*self._others]
        for tid in threads:
            _ptrace(_SEIZE, tid, options)
            _ptrace(_INTERRUPT, tid)
        for tid in threads:
            os.waitpid(tid, _WALL)
            self._go_on(tid)

    def _go_on(self, tid: int, signum: int = 0) -> None:
        bystander = self._children and tid == self._pid
        _ptrace(_CONT if bystander else _SYSCALL_STOPS, tid, signum)

    def _on_change(self, tid: int, status: int) -> None:
        if not os.WIFSTOPPED(status):
            return
        signum, event = os.WSTOPSIG(status), status >> 16
        if signum == _SYSCALL_STOP:
            number = _entered(tid)
            if number is not None:
                self._result.calls += 1
                if self._result.calls == self._at:
                    self._kill(tid, number)
                    return
            signum = 0
        elif event:  # a new thread or child, or a stop that we have asked for
            signum = 0
        self._go_on(tid, signum)

    def _kill(self, tid: int, number: int) -> None:
        victim = tid if self._children else self._pid
        self._result.killed = victim
        self._result.call = _name(number)
        os.kill(victim, signal.SIGKILL)


def _name(number: int) -> str:
    name = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, number)
    return name.decode() if isinstance(name, bytes) else str(name)


def _entered(tid: int) -> int | None:
    """The number of the system call that the thread enters; None where it leaves one, or is gone."""
    if _libc.ptrace(_GET_SYSCALL_INFO, tid, len(_info), ctypes.addressof(_info)) < 0:
        return None
    if _info.raw[0] != _ENTRY:
        return None
    return int(struct.unpack_from("Q", _info.raw, 24)[0])


def _ptrace(request: int, tid: int, data: int = 0) -> None:
    # ESRCH: it has been killed meanwhile; its end will be reported.
    if _libc.ptrace(request, tid, None, data) < 0 and ctypes.get_errno() != errno.ESRCH:
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x} of {tid}")


def _drain(fd: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.read(fd, 4096)
