# SPDX-License-Identifier: GPL-2.0-or-later
"""exec, enter and run: the caller's own descriptors go into the VE, or a terminal of the VE comes out of it.

Nothing here needs the daemon once the command runs: its end arrives through a pipe that the keeper holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
import sys
import termios
import tty
from collections.abc import Callable, Iterator, Set
from typing import Any

from vemgr.core.errors import Unreachable

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_CHUNK = 65536
_WINSIZE = 8  # bytes of a struct winsize

Call = Callable[[dict[str, Any], list[int]], dict[str, Any]]


def command_of(argv: list[str], env: list[str], cwd: str, user: str, terminal: bool) -> dict[str, Any]:
    """The API's Command. `env`: KEY=VALUE texts."""
    variables = dict(text.partition("=")[::2] for text in env)
    if terminal and "TERM" in os.environ:
        variables.setdefault("TERM", os.environ["TERM"])
    return {"argv": argv, "env": variables, "cwd": cwd, "user": user, "tty": terminal}


def execute(call: Call, command: dict[str, Any]) -> int:
    """Run the command through `call` and return its exit code, 128 + n when signal n ended it."""
    # Held back until they can be passed on, or a signal that comes in between would end us and leave the command.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    try:
        if command["tty"]:
            return _with_terminal(call, command, before)
        reply = call({"command": command, "stdio": [0, 1, 2]}, [_open(0), _open(1), _open(2)])
        (status_fd,) = reply["descriptors"]
        with _forwarding(reply["pid"], before):
            return _exit_code(status_fd)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _open(fd: int) -> int:
    """A copy of a standard descriptor; /dev/null where the caller has closed it. Copies, since the same file may
    stand behind two of them and the API wants each to be a descriptor of its own."""
    try:
        return os.dup(fd)
    except OSError:
        return os.open(os.devnull, os.O_RDWR)


def _exit_code(status_fd: int) -> int:
    data = b""
    while len(data) < 4:  # a native int
        try:
            chunk = os.read(status_fd, 4 - len(data))
        except InterruptedError:
            continue
        if not chunk:
            raise Unreachable("the command's end was not reported: the keeper is gone, and the VE with it")
        data += chunk
    code = os.waitstatus_to_exitcode(struct.unpack("=i", data)[0])
    return code if code >= 0 else 128 - code


@contextlib.contextmanager
def _forwarding(pid: int, mask: Set[int]) -> Iterator[None]:
    """Pass the signals that people and service managers send on to the command, from now on as `mask` lets them in."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        yield  # it has ended already
        return

    def forward(signum: int, _frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signum)

    before = {signum: signal.signal(signum, forward) for signum in _FORWARDED}
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        os.close(pidfd)


def _with_terminal(call: Call, command: dict[str, Any], mask: Set[int]) -> int:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with contextlib.suppress(OSError):  # no terminal here: the command's has no size
            ours.send(fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * _WINSIZE))
        reply = call({"command": command, "stdio": [0]}, [theirs.fileno()])
        theirs.close()
        (status_fd,) = reply["descriptors"]
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    if not fds:
        raise Unreachable("the VE gave no terminal")
    master = fds[0]
    with _forwarding(reply["pid"], mask), _raw_mode(), _following_size(master):
        _relay(master, status_fd)
    return _exit_code(status_fd)


@contextlib.contextmanager
def _raw_mode() -> Iterator[None]:
    """Every key goes to the VE, Ctrl-C and Ctrl-Z too; its terminal gives them their meaning."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(0)
    tty.setraw(0, termios.TCSADRAIN)  # what was typed ahead is the command's
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _following_size(master: int) -> Iterator[None]:
    def copy(*_: object) -> None:
        with contextlib.suppress(OSError):
            fcntl.ioctl(master, termios.TIOCSWINSZ, fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * _WINSIZE))

    before = signal.signal(signal.SIGWINCH, copy)
    copy()
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


def _relay(master: int, status_fd: int) -> None:
    """Copy both ways until the command has ended and its output is drained."""
    inputs = [0, master, status_fd]
    while master in inputs:
        ended = status_fd not in inputs
        ready, _, _ = select.select(inputs, [], [], 0.2 if ended else None)
        if not ready and ended:
            return  # something in the VE keeps the terminal open; the command itself is over
        if status_fd in ready:
            inputs.remove(status_fd)
        if master in ready and not _copy(master, 1):
            inputs.remove(master)
        if 0 in ready and not _copy(0, master):
            inputs.remove(0)
            with contextlib.suppress(OSError):
                os.write(master, b"\x04")  # end of input, as Ctrl-D says it


def _copy(source: int, target: int) -> bool:
    try:
        data = os.read(source, _CHUNK)
    except OSError:
        return False  # EIO: the last process has closed the terminal
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(target, view):]
        except OSError:
            return False
    return bool(data)
