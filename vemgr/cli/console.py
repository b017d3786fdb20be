# SPDX-License-Identifier: GPL-2.0-or-later
"""`vemgr console`: the caller's terminal, or any files and pipes, joined to the console of a VE.

Only bytes go over: the terminal itself never reaches the VE. The other end of the socket is the keeper's, so it
outlives the daemon, and the VE's reboot.
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
from collections.abc import Callable, Iterator

from vemgr.api.client import Client
from vemgr.cli import ending
from vemgr.cli.keys import DetachKeys
from vemgr.core.console import DATA, ENDED, GONE, LOST, MOST_DATA, RUNS, SIZE
from vemgr.core.errors import ConsoleInUse, Unreachable

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_ROOM = 4096  # as much as a descriptor that polls writable takes without blocking; it may be others' too
_KEY_PAUSE = 1000  # milliseconds between two of the keys that detach
_WINSIZE = 8  # bytes of a struct winsize
_REBOOT = signal.SIGHUP  # what ends the init of a VE that reboots, see pid_namespaces(7)
# What a VE may have left on: colours, another character set, a hidden cursor, application keys, mouse reports,
# bracketed paste. The screen stays.
_SOBER = b"\x1b[0m\x1b(B\x0f\x1b[?25h\x1b[?1l\x1b>\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l"


def console(client: Client, name: str, *, read_only: bool, force: bool, keys: str,
            start: Callable[[], object] = lambda: None) -> int:
    """Attach, then `start`, and stay until somebody detaches or the VE has ended. Returns the exit code."""
    session = _Session(name, DetachKeys(keys), read_only=read_only)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            state = client.call("Attach", {"name": name, "readOnly": read_only, "force": force, "stream": 0},
                                [theirs.fileno()])["state"]
        client.close()
        if session.typed_by_hand:
            ending.say(f"attached to the console of VE {name}; the keys {keys} detach")
        start()
        if state != "running":
            ending.say(f"VE {name} is {state}" if state != "stopped" else f"waiting for VE {name} to start")
        return session.run(ours)


class _Session:
    def __init__(self, name: str, keys: DetachKeys, *, read_only: bool) -> None:
        self._name = name
        self._keys = keys
        self._read_only = read_only
        self.typed_by_hand = os.isatty(0)
        self._input_open = self.typed_by_hand or not read_only
        self._typed = b""
        self._shown = b""
        self._runs = False
        self._ending: int | None = None  # the exit code, once all is shown
        self._last_word = ""

    def run(self, channel: socket.socket) -> int:
        channel.setblocking(False)
        with contextlib.ExitStack() as terminal:
            terminal.enter_context(_signals())
            terminal.enter_context(self._following_size(channel))
            while self._ending is None or self._shown:
                self._turn(channel, terminal)
        if self._last_word:
            ending.say(self._last_word)
        return self._ending

    def _turn(self, channel: socket.socket, terminal: contextlib.ExitStack) -> None:
        poll = select.poll()
        if self._shown:
            poll.register(1, select.POLLOUT)
        elif self._ending is None:
            poll.register(channel, select.POLLIN | (select.POLLOUT if self._typed else 0))
        if self._runs and self._input_open and not self._typed:
            poll.register(0, select.POLLIN)
        ready = dict(poll.poll(_KEY_PAUSE if self._keys.held else None))
        if not ready and self._keys.held:
            self._typed = self._keys.give_up()
        if 0 in ready:
            self._read_input()
        if 1 in ready:
            self._shown = self._shown[os.write(1, self._shown[:_ROOM]):]
        if self._typed:
            self._type(channel)
        if ready.get(channel.fileno(), 0) & ~select.POLLOUT:
            self._hear(channel, terminal)

    def _read_input(self) -> None:
        try:
            data = os.read(0, _ROOM)
        except OSError:
            data = b""  # a terminal that has hung up
        if not data:
            self._input_open = False
        elif self.typed_by_hand:
            data, detached = self._keys.feed(data)
            if detached:
                self._ending, self._shown, self._last_word = 0, b"", f"detached from VE {self._name}"
        if not self._read_only:
            self._typed = data

    def _type(self, channel: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):  # reading tells of the end
            channel.send(DATA + self._typed[:MOST_DATA])
            self._typed = self._typed[MOST_DATA:]

    def _hear(self, channel: socket.socket, terminal: contextlib.ExitStack) -> None:
        try:
            message = channel.recv(MOST_DATA + 1)
        except BlockingIOError:
            return
        except ConnectionResetError:
            message = b""
        kind, data = message[:1], message[1:]
        if kind == DATA:
            self._shown = data
        elif kind == RUNS:
            if not self._runs:
                self._runs = True
                terminal.enter_context(_raw_mode())
            self._send_size(channel)
        elif kind == LOST:
            self._shown = b"\r\n[vemgr: %d bytes were printed faster than they were read]\r\n" % int(data)
        elif kind == ENDED:
            self._ve_ended(struct.unpack("=i", data)[0])
        elif kind == GONE:
            self._ending, self._last_word = ConsoleInUse.exit_code, data.decode(errors="replace")
        elif not message:
            raise Unreachable(f"the console of VE {self._name} is gone: the keeper has ended, or was not read from")

    def _ve_ended(self, status: int) -> None:
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == _REBOOT:
            self._shown = b"\r\n[vemgr: the VE reboots]\r\n"
            return
        code = os.waitstatus_to_exitcode(status)
        how = f"init exited with {code}" if code >= 0 else f"init was ended by signal {-code}"
        self._ending, self._last_word = 0, f"VE {self._name} has ended: {how}"

    def _send_size(self, channel: socket.socket) -> None:
        if not self._read_only:
            with contextlib.suppress(OSError):  # no terminal here, or the end of it all
                channel.send(SIZE + fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * _WINSIZE))

    @contextlib.contextmanager
    def _following_size(self, channel: socket.socket) -> Iterator[None]:
        before = signal.signal(signal.SIGWINCH, lambda *_: self._send_size(channel))
        try:
            yield
        finally:
            signal.signal(signal.SIGWINCH, before)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """They end us by an exception, so that the terminal is put right on the way out."""
    def end(signum: int, _frame: object) -> None:
        raise SystemExit(128 + signum)

    before = {signum: signal.signal(signum, end) for signum in _SIGNALS if signal.getsignal(signum) != signal.SIG_IGN}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextlib.contextmanager
def _raw_mode() -> Iterator[None]:
    """Every key goes to the VE, Ctrl-C and Ctrl-Z too. Nothing here waits for output: a terminal may be stopped."""
    if not os.isatty(0):
        yield
        return
    before = termios.tcgetattr(0)

    def set_raw(*_: object) -> None:
        with contextlib.suppress(termios.error):
            tty.setraw(0, termios.TCSANOW)

    continued = signal.signal(signal.SIGCONT, set_raw)  # a shell sets its own modes while we are stopped
    set_raw()
    try:
        yield
    finally:
        signal.signal(signal.SIGCONT, continued)
        with contextlib.suppress(termios.error):
            termios.tcsetattr(0, termios.TCSANOW, before)
        if os.isatty(1) and select.select([], [1], [], 0)[1]:
            with contextlib.suppress(OSError):
                os.write(1, _SOBER + b"\r\n")
        sys.stdout.flush()
