# SPDX-License-Identifier: GPL-2.0-or-later
"""The counters of all links of this network namespace, in one file: /proc/net/dev (proc(5))."""

from __future__ import annotations

from typing import NamedTuple


class LinkCounters(NamedTuple):
    """Bytes, and packets that were dropped or damaged, since the link was made."""

    received: int
    received_dropped: int
    sent: int
    sent_dropped: int


def link_counters(path: str = "/proc/thread-self/net/dev") -> dict[str, LinkCounters]:
    """By name. Raises `OSError`."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return parse(file.read())


def parse(text: str) -> dict[str, LinkCounters]:
    found = {}
    for line in text.splitlines()[2:]:
        name, _, numbers = line.partition(":")
        # bytes packets errs drop fifo frame compressed multicast, then bytes packets errs drop ... of what was sent
        words = numbers.split()
        found[name.strip()] = LinkCounters(int(words[0]), int(words[2]) + int(words[3]),
                                           int(words[8]), int(words[10]) + int(words[11]))
    return found
