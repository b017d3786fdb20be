# SPDX-License-Identifier: GPL-2.0-or-later
"""Units of resources: parsing what an administrator writes and printing it back.

Sizes and rates are binary (1M = 1,048,576 bytes), as the cgroup files and every other tool of this field have them.
Each parser takes the field's name for its error, and `UNLIMITED` stands for no limit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal

from vemgr.core.errors import BadValue

UNLIMITED = "unlimited"
_SUFFIXES = {"": 0, "B": 0, "K": 1, "M": 2, "G": 3, "T": 4}
# ASCII: other scripts' digits would go into the kernel's files as they are.
_SIZE = re.compile(r"(\d{1,19}(?:\.\d{1,6})?)\s*([BKMGT]?)(?:iB|I?B)?", re.IGNORECASE | re.ASCII)
_NUMBER = re.compile(r"\d{1,15}", re.ASCII)
_CPUS = re.compile(r"\d{1,5}(?:\.\d{1,4})?", re.ASCII)
_MASK = re.compile(r"\d{1,5}(?:-\d{1,5})?(?:,\d{1,5}(?:-\d{1,5})?)*", re.ASCII)
_CHOSEN = re.compile(r"auto:(\d{1,5})", re.ASCII)
_HIGHEST_CPU = 8191  # the kernel's largest NR_CPUS


def parse_size(field: str, text: str, *, least: int = 0) -> int | None:
    """Bytes, or None for unlimited. "512M", "1.5G", "4096"."""
    if text == UNLIMITED:
        return None
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise BadValue(field, text, "not a size", remedy=f"write a number with K, M, G or T, or '{UNLIMITED}'")
    size = int(Decimal(match[1]) * 1024 ** _SUFFIXES[match[2].upper()])
    if size < least or size >= 2**63:
        raise BadValue(field, text, f"the least is {format_size(least)}, the most 8388607T")
    return size


def format_size(size: int | None) -> str:
    """The shortest exact spelling: 1536M, not 1.5G."""
    if size is None:
        return UNLIMITED
    for suffix, power in (("T", 4), ("G", 3), ("M", 2), ("K", 1)):
        if size and size % 1024**power == 0:
            return f"{size // 1024**power}{suffix}"
    return str(size)


def parse_rate(field: str, text: str) -> int | None:
    """Bytes per second: a size, "/s" may follow."""
    return parse_size(field, text.removesuffix("/s"), least=4096 if text != UNLIMITED else 0)


def format_rate(rate: int | None) -> str:
    return UNLIMITED if rate is None else f"{format_size(rate)}/s"


def parse_count(field: str, text: str, *, least: int, most: int, unlimited: bool = False) -> int | None:
    if unlimited and text == UNLIMITED:
        return None
    if not _NUMBER.fullmatch(text) or not least <= int(text) <= most:
        also = f", or '{UNLIMITED}'" if unlimited else ""
        raise BadValue(field, text, f"not a whole number from {least} to {most}{also}")
    return int(text)


def parse_cpus(field: str, text: str) -> int | None:
    """Thousandths of a CPU: "1.5" is 1500. The kernel's shortest quota, 1 ms in 100 ms, makes 0.01 the least."""
    if text == UNLIMITED:
        return None
    if not _CPUS.fullmatch(text) or Decimal(text) < Decimal("0.01"):
        raise BadValue(field, text, "not a number of CPUs of at least 0.01", remedy="for example 0.5, 2 or 1.75")
    return int(Decimal(text) * 1000)


def format_cpus(millicpus: int | None) -> str:
    return UNLIMITED if millicpus is None else f"{Decimal(millicpus) / 1000:f}"


def parse_cpu_mask(field: str, text: str) -> str | None:
    """A list as cpuset.cpus takes it, "0-2,5", or "auto:2" for so many that are chosen; None for every CPU."""
    if text in ("all", UNLIMITED):
        return None
    if (match := _CHOSEN.fullmatch(text)) is not None:
        if not 1 <= int(match[1]) <= _HIGHEST_CPU + 1:
            raise BadValue(field, text, f"not a number of CPUs from 1 to {_HIGHEST_CPU + 1}")
        return f"auto:{int(match[1])}"
    if not _MASK.fullmatch(text):
        raise BadValue(field, text[:80], "not a list of CPU numbers",
                       remedy="for example 0, 0-3 or 0,2,4-7, 'auto:2' for two that vemgr chooses, or 'all'")
    for part in text.split(","):
        first, _, last = part.partition("-")
        if int(last or first) < int(first) or int(last or first) > _HIGHEST_CPU:
            raise BadValue(field, text, f"'{part}' is not a range of CPU numbers")
    return text


def chosen_cpus(mask: str | None) -> int:
    """How many CPUs are to be chosen; 0 where they are given, or all."""
    match = _CHOSEN.fullmatch(mask or "")
    return int(match[1]) if match is not None else 0


def mask_size(mask: str) -> int:
    return chosen_cpus(mask) or len(expand_cpu_mask(mask))


def format_cpu_mask(cpus: Iterable[int]) -> str:
    """As cpuset.cpus prints it."""
    ranges: list[list[int]] = []
    for cpu in sorted(cpus):
        if ranges and ranges[-1][1] == cpu - 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def expand_cpu_mask(text: str) -> set[int]:
    cpus: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus
