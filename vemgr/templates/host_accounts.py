# SPDX-License-Identifier: GPL-2.0-or-later
"""Account files for the template `host`: the host's system accounts, none of its people and none of its passwords."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

_PEOPLE_FROM = 1000  # as Debian, Fedora and Arch number them (UID_MIN in login.defs)
_NOBODY = 65534
_NAME = re.compile(r"[a-z_][a-z0-9_.-]{0,31}\$?")  # keeps out NIS's "+" lines


def account_files(etc_fd: int) -> tuple[dict[str, str], int]:
    """The contents of passwd, group, shadow and gshadow, and the id of the group that may read the last two.

    Comments in passwd are dropped, since they name people; so are the members of groups. Raises OSError.
    """
    users = _records(etc_fd, "passwd", 7) or [["root", "x", "0", "0", "", "/root", "/bin/sh"]]
    groups = _records(etc_fd, "group", 4) or [["root", "x", "0", ""]]
    shadow_gid = next((int(group[2]) for group in groups if group[0] == "shadow"), os.getegid())
    return {
        "passwd": _lines(f"{name}:x:{uid}:{gid}::{home}:{shell}" for name, _, uid, gid, _, home, shell in users),
        "group": _lines(f"{name}:x:{gid}:" for name, _, gid, _ in groups),
        "shadow": _lines(f"{user[0]}:*:::::::" for user in users),
        "gshadow": _lines(f"{group[0]}:*::" for group in groups),
    }, shadow_gid


def _records(etc_fd: int, name: str, fields: int) -> list[list[str]]:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=etc_fd)
    except FileNotFoundError:
        return []
    with open(fd, encoding="utf-8", errors="surrogateescape") as file:
        rows = [line.rstrip("\n").split(":") for line in file]
    return [row for row in rows if len(row) == fields and _NAME.fullmatch(row[0]) and _is_system(row[2])]


def _is_system(number: str) -> bool:
    return number.isascii() and number.isdecimal() and (int(number) < _PEOPLE_FROM or int(number) == _NOBODY)


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
