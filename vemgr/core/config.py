# SPDX-License-Identifier: GPL-2.0-or-later
"""What an administrator can say about a VE: one table of settings.

Each row gives the key of the definition file, the command line's option, how to read and print the value, whether it
takes effect in a running VE, and the help text. The store, the API, the command line and the man page come from it.
"""

from __future__ import annotations

import functools
import operator
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vemgr.core import parsing
from vemgr.core import resources as units
from vemgr.core.binds import BindMount, parse_binds, show_binds
from vemgr.core.errors import BadParameter, BadValue
from vemgr.core.ids import USER_NAMESPACES
from vemgr.core.links import (
    Link,
    Publication,
    parse_links,
    parse_publications,
    show_links,
    show_publications,
)
from vemgr.core.parsing import AUTOMATIC, BLOCK, IDLE
from vemgr.core.privileges import (
    ADDABLE,
    FEATURES,
    NONE,
    PassedDevice,
    opened,
    parse_capabilities,
    parse_devices,
    parse_features,
    show_devices,
)
from vemgr.core.rates import (
    NO_RATE,
    Rate,
    parse_network_guarantee,
    parse_network_rate,
    show_bits,
    show_network_rate,
)
from vemgr.core.restarting import Policy
from vemgr.core.syscalls import ALLOWABLE

MIB = 1 << 20
_LEAST_PIDS = 4  # init, and the set-up process with its children, which count against the limit
_MOST_NAMESPACES = 65536
_LEAST_INODES, _MOST_INODES = 1024, 2**32 - 1
_MOST_PIDS = 4194304  # the kernel's PID_MAX_LIMIT


@dataclass(frozen=True)
class Settings:
    """The values of a VE's settings; None is "no limit" or "as the default goes"."""

    cpus: int | None = None  # thousandths of a CPU
    cpu_burst: int = 0  # microseconds
    cpu_guarantee: int = 0  # thousandths of a CPU
    cpu_weight: int = 100
    cpu_mask: str | None = None
    memory: int | None = None  # bytes
    memory_guarantee: int = 0
    swap: int | None = AUTOMATIC  # bytes
    pids: int | None = None
    disk: int | None = None  # bytes
    inodes: int | None = None
    io_weight: int = 100
    io_read: int | None = None  # bytes/s
    io_write: int | None = None
    iops_read: int | None = None  # operations/s
    iops_write: int | None = None
    group: str = ""
    network: tuple[Link, ...] = (Link(),)
    address: tuple[str, ...] = ()  # of the first link
    mac: str = ""
    publish: tuple[Publication, ...] = ()
    network_rate: Rate = NO_RATE
    network_guarantee: int = 0  # bit/s
    network_weight: int = 100
    mount: tuple[BindMount, ...] = ()
    hostname: str | None = None
    init: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    feature: tuple[str, ...] = ()
    device: tuple[PassedDevice, ...] = ()
    capability: tuple[str, ...] = ()  # "+name" and "-name"
    user_namespaces: int = USER_NAMESPACES
    on_boot: bool = False
    boot_priority: int = 0
    after: tuple[str, ...] = ()
    ready_timeout: int = 120  # seconds
    restart: Policy = Policy.NO
    stop_timeout: int = 30  # seconds
    description: str = ""
    profile: tuple[str, ...] = ()  # whose values were taken over

    @property
    def opened(self) -> tuple[str, ...]:
        """The groups of system calls that are closed by default and open in this VE."""
        return opened(self.allow, self.feature) if self.feature else self.allow

    @property
    def shares_uplink(self) -> bool:
        """Whether the VE has a share of the host's uplink of its own."""
        return bool(self.network_guarantee) or self.network_weight != DEFAULTS.network_weight


@dataclass(frozen=True)
class Setting:
    """A row of the table. `controller`: the cgroup controller that enforces it, "" for settings that are no limit."""

    key: str
    metavar: str
    parse: Callable[[str, str], Any]
    show: Callable[[Any], str]
    help: str
    live: bool = True
    controller: str = ""
    repeatable: bool = False  # on the command line; in a text, the values are separated by spaces

    @property
    def option(self) -> str:
        return f"--{self.key}"

    @functools.cached_property
    def attribute(self) -> str:
        return self.key.replace("-", "_")


SETTINGS: tuple[Setting, ...] = (
    Setting("cpus", "N", units.parse_cpus, units.format_cpus, "CPU limit, in CPUs: 1.5", controller="cpu"),
    Setting("cpu-burst", "TIME", parsing.parse_cpu_burst, parsing.show_cpu_burst,
            "CPU time left over from quiet periods that may be used above the limit: 50ms", controller="cpu"),
    Setting("cpu-guarantee", "N", parsing.parse_cpu_guarantee, units.format_cpus,
            "CPUs that the VE can count on, whatever others do: 0.5", controller="cpu"),
    Setting("cpu-weight", "1-10000", parsing.parse_cpu_weight, lambda value: str(value or "idle"),
            "share of contended CPU time, relative to other VEs; 'idle' to run only on CPUs that no other wants",
            controller="cpu"),
    Setting("cpu-mask", "LIST|auto:N", units.parse_cpu_mask, lambda value: value or "all",
            "CPUs the VE may run on: 0-2,5; 'auto:2' for two that are chosen at the start, where least is pinned and "
            "close to each other", controller="cpuset"),
    Setting("memory", "SIZE", parsing.parse_memory, units.format_size, "memory limit: 512M", controller="memory"),
    Setting("memory-guarantee", "SIZE", parsing.parse_memory_guarantee, units.format_size,
            "memory that is not taken from the VE, whatever others need: 256M", controller="memory"),
    Setting("swap", "SIZE", parsing.parse_swap, parsing.show_swap,
            "swap limit: 0, 256M, 'auto' for none where memory is limited", controller="memory"),
    Setting("pids", "N", parsing.count(_LEAST_PIDS, _MOST_PIDS, unlimited=True), parsing.count_text,
            "how many processes and threads there may be", controller="pids"),
    Setting("disk", "SIZE", parsing.parse_disk, units.format_size,
            "what the VE's files may take: 10G. By a project quota where the file system of the VEs has them; else by "
            "a file system of its own, which is made smaller only while the VE is stopped"),
    Setting("inodes", "N", parsing.count(_LEAST_INODES, _MOST_INODES, unlimited=True), parsing.count_text,
            "how many files and directories a disk with a size has room for; without quotas rounded up, and settled "
            "at the first start"),
    Setting("io-weight", "1-1000", parsing.count(1, 1000), str,
            "share of a contended disk, relative to other VEs", controller="io"),
    Setting("io-read", "RATE", units.parse_rate, units.format_rate, "disk read limit: 10M/s", controller="io"),
    Setting("io-write", "RATE", units.parse_rate, units.format_rate, "disk write limit: 10M/s", controller="io"),
    Setting("iops-read", "N", parsing.count(1, 10**9, unlimited=True), parsing.count_text,
            "disk read operations per second", controller="io"),
    Setting("iops-write", "N", parsing.count(1, 10**9, unlimited=True), parsing.count_text,
            "disk write operations per second", controller="io"),
    Setting("group", "NAME", parsing.parse_group, lambda value: value or NONE,
            "group whose limits and guarantees the VE shares with the others in it; 'none' for none", live=False),
    Setting("network", "NAME[:OPTIONS]", parse_links, show_links,
            "network of eth0; given again, of eth1, and so on; 'none' for no network. OPTIONS are address=ADDRESS and "
            "mac=MAC, with commas between them", live=False, repeatable=True),
    Setting("address", "ADDRESS", parsing.parse_addresses, lambda value: " ".join(value) or "auto",
            "IPv4 or IPv6 address of eth0, or both; 'auto' for one from the network's pool", live=False,
            repeatable=True),
    Setting("mac", "MAC", parsing.parse_mac_or_auto, lambda value: value or "auto",
            "MAC address of eth0, or 'auto' for one that follows from the address", live=False),
    Setting("publish", "[ADDR:]PORT:PORT[/udp]", parse_publications, show_publications,
            "port of the host that leads to a port of the VE; empty for none", repeatable=True),
    Setting("network-rate", "RATE[:in|:out]", parse_network_rate, show_network_rate,
            "how fast each link may be in bit/s, 10M, or 100M:in and 10M:out; may be given again; 'unlimited' for no "
            "limit", repeatable=True),
    Setting("network-guarantee", "RATE", parse_network_guarantee, show_bits,
            "bit/s to the world that the VE can count on, out of the rate of the host's uplink: 10M; 0 for none"),
    Setting("network-weight", "1-1000", parsing.count(1, 1000), str,
            "share of what is left over of the host's uplink, relative to other VEs"),
    Setting("mount", "SRC:DST[:ro]", parse_binds, show_binds,
            "directory or file of the host, or volume, that is seen as DST in the VE, with 'ro' only for reading; may "
            "be given again; 'none' for none", live=False, repeatable=True),
    Setting("hostname", "NAME", parsing.parse_hostname, lambda value: value or "", "host name inside (the VE's name)",
            live=False),
    Setting("init", "COMMAND", parsing.parse_init, shlex.join,
            "what runs as process 1, empty for the template's own or the built-in one", live=False),
    Setting("allow", "WORD,...", parsing.parse_allow, ",".join,
            f"system calls that are closed by default: {', '.join(ALLOWABLE)}", live=False),
    Setting("feature", "WORD", parse_features, lambda value: " ".join(value) or NONE,
            f"what more the VE can do: {', '.join(FEATURES)}; may be given again; 'none' for none", live=False,
            repeatable=True),
    Setting("device", "PATH[:rwm][:force]", parse_devices, show_devices,
            "device of the host, of the same path below /dev in the VE, with what may be done to it; may be given "
            "again; 'none' for none", live=False, repeatable=True),
    Setting("capability", "+NAME|-NAME", parse_capabilities, lambda value: " ".join(value) or NONE,
            f"capability that the VE has (+{' +'.join(ADDABLE)}) or has not beside the usual ones; may be given again; "
            "'none' for no change", live=False, repeatable=True),
    Setting("user-namespaces", "N", parsing.count(0, _MOST_NAMESPACES), str,
            "how many user namespaces each user inside may have, 0 for none", live=False),
    Setting("on-boot", "yes|no", parsing.parse_flag, lambda value: "yes" if value else "no", "start with the host"),
    Setting("boot-priority", "N", parsing.count(0, 1000), str,
            "of several VEs that start at the same time the one with the highest begins, and is stopped last"),
    Setting("after", "NAME", parsing.parse_after, " ".join,
            "VE that must be up before this one starts, and is stopped later, where both start or stop at the same "
            "time; may be given again; empty for none", repeatable=True),
    Setting("ready-timeout", "SECONDS", parsing.count(0, 3600), str,
            "how long VEs that come after this one wait until it is up; 0 for not at all"),
    Setting("restart", "no|on-failure|always", parsing.parse_restart, str,
            "start the VE again when it has ended by itself: after a crash, or also when its init has ended with 0"),
    Setting("stop-timeout", "SECONDS", parsing.count(0, 3600), str,
            "how long a stop waits for the VE to end by itself"),
    Setting("description", "TEXT", parsing.parse_text, str, "a line for people"),
    Setting("profile", "NAME", parsing.parse_profiles, " ".join,
            "settings to begin with, from a file of the administrator's; given again, the later one wins, and what is "
            "given by itself wins over all. Values are copied: 'set' copies them anew", repeatable=True),
)
BY_KEY: Mapping[str, Setting] = {setting.key: setting for setting in SETTINGS}


def parse_settings(texts: Mapping[str, str], base: Settings | None = None) -> Settings:
    """`base` with the settings in `texts` replaced; a text "default" brings the default back.

    Raises `BadParameter` for an unknown key and `BadValue` for a value.
    """
    values: dict[str, Any] = {}
    for key, text in texts.items():
        setting = BY_KEY.get(key)
        if setting is None:
            raise BadParameter(f"unknown setting: {key}", remedy=f"there are: {', '.join(BY_KEY)}", field=key)
        if not _is_encodable(text):  # it could not be written down
            raise BadValue(key, ascii(text)[:80], "a character in it cannot be encoded")
        if text == "default":
            values[setting.attribute] = getattr(DEFAULTS, setting.attribute)
        else:
            values[setting.attribute] = setting.parse(key, text)
    result = replace(base or DEFAULTS, **values)
    if result.swap not in (None, AUTOMATIC) and result.memory is None:
        raise BadValue("swap", units.format_size(result.swap), "a swap limit needs a memory limit",
                       remedy="set memory too")
    for key, guarantee, limit in (("cpu-guarantee", result.cpu_guarantee, result.cpus),
                                  ("memory-guarantee", result.memory_guarantee, result.memory)):
        if limit is not None and guarantee > limit:
            raise BadValue(key, BY_KEY[key].show(guarantee), "more than the limit",
                           remedy=f"raise {'cpus' if key == 'cpu-guarantee' else 'memory'} too")
    if result.cpu_burst and result.cpus is None:
        raise BadValue("cpu-burst", parsing.show_cpu_burst(result.cpu_burst), "there is no limit of CPUs to exceed",
                       remedy="set cpus too")
    if result.inodes is not None and result.inodes > (result.disk or 0) // BLOCK:
        raise BadValue("inodes", result.inodes, f"there is one for each {BLOCK} bytes of 'disk' at most",
                       remedy="set disk, or a larger one")
    if result.cpu_mask is not None and result.cpu_guarantee > 1000 * units.mask_size(result.cpu_mask):
        raise BadValue("cpu-guarantee", units.format_cpus(result.cpu_guarantee), "more than the CPUs of cpu-mask")
    if result.cpu_weight == IDLE and result.cpu_guarantee:
        raise BadValue("cpu-weight", "idle", "a VE with a CPU guarantee cannot have only what others leave",
                       remedy="give it a weight, or set cpu-guarantee to 0")
    _check_network(result)
    return result


def _check_network(settings: Settings) -> None:
    """What one of the network's settings says must not contradict another."""
    names = [link.network for link in settings.network]
    if len(set(names)) != len(names):
        raise BadValue("network", show_links(settings.network), "a VE has one link to a network")
    for key, value in (("address", " ".join(settings.address)), ("mac", settings.mac),
                       ("publish", show_publications(settings.publish))):
        if value and not names:
            raise BadValue(key, value, "a VE with network 'none' has no address")
    if settings.network_guarantee and not names:
        raise BadValue("network-guarantee", show_bits(settings.network_guarantee), "the VE has network 'none'")
    if names:
        first = settings.network[0]
        outgoing = settings.network_rate.outgoing
        if outgoing is not None and settings.network_guarantee > outgoing:
            raise BadValue("network-guarantee", show_bits(settings.network_guarantee), "more than the limit",
                           remedy="raise network-rate too")
        if (settings.address and first.addresses) or (settings.mac and first.mac):
            raise BadValue("network", str(first), "says what address or mac says too",
                           remedy="give it once, with one of the options")


def wished_links(settings: Settings) -> tuple[Link, ...]:
    """The links that a VE is to have, with what was asked for; "" is for the network to choose."""
    if not settings.network:
        return ()
    first, *others = settings.network
    addresses = settings.address or first.addresses
    first = Link(first.network, next((a for a in addresses if ":" not in a), ""),
                 next((a for a in addresses if ":" in a), ""), settings.mac or first.mac)
    return (first, *others)


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def show_settings(settings: Settings, *, all_: bool = False) -> dict[str, str]:
    """Key to text, of those that differ from the default or of all; `parse_settings` reads it back."""
    return {
        setting.key: setting.show(getattr(settings, setting.attribute))
        for setting in SETTINGS
        if all_ or getattr(settings, setting.attribute) != getattr(DEFAULTS, setting.attribute)
    }


_VALUES = operator.attrgetter(*(setting.attribute for setting in SETTINGS))


def changed(before: Settings, after: Settings) -> list[Setting]:
    old, new = _VALUES(before), _VALUES(after)
    return [] if old == new else [s for s, one, other in zip(SETTINGS, old, new, strict=True) if one != other]


DEFAULTS = Settings()


@dataclass(frozen=True)
class Definition:
    """What is kept of a VE over restarts. `links`: with the addresses that it got from the pools or was given;
    `started`: it has been started before; `ephemeral`: it goes away when its command ends."""

    name: str
    template: str
    id_base: int
    created: str
    settings: Settings = field(default_factory=Settings)
    links: tuple[Link, ...] = ()
    started: bool = False
    ephemeral: bool = False

    @property
    def address(self) -> str:
        """The IPv4 address of eth0, "" without one."""
        return self.links[0].address if self.links else ""

    @property
    def hostname(self) -> str:
        return self.settings.hostname or self.name
