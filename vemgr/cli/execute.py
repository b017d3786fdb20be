# SPDX-License-Identifier: GPL-2.0-or-later
"""exec, enter and run: the caller's files and pipes go into the VE, or a terminal of the VE comes out of it.

Nothing here needs the daemon once the command runs: its end arrives through a pipe that the keeper holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import struct
import sys
import termios
import tty
from collections.abc import Callable, Iterator, Set
from typing import Any

from vemgr.cli.relay import Flow, relay
from vemgr.cli.stdio import Stdio
from vemgr.core.errors import BadValue, Unreachable

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_WINSIZE = 8  # bytes of a struct winsize

Call = Callable[[dict[str, Any], list[int]], dict[str, Any]]


def command_of(argv: list[str], env: list[str], cwd: str, user: str, terminal: bool) -> dict[str, Any]:
    """The API's Command. `env`: KEY=VALUE texts. Raises `BadValue` for one that is not."""
    variables = dict(map(_variable, env))
    if terminal and "TERM" in os.environ:
        variables.setdefault("TERM", os.environ["TERM"])
    return {"argv": argv, "env": variables, "cwd": cwd, "user": user, "tty": terminal}


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise BadValue("--env", text, "it has no value" if name else "it has no name",
                       remedy="write KEY=VALUE; the caller's own variables are not passed on")
    return name, value


def execute(call: Call, command: dict[str, Any]) -> int:
    """Run the command through `call` and return its exit code, 128 + n when signal n ended it."""
    # Held back until they can be passed on, or a signal that comes in between would end us and leave the command.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    try:
        if command["tty"]:
            return _with_terminal(call, command, before)
        return _with_descriptors(call, command, before)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _with_descriptors(call: Call, command: dict[str, Any], mask: Set[int]) -> int:
    stdio = Stdio()
    reply = call({"command": command, "stdio": [0, 1, 2]}, stdio.passed)
    stdio.close_passed()
    (status_fd,) = reply["descriptors"]
    with _forwarding(reply["pid"], mask) as ended:
        relay(stdio.inputs, stdio.outputs, status_fd, ended)
        return _exit_code(status_fd)


def _exit_code(status_fd: int) -> int:
    data = b""
    while len(data) < 4:  # a native int
        chunk = os.read(status_fd, 4 - len(data))
        if not chunk:
            raise Unreachable("the command's end was not reported: the keeper is gone, and the VE with it")
        data += chunk
    code = os.waitstatus_to_exitcode(struct.unpack("=i", data)[0])
    return code if code >= 0 else 128 - code


@contextlib.contextmanager
def _forwarding(pid: int, mask: Set[int]) -> Iterator[Callable[[], None]]:
    """Pass the signals that people and service managers send on to the command, from now on as `mask` lets them in.
    Yields what to call when it has ended: from then on they are meant for us."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        pidfd = -1  # it has ended already
    ended = False

    def forward(signum: int, _frame: object) -> None:
        if ended:
            raise SystemExit(128 + signum)  # not the default action: a terminal has to be put right on the way out
        if pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signum)

    def end() -> None:
        nonlocal ended
        ended = True

    before = {signum: signal.signal(signum, forward) for signum in _FORWARDED}
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        yield end
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        if pidfd >= 0:
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
    with _forwarding(reply["pid"], mask) as ended, _raw_mode(), _following_size(master):
        _relay_terminal(master, status_fd, ended)
    return _exit_code(status_fd)


def _relay_terminal(master: int, status_fd: int, ended: Callable[[], None]) -> None:
    os.set_blocking(master, False)
    with open(os.devnull, "rb+", buffering=0) as null:
        # Nobody looks at its output any more: a terminal hangs up then.
        output = Flow(master, 1, at_loss=lambda: os.dup2(null.fileno(), master, inheritable=False))
        relay([Flow(0, master, says_end=True)], [output], status_fd, ended)


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
