# SPDX-License-Identifier: GPL-2.0-or-later
"""The `vemgr` command: the start of one VE by a short way, all else by way of click.

To read a command line with click and our table of settings takes eight times as long as the start of a VE. Most starts
say no more than a name, or --wait as well, so those go to the daemon before anything else is imported. Whatever is out
of the ordinary is left to the long way, which has all the words for it.
"""

from __future__ import annotations

import os
import sys
from _socket import AF_UNIX, SOCK_SEQPACKET, SOCK_STREAM, socket

# `socket` and `typing` take longer to be imported than the VE to start; what is underneath them is built in.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_DEFAULT_CONFIG, _DEFAULT_RUN_DIR = "/etc/vemgr/vemgr.toml", "/run/vemgr"
_WAIT = 120  # seconds, as --timeout has it
_INTERRUPTED = 130  # as a shell says it of SIGINT
_DONE = b"{}\0"  # in other words it is understood too, a little later


def main() -> NoReturn:
    _fill_standard_descriptors()
    reply = None
    verb, *words = sys.argv[1:] or [""]
    wait = "--wait" in words
    if wait:
        words.remove("--wait")
    if verb == "start" and len(words) == 1:
        try:
            reply = _start(words[0], wait=wait)
        except KeyboardInterrupt:
            sys.exit(_INTERRUPTED)
    if reply == _DONE:
        sys.exit(0)
    from vemgr.cli import main as long  # noqa: PLC0415  (what the short way does without)

    long.main(reply)


def _fill_standard_descriptors() -> None:
    """Open /dev/null where the caller has closed 0, 1 or 2: the next descriptor, which would be our connection to the
    daemon, would take that number and go into the VE as the command's standard input."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)


def _start(name: str, *, wait: bool) -> bytes | None:
    """The daemon's reply, without its end if the daemon has ended; None when it has not been asked."""
    run_dir = _run_dir(os.environ.get("VEMGR_CONFIG") or _DEFAULT_CONFIG)
    if run_dir is None or name.startswith("-") or not (name.isascii() and name.replace("-", "").isalnum()):
        return None
    daemon, keeper = socket(AF_UNIX, SOCK_STREAM), socket(AF_UNIX, SOCK_SEQPACKET)
    try:
        return _asked(daemon, keeper, run_dir, name, wait=wait)
    finally:
        daemon.close()
        keeper.close()


def _asked(daemon: socket, keeper: socket, run_dir: str, name: str, *, wait: bool) -> bytes | None:
    try:
        daemon.connect(f"{run_dir}/vemgr.sock")
        keeper.connect(f"{run_dir}/keeper.sock")  # one that has ended is for the long way to start
    except OSError:
        return None
    reply = b""
    try:
        waiting = b', "wait": %d' % _WAIT if wait else b""
        daemon.sendall(b'{"method": "org.vemgr.Manager.Start", "parameters": {"name": "%b"%b}}\0' % (
            name.encode(), waiting))
        while not reply.endswith(b"\0"):
            part = daemon.recv(65536)
            if not part:
                break
            reply += part
    except OSError:
        pass  # it may have been asked, so it is not to be asked again
    return reply


def _run_dir(path: str) -> str | None:
    """Where the sockets are; None when it takes a parser of TOML, as long as a third of the start, to know."""
    try:
        with open(path, "rb") as file:
            lines = [line.strip() for line in file if b"run" in line or b"\\" in line or line.lstrip().startswith(b"[")]
    except FileNotFoundError:
        return _DEFAULT_RUN_DIR
    except OSError:
        return None
    if not lines:
        return _DEFAULT_RUN_DIR
    key, _, value = lines[0].decode("ascii", "replace").partition("=")
    found = value.strip()[1:-1]
    plain = found.startswith("/") and found.replace("/", "").replace("-", "").replace("_", "").isalnum()
    return found if key.strip() == "run-dir" and value.strip() == f'"{found}"' and plain else None


if __name__ == "__main__":
    main()
