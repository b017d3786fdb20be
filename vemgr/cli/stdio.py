# SPDX-License-Identifier: GPL-2.0-or-later
"""Which of the caller's standard descriptors a command in a VE gets.

Files, pipes and sockets go in as they are: no byte passes through us. A terminal does not: whoever holds it, a process
left behind included, could read what is typed into the host's shell afterwards, such as a password for sudo.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import termios

from vemgr.cli.relay import Flow
from vemgr.core.errors import BadValue

_NAMES = ("standard input", "standard output", "standard error")
# null, zero, full, random, urandom: what a VE may open by itself.
_HARMLESS = frozenset(os.makedev(1, minor) for minor in (3, 5, 7, 8, 9))


class Stdio:
    """`passed`: descriptors for the VE. `inputs`, `outputs`: what to relay to and from them.

    Raises `BadValue` for what would open more of the host than itself.
    """

    def __init__(self) -> None:
        for fd in range(3):
            _check(fd)
        self.inputs: list[Flow] = []
        self.outputs: list[Flow] = []
        self.passed = [self._input() if _is_terminal(0) else os.dup(0)]
        self.passed.append(self._output(1) if _is_terminal(1) else os.dup(1))
        if _is_terminal(1) and os.path.sameopenfile(1, 2):
            self.passed.append(os.dup(self.passed[1]))  # one pipe keeps the order of the two
        else:
            self.passed.append(self._output(2) if _is_terminal(2) else os.dup(2))

    def close_passed(self) -> None:
        """They are the command's now: as long as we had them too, we would not see that it has closed them."""
        for fd in self.passed:
            os.close(fd)

    def _input(self) -> int:
        reader, writer = _pipe()
        self.inputs.append(Flow(0, writer, typed=True, at_end=lambda: os.close(writer)))
        return reader

    def _output(self, fd: int) -> int:
        reader, writer = _pipe()
        self.outputs.append(Flow(reader, fd, at_end=lambda: os.close(reader)))
        return writer


def _pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    # A user of the VE may open it again as /dev/stdout. Others do not come to it: it has no name.
    os.fchmod(writer, 0o666)
    return reader, writer


def _check(fd: int) -> None:
    found = os.fstat(fd)
    if stat.S_ISDIR(found.st_mode):
        raise BadValue(_NAMES[fd], _path(fd), "a directory would let the VE reach the host's files",
                       remedy="pass what is in it: tar -C DIRECTORY -cf - . | vemgr exec NAME -- tar -xf -")
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH:
        raise BadValue(_NAMES[fd], _path(fd), "it is open as a path only, not for reading or writing",
                       remedy="open it for reading or writing")
    is_device = stat.S_ISBLK(found.st_mode) or stat.S_ISCHR(found.st_mode)
    if is_device and found.st_rdev not in _HARMLESS and not _is_terminal(fd):
        raise BadValue(_NAMES[fd], _path(fd), "a device would let the VE control the host's hardware",
                       remedy="put a pipe in between: cat DEVICE | vemgr exec ..., vemgr exec ... | dd of=DEVICE")


def _is_terminal(fd: int) -> bool:
    try:
        termios.tcgetattr(fd)
    except termios.error as error:
        return bool(error.args[0] == errno.EIO)  # one that has hung up, as that of a lost login
    return True


def _path(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")
