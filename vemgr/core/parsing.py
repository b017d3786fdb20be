# SPDX-License-Identifier: GPL-2.0-or-later
"""What the texts of settings mean, and how values are printed where `str` will not do. Those with a module of their own
(links, mounts, rates, privileges) are there.

A parser takes the field's name, for its error, and the text; it raises `BadValue`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable

from vemgr.core import resources as units
from vemgr.core.errors import BadValue
from vemgr.core.links import parse_address, parse_mac
from vemgr.core.names import LABEL, check_name
from vemgr.core.restarting import Policy
from vemgr.core.syscalls import ALLOWABLE

IDLE = 0  # of cpu_weight: only what no other wants
AUTOMATIC = -1  # of swap: none where memory is limited, unlimited otherwise
BLOCK = 4096
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?")
_BURST = re.compile(r"0|(\d{1,7})(ms|us)", re.ASCII)
_LONGEST_TEXT = 500
_MOST_AFTER = 64


def count(least: int, most: int, *, unlimited: bool = False) -> Callable[[str, str], int | None]:
    return lambda field_, text: units.parse_count(field_, text, least=least, most=most, unlimited=unlimited)


def count_text(value: int | None) -> str:
    return units.UNLIMITED if value is None else str(value)


def parse_memory(field_: str, text: str) -> int | None:
    # Below this not even the set-up process, which counts against the limit, can run.
    return units.parse_size(field_, text, least=8 << 20)


def parse_disk(field_: str, text: str) -> int | None:
    size = units.parse_size(field_, text, least=32 << 20)  # a journal takes 4M
    return None if size is None else size - size % BLOCK


def parse_cpu_guarantee(field_: str, text: str) -> int:
    millicpus = 0 if text == "0" else units.parse_cpus(field_, text)
    if millicpus is None:
        raise _endless(field_, text)
    return millicpus


def parse_cpu_weight(field_: str, text: str) -> int:
    if text == "idle":
        return IDLE
    if not text.isascii() or not text.isdigit() or len(text) > 5 or not 1 <= int(text) <= 10_000:
        raise BadValue(field_, text[:80], "not a whole number from 1 to 10000, or 'idle'")
    return int(text)


def parse_cpu_burst(field_: str, text: str) -> int:
    match = _BURST.fullmatch(text)
    if match is None:
        raise BadValue(field_, text[:80], "not a time in ms or us", remedy="for example 50ms, or 0 for none")
    return int(match[1] or 0) * (1000 if match[2] == "ms" else 1)


def show_cpu_burst(value: int) -> str:
    if value % 1000:
        return f"{value}us"
    return f"{value // 1000}ms" if value else "0"


def parse_memory_guarantee(field_: str, text: str) -> int:
    size = units.parse_size(field_, text)
    if size is None:
        raise _endless(field_, text)
    return size


def _endless(field_: str, text: str) -> BadValue:
    return BadValue(field_, text, "a guarantee has an end", remedy="write an amount, or 0 for no guarantee")


def parse_swap(field_: str, text: str) -> int | None:
    return AUTOMATIC if text == "auto" else units.parse_size(field_, text)


def show_swap(value: int | None) -> str:
    return "auto" if value == AUTOMATIC else units.format_size(value)


def parse_addresses(field_: str, text: str) -> tuple[str, ...]:
    if text in ("", "auto"):
        return ()
    addresses = tuple(sorted((parse_address(field_, word) for word in text.replace(",", " ").split()),
                             key=lambda address: ":" in address))
    if len({":" in address for address in addresses}) != len(addresses):
        raise BadValue(field_, text, "more than one address of a family")
    return addresses


def parse_mac_or_auto(field_: str, text: str) -> str:
    return "" if text in ("", "auto") else parse_mac(field_, text)


def parse_hostname(field_: str, text: str) -> str | None:
    if not text:
        return None  # as `show` prints "the VE's name"
    if not _HOSTNAME.fullmatch(text) or ".." in text:
        raise BadValue(field_, text, "a host name has at most 64 letters, digits, '-' and '.'")
    return text


def parse_init(field_: str, text: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise BadValue(field_, text, str(error).lower()) from None
    if "\0" in text or (words and not words[0]):
        raise BadValue(field_, text, "not a command")
    return words


def parse_allow(field_: str, text: str) -> tuple[str, ...]:
    words = {word.strip() for word in text.split(",")} - {""}
    if unknown := words - set(ALLOWABLE):
        raise BadValue(field_, ",".join(sorted(unknown))[:80], "not something that is closed by default",
                       remedy=f"there are: {', '.join(ALLOWABLE)}")
    return tuple(sorted(words))


def parse_flag(field_: str, text: str) -> bool:
    if text not in ("yes", "no"):
        raise BadValue(field_, text, "not a flag", remedy="write 'yes' or 'no'")
    return text == "yes"


def parse_after(field_: str, text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.replace(",", " ").split()))
    if len(names) > _MOST_AFTER:
        raise BadValue(field_, f"{text[:40]}...", f"more than {_MOST_AFTER} VEs")
    for name in names:
        try:
            check_name(name)
        except BadValue as error:
            raise BadValue(field_, name[:80], "not the name of a VE") from error
    return names


def parse_restart(field_: str, text: str) -> Policy:
    if text not in [*Policy]:
        raise BadValue(field_, text[:80], f"not one of {', '.join(Policy)}")
    return Policy(text)


def parse_text(field_: str, text: str) -> str:
    if len(text) > _LONGEST_TEXT or not text.isprintable():
        raise BadValue(field_, text[:40], f"at most {_LONGEST_TEXT} printable characters on one line")
    return text


def parse_group(field_: str, text: str) -> str:
    if text in ("", "none"):
        return ""
    if not LABEL.fullmatch(text):  # it becomes the name of a cgroup
        raise BadValue(field_, text[:80], "a name has at most 63 characters a-z, 0-9 and '-'")
    return text


def parse_profiles(field_: str, text: str) -> tuple[str, ...]:
    words = tuple(text.split())
    if words == ("none",):
        return ()
    for word in words:
        if not LABEL.fullmatch(word):  # it becomes the name of a file
            raise BadValue(field_, word[:80], "a name has at most 63 characters a-z, 0-9 and '-'")
    return words
