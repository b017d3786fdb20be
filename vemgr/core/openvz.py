# SPDX-License-Identifier: GPL-2.0-or-later
"""What an OpenVZ or Virtuozzo container's ID.conf (ctid.conf(5)) comes to here, line by line.

A shell reads these files there; here nothing is executed, and a line that would need a shell is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from vemgr.core.config import parse_settings
from vemgr.core.errors import BadValue, VemgrError
from vemgr.core.names import check_name
from vemgr.core.privileges import ADDABLE, CAPABILITIES, FEATURE_DEVICES, NOT_ADDABLE, NOT_REMOVABLE
from vemgr.core.resources import UNLIMITED, format_cpus, format_size

_LINE = re.compile(r"""(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(?:"([^"]*)"|'([^']*)'|([^\s"'#]*))\s*(?:\#.*)?""")
_LONGEST = 64 << 10
_PAGE, _BLOCK = 4096, 1024
_ENDLESS = 2**31 - 1  # pages, blocks or pieces: LONG_MAX of 32 bits, and all above it
_SUFFIX = re.compile(r"(\d{1,20})([BKMGTP]?)(?:YTES|B)?", re.ASCII)
_SCALE = {"B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": _PAGE}
_DEFAULT_UNITS, _DEFAULT_WEIGHT = 1000, 100

_MEMORY = "one memory limit covers all kinds of memory here"
_SOCKETS = "sockets are counted as memory here"
_HERE = "where files are is settled by vemgr.toml"
_NOTHING = "says nothing about how it is to run"
_NOT_TAKEN: Mapping[str, str] = {
    **dict.fromkeys(("KMEMSIZE", "LOCKEDPAGES", "SHMPAGES", "VMGUARPAGES", "OOMGUARPAGES", "DCACHESIZE",
                     "VM_OVERCOMMIT"), _MEMORY),
    **dict.fromkeys(("NUMTCPSOCK", "NUMOTHERSOCK", "TCPSNDBUF", "TCPRCVBUF", "OTHERSOCKBUF", "DGRAMRCVBUF"), _SOCKETS),
    **dict.fromkeys(("NUMFILE", "NUMFLOCK", "NUMPTY", "NUMSIGINFO", "AVNUMPROC", "NUMIPTENT"),
                    "not limited here apart from memory and processes"),
    **dict.fromkeys(("VE_ROOT", "VE_PRIVATE", "VE_LAYOUT", "NOATIME"), _HERE),
    "QUOTATIME": "a disk is full at its size, at once", "QUOTAUGIDLIMIT": "a VE's users have no quotas here",
    **dict.fromkeys(("VERSION", "UUID", "VEID", "CTID", "ORIGIN_SAMPLE", "CONFIG_CUSTOMIZED", "TEMPLATES",
                     "DISTRIBUTION", "TECHNOLOGIES", "DISABLED", "CLASSID"), _NOTHING),
    "CPULIMIT_MHZ": "depends on the clock of a CPU: give --cpus", "NODEMASK": "give --cpu-mask",
    "MEMGUARANTEE": "a share of what the host has: give --memory-guarantee",
    "NAMESERVER": "VEs ask the name servers of the host", "SEARCHDOMAIN": "VEs search the domains of the host",
    "AUTOSTOP": "VEs are stopped, never frozen, with the host",
    "BINDMOUNT": "a path of the other host: give --mount", "NETDEV": "devices of the host stay with the host",
    "FEATURES": "give --feature for what there is here", "IPTABLES": "each VE has a firewall of its own",
    "NETFILTER": "each VE has a firewall of its own", "RATEBOUND": "it says what RATE is",
    "RATEMPU": "bytes are counted, not packets",
    "HA_ENABLE": "one host only", "HA_PRIO": "one host only",
}


@dataclass
class Line:
    """`taken`: what it comes to, "setting = value"; `why`: what is to be known, or why it comes to nothing."""

    number: int
    key: str
    value: str
    taken: list[str] = field(default_factory=list)
    why: str = ""


@dataclass
class Container:
    """`texts`: settings of a VE, valid each for itself and together."""

    lines: list[Line]
    texts: dict[str, str] = field(default_factory=dict)
    name: str = ""
    template: str = ""


def read(text: str) -> Container:
    """Raises `BadValue` for a line that is no assignment of a plain text."""
    lines = list(_lines(text))
    latest = {line.key: line for line in lines}
    found = Container(lines)
    for line in lines:
        if latest[line.key] is not line:
            line.why = f"line {latest[line.key].number} has it again"
        elif not line.value:
            line.why = "empty"
        elif line.key in _TAKEN:
            _TAKEN[line.key](found, line, {key: each.value for key, each in latest.items()})
        else:
            line.why = _NOT_TAKEN.get(line.key, "not known here")
    return found


def _lines(text: str) -> Iterator[Line]:
    if len(text) > _LONGEST:
        raise BadValue("file", f"{len(text)} characters", f"more than {_LONGEST}: not a container's configuration")
    for number, raw in enumerate(text.splitlines(), 1):
        content = raw.strip()
        if not content or content.startswith("#"):
            continue
        match = _LINE.fullmatch(content)
        if match is None:
            raise BadValue(f"line {number}", ascii(content[:80]), 'not KEY="value"')
        value = next(group for group in match.groups()[1:] if group is not None)
        if re.search(r"[`\\\0]|\$", value.replace("$VEID", "")) and match[3] is None:
            raise BadValue(f"line {number}", ascii(content[:80]), "a shell would put something else in its place",
                           remedy="write what that would be")
        yield Line(number, match[1], value.strip())


def _take(found: Container, line: Line, key: str, text: str, why: str = "") -> None:
    """A setting, if it is a good one together with those before it."""
    try:
        parse_settings(found.texts | {key: text})
    except VemgrError as error:
        line.why = error.message
        return
    found.texts[key] = text
    line.taken.append(f"{key} = {text}")
    line.why = why


def _amount(line: Line, unit: int) -> int | None:
    """The limit of "barrier:limit", in bytes if `unit` is; None for no limit. Raises `BadValue`."""
    text = line.value.rpartition(":")[2].strip().upper()
    if text == UNLIMITED.upper():
        return None
    match = _SUFFIX.fullmatch(text)
    if match is None:
        raise BadValue(line.key, line.value[:80], "not a number, or a pair of them")
    if not match[2] and int(match[1]) >= _ENDLESS:
        return None
    return int(match[1]) * (_SCALE[match[2]] if match[2] else unit)


def _limit(key: str, unit: int, show: Callable[[int | None], str], why: str = "") -> Callable[..., None]:
    def take(found: Container, line: Line, _: Mapping[str, str]) -> None:
        try:
            amount = _amount(line, unit)
        except BadValue as error:
            line.why = error.message
            return
        if amount is None:
            line.why = "no limit, as without it"
        else:
            _take(found, line, key, show(amount), why)

    return take


def _swap(found: Container, line: Line, values: Mapping[str, str]) -> None:
    if "memory" not in found.texts:
        for key in ("PHYSPAGES", "PRIVVMPAGES"):  # it may come later in the file
            if key in values:
                _TAKEN[key](found, Line(0, key, values[key]), values)
    _limit("swap", _PAGE, format_size)(found, line, values)


def _private(found: Container, line: Line, values: Mapping[str, str]) -> None:
    if values.get("PHYSPAGES"):
        line.why = "PHYSPAGES is the limit"
    else:
        _limit("memory", _PAGE, format_size, "it was a limit of what is asked for, and is one of what is used")(
            found, line, values)


def _cpus(found: Container, line: Line, values: Mapping[str, str]) -> None:
    try:
        count, percent = int(values.get("CPUS") or 0), int(float(values.get("CPULIMIT", "0").rstrip("%") or 0))
    except (ValueError, OverflowError):
        line.why = "not a number"
        return
    limits = [limit for limit in (count * 1000, percent * 10) if limit > 0]
    own = count * 1000 if line.key == "CPUS" else percent * 10
    if own <= 0:
        line.why = "no limit, as without it"
    elif own != min(limits):
        line.why = "the other of CPUS and CPULIMIT is the lower one"
    else:
        _take(found, line, "cpus", format_cpus(min(limits)))


def _units(found: Container, line: Line, _: Mapping[str, str]) -> None:
    if not line.value.isdecimal():
        line.why = "not a number"
        return
    weight = min(max(int(line.value) * _DEFAULT_WEIGHT // _DEFAULT_UNITS, 1), 10000)
    _take(found, line, "cpu-weight", str(weight), f"{_DEFAULT_UNITS} there is {_DEFAULT_WEIGHT} here")


def _inodes(found: Container, line: Line, values: Mapping[str, str]) -> None:
    if "disk" not in found.texts and values.get("DISKSPACE"):
        _TAKEN["DISKSPACE"](found, Line(0, "DISKSPACE", values["DISKSPACE"]), values)
    _limit("inodes", 1, str)(found, line, values)


def _mask(found: Container, line: Line, _: Mapping[str, str]) -> None:
    if line.value in ("all", "auto"):
        line.why = "all CPUs, as without it"
    else:
        _take(found, line, "cpu-mask", line.value)


def _addresses(found: Container, line: Line, _values: Mapping[str, str]) -> None:
    chosen: dict[bool, str] = {}
    left = []
    for word in line.value.split():
        address = word.partition("/")[0]
        if (":" in address) in chosen:
            left.append(address)
        else:
            chosen[":" in address] = address
    _take(found, line, "address", " ".join(chosen.values()),
          f"one of each family; left out: {' '.join(left)}" if left else "")


def _boot(found: Container, line: Line, _: Mapping[str, str]) -> None:
    _take(found, line, "on-boot", "no" if line.value.lower() == "no" else "yes")


def _plain(key: str) -> Callable[..., None]:
    return lambda found, line, _: _take(found, line, key, line.value)


def _both(*keys: str) -> Callable[..., None]:
    def take(found: Container, line: Line, _: Mapping[str, str]) -> None:
        if not line.value.isdecimal() or line.value == "0":
            line.why = "no limit, as without it" if line.value == "0" else "not a number of bytes"
            return
        for key in keys:
            _take(found, line, key, line.value, "it was one limit for both ways, and is one for each")

    return take


def _io_weight(found: Container, line: Line, _: Mapping[str, str]) -> None:
    if line.value in tuple("01234567"):
        _take(found, line, "io-weight", str(20 * (int(line.value) + 1)), "4 there is 100 here")
    else:
        line.why = "not a priority from 0 to 7"


def _name(found: Container, line: Line, _: Mapping[str, str]) -> None:
    try:
        check_name(line.value)
    except BadValue as error:
        line.why = error.message
        return
    found.name = line.value
    line.taken.append(f"name = {line.value}")


def _template(found: Container, line: Line, _: Mapping[str, str]) -> None:
    match = re.match(r"\.?([a-z]+)-(\d+)", line.value.lower())
    if match is None:
        line.why = "give --template"
        return
    found.template = f"{match[1]}-{match[2]}"
    line.taken.append(f"template = {found.template}")


def _capabilities(found: Container, line: Line, _values: Mapping[str, str]) -> None:
    words, notes = [], []
    for word in line.value.lower().split():
        name, _, state = word.partition(":")
        if state not in ("on", "off"):
            notes.append(f"{word}: neither on nor off")
        elif state == "on" and name in CAPABILITIES:
            notes.append(f"{name}: each VE has it")
        elif state == "on" and name not in ADDABLE:
            notes.append(f"{name}: {NOT_ADDABLE.get(name, 'not known here')}")
        elif state == "off" and name not in CAPABILITIES:
            notes.append(f"{name}: no VE has it")
        elif state == "off" and name in NOT_REMOVABLE:
            notes.append(f"{name}: no VE can be without it")
        else:
            words.append(f"{'+' if state == 'on' else '-'}{name}")
    line.why = "; ".join(notes)
    if words:
        _take(found, line, "capability", " ".join(words), line.why)


def _devices(found: Container, line: Line, _values: Mapping[str, str]) -> None:
    features = {path: feature for feature, (path, _, _) in FEATURE_DEVICES.items()}
    wanted, passed = [], []
    for word in line.value.split():
        name, _, rights = word.partition(":")
        if name in features:
            wanted.append(features[name])
        else:
            passed.append(f"/dev/{name}" + (f":{''.join(each for each in 'rw' if each in rights)}" if rights else ""))
    for key, words in (("feature", wanted), ("device", passed)):
        if words:
            _take(found, line, key, " ".join(words), line.why)


def _rate(found: Container, line: Line, values: Mapping[str, str]) -> None:
    """DEVICE:CLASS:KBITS, of what the container sends."""
    match = re.fullmatch(r"[^:\s]+:1:(\d{1,9})", line.value, re.ASCII)
    if values.get("RATEBOUND", "no").lower() != "yes":
        line.why = "without RATEBOUND it is no limit"
    elif match is None:
        line.why = "not one rate for all that is sent: give --network-rate"
    else:
        _take(found, line, "network-rate", f"{match[1]}k:out")


def _numbers(found: Container, line: Line, _: Mapping[str, str]) -> None:
    del found
    line.why = "devices by number: give --device with the path"


def _interfaces(found: Container, line: Line, _: Mapping[str, str]) -> None:
    options = dict(word.partition("=")[::2] for word in line.value.split(";")[0].split(","))
    line.why = "interfaces come with networks: give --network"
    if options.get("mac"):
        _take(found, line, "mac", options["mac"].lower(), line.why)


_TAKEN: Mapping[str, Callable[[Container, Line, Mapping[str, str]], None]] = {
    "PHYSPAGES": _limit("memory", _PAGE, format_size), "PRIVVMPAGES": _private, "SWAPPAGES": _swap,
    "MEMGUARANTEE_BYTES": _limit("memory-guarantee", 1, format_size), "CPUUNITS": _units, "CPULIMIT": _cpus,
    "CPUS": _cpus, "CPUMASK": _mask, "NUMPROC": _limit("pids", 1, str),
    "DISKSPACE": _limit("disk", _BLOCK, format_size), "DISKINODES": _inodes, "IP_ADDRESS": _addresses,
    "HOSTNAME": _plain("hostname"), "DESCRIPTION": _plain("description"), "STOP_TIMEOUT": _plain("stop-timeout"),
    "BOOTORDER": _plain("boot-priority"),
    "ONBOOT": _boot, "IOLIMIT": _both("io-read", "io-write"), "IOPSLIMIT": _both("iops-read", "iops-write"),
    "IOPRIO": _io_weight, "NAME": _name, "OSTEMPLATE": _template, "CAPABILITY": _capabilities,
    "DEVNODES": _devices, "DEVICES": _numbers, "NETIF": _interfaces,
    "RATE": _rate,
}
