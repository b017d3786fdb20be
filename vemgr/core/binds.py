# SPDX-License-Identifier: GPL-2.0-or-later
"""Directories and files of the host, and volumes, that are mounted in a VE: as values, and as the text that says so."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from vemgr.core.errors import BadValue
from vemgr.core.names import LABEL

NO_MOUNTS = "none"
MOST_BINDS = 32
_LONGEST = 1024
# What vemgr itself mounts there, and looks things up in: /run may be mounted in.
_OURS = ("proc", "sys", "dev")
_SPELLING = ("write it as /srv/data:/data, or NAME:/data for a volume, and :ro behind it for only reading; paths "
             "without blanks, ':', '.' and '..'")


@dataclass(frozen=True)
class BindMount:
    """`source`, an absolute path of the host or the name of a volume, is seen as `target` in the VE."""

    source: str
    target: str
    read_only: bool = False

    @property
    def volume(self) -> str:
        """Its name; "" for a path of the host."""
        return "" if self.source.startswith("/") else self.source

    def __str__(self) -> str:
        return f"{self.source}:{self.target}" + (":ro" if self.read_only else "")


def parse_binds(field: str, text: str) -> tuple[BindMount, ...]:
    """Bind mounts from text such as "/srv/a:/a /srv/b:/b:ro", a directory before what is mounted in it."""
    words = text.split()
    if words == [NO_MOUNTS]:
        return ()
    if len(words) > MOST_BINDS:
        raise BadValue(field, text[:80], f"more than {MOST_BINDS} mounts")
    found = sorted((_parse_bind(field, word) for word in words), key=lambda bind: bind.target.split("/"))
    for one, other in itertools.pairwise(found):
        if one.target == other.target:
            raise BadValue(field, str(other), f"{other.target} is mounted on twice")
    return tuple(found)


def _parse_bind(field: str, text: str) -> BindMount:
    parts = text.split(":")
    if len(parts) not in (2, 3) or parts[2:] not in ([], ["ro"]):
        raise BadValue(field, text[:80], "not a mount", remedy=_SPELLING)
    source, target = parts[:2]
    target = _parse_path(field, target)
    if not LABEL.fullmatch(source):
        source = _parse_path(field, source)
    if target.split("/")[1] in _OURS:
        raise BadValue(field, text, f"{target} is made by vemgr itself")
    return BindMount(source, target, read_only=len(parts) == 3)


def _parse_path(field: str, text: str) -> str:
    path = text.rstrip("/")
    components = path.split("/")
    if components[0] or len(components) < 2 or {"", ".", ".."} & set(components[1:]):
        raise BadValue(field, text[:80], "not an absolute path below /, nor a volume's name", remedy=_SPELLING)
    if len(path.encode(errors="surrogateescape")) > _LONGEST or not path.isprintable():
        raise BadValue(field, ascii(text)[:80], f"a path has at most {_LONGEST} bytes, all of them printable")
    return path


def show_binds(binds: tuple[BindMount, ...]) -> str:
    return " ".join(map(str, binds)) or NO_MOUNTS
