# SPDX-License-Identifier: GPL-2.0-or-later
"""The consoles of VEs: each is read into its log and to the clients that are attached to it.

Nobody can hold up anybody: what a VE prints is read on the keeper's time, which no limit of the VE counts, so all
consoles together get little of it; and a client that does not read loses text.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Sequence

from vemgr.core.console import DATA, ENDED, GONE, MOST_CLIENTS, RUNS, SCROLLBACK, SIZE
from vemgr.keeper.console_client import Client
from vemgr.keeper.console_log import ConsoleLogs
from vemgr.keeper.loop import Loop, Timer
from vemgr.keeper.setup import TIOCGPTPEER

# Each console is read no more often and no more at once than this: whoever prints more waits in write(2), as on any
# terminal. 1.3 MB/s is a lot of boot messages. When many print, each has to wait until all have had a turn.
_PAUSE = 0.05  # seconds
_EACH = 0.002  # seconds between two turns of all consoles, so 500 a second
_BUDGET = 65536  # bytes
_LIVELY = 0.005  # the pause while somebody watches and little is printed, so that typing feels right
_LITTLE = 1024  # bytes
_CHUNK = 4096  # bytes; the kernel gives no more at once
_LAST_WORDS = 4 * _BUDGET  # bytes; more than a terminal holds


class Consoles:
    """By name of the VE. Clients may be there before their VE runs, and stay when it has ended."""

    def __init__(self, loop: Loop, logs: ConsoleLogs) -> None:
        self.loop = loop
        self.logs = logs
        self.resting = 0  # consoles that have been read a moment ago
        self._consoles: dict[str, Console] = {}
        self._clients: dict[str, list[Client]] = {}

    def begin(self, ve: str, master: int, slave: int) -> None:
        """The VE has a console, whose descriptors are ours from now on."""
        self.end(ve, 0)
        self._consoles[ve] = Console(self, ve, master, slave)
        for client in self.clients(ve):
            client.tell(RUNS)

    def end(self, ve: str, status: int) -> None:
        """The VE's init has ended, with this wait status."""
        console = self._consoles.pop(ve, None)
        if console is not None:
            console.close()
            for client in self.clients(ve):
                client.tell(ENDED, struct.pack("=i", status))

    def clients(self, ve: str) -> Sequence[Client]:
        """A copy: telling one something may end it."""
        return tuple(self._clients.get(ve, ()))

    def attach(self, ve: str, channel: socket.socket, *, writes: bool, force: bool) -> str:
        """Take in a client; with `force` it takes the place of the one that writes. Returns why not, or ""."""
        # Who has just left is in nobody's way, also when the loop has not come to it yet.
        others = [client for client in self.clients(ve) if not client.has_left()]
        writer = next((client for client in others if client.writes), None) if writes else None
        if writer is not None and not force:
            return "writer"
        if writer is not None:
            writer.leave(GONE, b"another client has taken over")
        if len(self.clients(ve)) >= MOST_CLIENTS:
            return "many"
        client = Client(self.loop, channel, writes=writes, on_message=lambda data: self._typed(ve, data),
                        on_end=lambda: self._left(ve, client))
        console = self._consoles.get(ve)
        if console is not None:
            console.read()  # before the client is there, who gets this from the log
        self._clients.setdefault(ve, []).append(client)
        if console is not None:
            client.tell(RUNS)
            client.print(console.scrollback())
        return ""

    def forget(self, ve: str) -> None:
        """The VE is no more."""
        for client in self.clients(ve):
            client.leave(GONE, b"the VE has been destroyed")

    def _typed(self, ve: str, message: bytes) -> bool:
        """Whether it may go on typing."""
        console = self._consoles.get(ve)
        return console is None or console.typed(message)

    def _left(self, ve: str, client: Client) -> None:
        clients = self._clients.get(ve, [])
        if client in clients:
            clients.remove(client)
        if not clients:
            self._clients.pop(ve, None)
        if client.writes and ve in self._consoles:
            self._consoles[ve].writer_left()

    def let_type(self, ve: str, may: bool) -> None:
        for client in self.clients(ve):
            if may:
                client.listen()
            else:
                client.look()


class Console:
    """The console of one running VE.

    The slave is held open too: without any, reads of the master fail with EIO and polling it would spin.
    """

    __slots__ = ("_all", "_input", "_master", "_printed", "_slave", "_timer", "_ve")

    def __init__(self, consoles: Consoles, ve: str, master: int, slave: int) -> None:
        self._all = consoles
        self._ve = ve
        self._master = master
        self._slave = slave
        self._printed = 0  # bytes
        self._timer: Timer | None = None
        self._input: bytes = b""
        os.set_blocking(master, False)
        consoles.loop.watch(master, self._turn)

    def _turn(self) -> None:
        waits = [client.holds_up() for client in self._all.clients(self._ve)]  # each has to look at its clock
        got = 0 if any(waits) else self.read()
        # Reading after each few bytes would let a VE keep us busy with single characters.
        pause = _LIVELY if waits and 0 < got < _LITTLE else _PAUSE
        self._all.loop.unwatch(self._master)
        self._all.resting += 1
        self._timer = self._all.loop.later(max(pause, _EACH * self._all.resting), self._rested)

    def _rested(self) -> None:
        try:
            self._all.loop.watch(self._master, self._turn)
        except OSError:  # no memory: rest a little longer, or nobody would ever read this console again
            self._timer = self._all.loop.later(_PAUSE, self._rested)
            return
        self._timer = None
        self._all.resting -= 1
        if self._input:
            self._push()

    def read(self, most: int = _BUDGET) -> int:
        """Take what is there, at most so many bytes and one chunk; returns how many."""
        chunks: list[bytes] = []
        got = 0
        while got < most:
            try:
                data = os.read(self._master, _CHUNK)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.EIO:
                    self._reopen()
                break
            if not data:
                break
            chunks.append(data)
            got += len(data)
        if got:
            self._pass_on(b"".join(chunks))
        return got

    def _pass_on(self, data: bytes) -> None:
        if not self._printed:
            self._all.logs.begin(self._ve)
        self._printed += len(data)
        for position in range(0, len(data), _BUDGET):
            self._all.logs.append(self._ve, data[position:position + _BUDGET])
        for client in self._all.clients(self._ve):
            client.print(data)

    def _reopen(self) -> None:
        """The terminal was hung up, ours included: the leader of its session has ended, such as a login."""
        with contextlib.suppress(OSError):
            slave = fcntl.ioctl(self._master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
            os.close(self._slave)
            self._slave = slave

    def scrollback(self) -> bytes:
        """The end of what this VE has printed since its start, from the beginning of a line where it is cut."""
        text = self._all.logs.tail(self._ve, min(self._printed, SCROLLBACK))
        return text.partition(b"\n")[2] or text if len(text) < self._printed else text

    def typed(self, message: bytes) -> bool:
        if message[:1] == SIZE:
            with contextlib.suppress(OSError):
                fcntl.ioctl(self._master, termios.TIOCSWINSZ, message[1:9].ljust(8, b"\0"))
        elif message[:1] == DATA:
            self._input += message[1:]
            self._push()
        return not self._input

    def _push(self) -> None:
        """Type what the terminal takes; the rest after our next turn."""
        try:
            self._input = self._input[os.write(self._master, self._input):]
        except BlockingIOError:
            pass
        except OSError:
            self._input = b""
        if self._input and self._timer is None:
            self._turn()
        self._all.let_type(self._ve, not self._input)

    def writer_left(self) -> None:
        """Undo its Ctrl-S, or all who print on this console would wait for ever."""
        self._input = b""
        with contextlib.suppress(termios.error, OSError):
            # TCOON alone only undoes a TCOOFF; this one has no other effect on a terminal that is stopped.
            termios.tcflow(self._slave, termios.TCOOFF)
            termios.tcflow(self._slave, termios.TCOON)

    def close(self) -> None:
        """After the VE's last words."""
        self.read(_LAST_WORDS)
        if self._timer is not None:
            self._timer.cancel()
            self._all.resting -= 1
        else:
            self._all.loop.unwatch(self._master)
        os.close(self._master)
        os.close(self._slave)
