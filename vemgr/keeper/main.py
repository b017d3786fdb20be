# SPDX-License-Identifier: GPL-2.0-or-later
"""The keeper: parent of every VE's init and of every command in a VE. Small, single-threaded, outlives the daemon.

It does what it is told over one SOCK_SEQPACKET connection, reaps its children and remembers how each ended until the
daemon has taken note. A daemon may die and come back at any moment; the keeper's own death ends its VEs, and a new
keeper starts with none (docs/adr/0003).
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import signal
import socket

import prctl

from vemgr.core.console import log_directory
from vemgr.keeper.console_log import ConsoleLogs
from vemgr.keeper.inherited import reset_inherited
from vemgr.keeper.loop import Loop
from vemgr.keeper.server import Keeper
from vemgr.kernel.service import notify_ready


def main() -> None:
    parser = argparse.ArgumentParser(prog="vemgr-keeper", description="Parent of the VEs; started with the daemon.")
    parser.add_argument("--run-dir", default="/run/vemgr", help="where the socket keeper.sock is made")
    options = parser.parse_args()
    reset_inherited()
    os.makedirs(options.run_dir, mode=0o700, exist_ok=True)
    path = f"{options.run_dir}/keeper.sock"
    listener = _listen(path)
    os.makedirs(f"{options.run_dir}/stage", mode=0o700, exist_ok=True)
    prctl.set_name("vemgr-keeper")
    loop = Loop()
    keeper = Keeper(listener, loop, ConsoleLogs(log_directory(options.run_dir)))
    _watch_signals(loop, keeper)
    notify_ready()
    gc.freeze()  # children share our pages until a collector run would touch them all
    loop.run()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    _be_the_only_one(path)
    os.umask(0o177)
    listener.bind(path)
    os.umask(0o022)
    listener.listen(8)
    return listener


def _be_the_only_one(path: str) -> None:
    """Take over the path of a dead keeper; raise `OSError` EADDRINUSE where one lives."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise OSError(98, "a keeper runs already", path)


def _watch_signals(loop: Loop, keeper: Keeper) -> None:
    """SIGCHLD as something to be read; all other signals act as they do by default."""
    waker, wakee = socket.socketpair()
    for end in (waker, wakee):
        end.setblocking(False)
    signal.set_wakeup_fd(wakee.detach(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)

    def on_signal() -> None:
        with contextlib.suppress(BlockingIOError):
            waker.recv(4096)
        keeper.on_sigchld()

    loop.watch(waker, on_signal)


if __name__ == "__main__":
    main()
