# SPDX-License-Identifier: GPL-2.0-or-later
"""What is mounted where: /proc/PID/mountinfo, and being told when that changes (proc(5))."""

from __future__ import annotations

import os
import re
import select
from dataclasses import dataclass

_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """`device`: "major:minor" of its file system. `root`: what of that is mounted. `point`: where, as seen by the
    process whose table it is."""

    number: int
    device: str
    root: str
    point: str
    fstype: str


def parse(text: str) -> list[Mount]:
    """In the order of mounting: of several with one `point`, the last is seen."""
    found = []
    for line in text.splitlines():
        mount, _, source = line.partition(" - ")
        number, _, device, root, point = mount.split(" ")[:5]
        found.append(Mount(int(number), device, _unescaped(root), _unescaped(point), source.partition(" ")[0]))
    return found


def of_process(pid: int | str) -> list[Mount]:
    """Raises `OSError`."""
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return parse(file.read())


def _unescaped(text: str) -> str:
    """Blanks, tabs, line ends and backslashes are in octal."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), text) if "\\" in text else text


class MountWatch:
    """Readable (`fileno`) when something was mounted or unmounted in our mount namespace. Raises `OSError`.

    The table itself always counts as readable, and an event loop would spin on it; a change is an exception (poll(2),
    POLLPRI), which an epoll instance of its own turns into something to read.
    """

    def __init__(self) -> None:
        self._table = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._table, select.EPOLLPRI)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def clear(self) -> None:
        """Be readable at the next change only. There is nothing to return: the kernel tells of each change once, and
        has told whoever found us readable."""
        self._epoll.poll(0)

    def close(self) -> None:
        self._epoll.close()
        os.close(self._table)
