# SPDX-License-Identifier: GPL-2.0-or-later
"""The set-up plan of a VE: every operation of a start as a value.

The daemon computes a plan, prints it (`vemgr start --dry-run`) or sends it to the keeper, whose child executes it in
one loop. A plan holds no descriptor and no secret, so a golden file of it can be compared without root.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from vemgr.core.ids import ID_COUNT, NESTED_BASE, USER_NAMESPACES
from vemgr.core.layers import Template
from vemgr.core.privileges import CAPABILITIES

DISK = "disk"
NETNS_FD = 30  # a number that is free in a set-up process, which has a dozen descriptors
TTY_GROUP = 5  # the group of terminals in every distribution
PAYLOAD_ENVIRONMENT = {"container": "vemgr", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


@dataclass(frozen=True)
class Operation:
    """One step; `describe` is what a dry run prints and what an error names."""

    kind: ClassVar[str] = ""

    def describe(self) -> str:
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        return " ".join((self.kind, *(f"{name}={_shown(name, value)}" for name, value in values if value != ())))


@dataclass(frozen=True)
class Layer(Operation):
    """Clone the mount at host path `source` as layer `index`, ids shifted into the VE's range."""

    kind = "layer"
    index: int
    source: str


@dataclass(frozen=True)
class Disk(Operation):
    """The VE's own file system, from the file `image`, as `DISK` of the stage. `mount`: path of the mount, which the
    daemon has made."""

    kind = "disk"
    image: str
    mount: str = ""

    def describe(self) -> str:
        return f"{self.kind} image={self.image}"


@dataclass(frozen=True)
class Overlay(Operation):
    """Overlay of layers `lowers` (top first) with host directory `data`/{upper,work}, on `target` in the VE."""

    kind = "overlay"
    target: str
    lowers: tuple[int, ...]
    data: str


@dataclass(frozen=True)
class Filesystem(Operation):
    """A new instance of a kernel file system on `target`; `flags` are mount attributes, {base} is the id base."""

    kind = "filesystem"
    fstype: str
    target: str
    options: tuple[tuple[str, str], ...] = ()
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Directory(Operation):
    kind = "directory"
    path: str
    mode: int = 0o755


@dataclass(frozen=True)
class Device(Operation):
    """A character device node below the VE's /dev."""

    kind = "device"
    name: str
    major: int
    minor: int
    mode: int = 0o666


@dataclass(frozen=True)
class HostDevice(Operation):
    """A device of the host at the same place below the VE's /dev, for its root alone unless `mode` says otherwise.
    `access`: what the VE's device program allows."""

    kind = "host-device"
    name: str
    major: int
    minor: int
    block: bool = False
    mode: int = 0o600
    access: str = "rwm"


@dataclass(frozen=True)
class Symlink(Operation):
    kind = "symlink"
    path: str
    points_to: str


@dataclass(frozen=True)
class Mask(Operation):
    """Hide `names` below the file system mounted at `under`; a name the kernel does not have is passed over."""

    kind = "mask"
    under: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class ReadOnly(Operation):
    """Make `names` below the file system mounted at `under` read-only, except `writable` inside them."""

    kind = "read-only"
    under: str
    names: tuple[str, ...]
    writable: tuple[str, ...] = ()


@dataclass(frozen=True)
class View(Operation):
    """The files `names` (below /) of the lxcfs at the host's `source`, over those of the same name in the VE,
    read-only. What cannot be had is left out, unless it is `required`."""

    kind = "view"
    source: str
    names: tuple[str, ...]
    required: bool = False


@dataclass(frozen=True)
class WriteFile(Operation):
    """Write a small file in the VE's tree. `when`: "first" start only, or "managed" (ours by its first line)."""

    kind = "file"
    path: str
    content: str
    when: str = "first"


@dataclass(frozen=True)
class Bind(Operation):
    """The host's `source`, ids shifted into the VE's range, on `target` in the VE, made where it is missing.

    Not what is mounted below `source`. `directory`: it is one, else a file.
    """

    kind = "bind"
    source: str
    target: str
    directory: bool = True
    read_only: bool = False


@dataclass(frozen=True)
class Sysctl(Operation):
    """A setting of the VE's own namespaces; {base} and {last} are the ends of its id range."""

    kind = "sysctl"
    key: str
    value: str


@dataclass(frozen=True)
class Console(Operation):
    """A pseudo-terminal of the VE's own devpts as /dev/console, its other end kept by the keeper."""

    kind = "console"


@dataclass(frozen=True)
class Notify(Operation):
    """A datagram socket at `path` by which the VE's init says that it is up (sd_notify(3)). The path is where systemd's
    container interface wants it (systemd.io/CONTAINER_INTERFACE)."""

    kind = "notify"
    path: str = "run/host/notify"


@dataclass(frozen=True)
class Network(Operation):
    """Make the VE's links, and configure its ends of them: rtnetlink messages, in base64.

    `links` are sent on the host, with the VE's network namespace as descriptor `NETNS_FD`; `inside` in the VE. Only a
    keeper of before version 7 takes them with the plan: for others they come later, when the host's side is there.
    """

    kind = "network"
    links: str = ""
    inside: str = ""

    def describe(self) -> str:
        return self.kind


def _shown(name: str, value: Any) -> str:
    """A value on one line: modes in octal, pairs as key=value, line breaks escaped."""
    if name == "mode":
        return f"{value:o}"
    if isinstance(value, tuple):
        return ",".join("=".join(filter(None, item)) if isinstance(item, tuple) else str(item) for item in value)
    return repr(value) if isinstance(value, str) and not value.isprintable() else str(value)


_KINDS: dict[str, type[Operation]] = {
    c.kind: c
    for c in (Layer, Disk, Overlay, Filesystem, Directory, Device, HostDevice, Symlink, Mask, ReadOnly, View, WriteFile,
              Bind, Sysctl, Console, Notify, Network)
}


@dataclass(frozen=True)
class Plan:
    """`init`: argument vector of the VE's PID 1, empty for the built-in reaper. `first`: never started before.
    `user_namespaces`: how many of them each user inside may have."""

    name: str
    hostname: str
    id_base: int
    init: tuple[str, ...]
    stage: str
    first: bool
    operations: tuple[Operation, ...]
    capabilities: tuple[str, ...] = CAPABILITIES
    user_namespaces: int = USER_NAMESPACES
    id_count: int = ID_COUNT

    def expand(self, text: str) -> str:
        """Put in the ids that {base}, {last} and {tty} stand for."""
        ids = {"base": self.id_base, "last": self.id_base + self.id_count - 1, "tty": self.id_base + TTY_GROUP}
        for word, number in ids.items():
            text = text.replace(f"{{{word}}}", str(number))
        return text

    @property
    def nested(self) -> bool:
        """Whether this is a VE in a VE, whose ids are not shifted."""
        return self.id_base == NESTED_BASE

    @property
    def notify(self) -> Notify | None:
        """How its init says that it is up, if it can."""
        return next((operation for operation in self.operations if isinstance(operation, Notify)), None)

    def without_notify(self) -> Plan:
        return self.without(Notify)

    def without(self, kind: type[Operation]) -> Plan:
        return replace(self, operations=tuple(op for op in self.operations if not isinstance(op, kind)))

    @property
    def environment(self) -> dict[str, str]:
        """Of its init."""
        notify = self.notify
        return {**PAYLOAD_ENVIRONMENT, "NOTIFY_SOCKET": f"/{notify.path}"} if notify else PAYLOAD_ENVIRONMENT

    def with_network(self, links: str, inside: str) -> Plan:
        """With the messages, which are known only when the host's side is there."""
        *others, network = self.operations
        assert isinstance(network, Network)
        return replace(self, operations=(*others, Network(links, inside)))

    def with_disk(self, mount: str) -> Plan:
        """With the mount, which is made for one start."""
        disk, *others = self.operations
        assert isinstance(disk, Disk)
        return replace(self, operations=(replace(disk, mount=mount), *others))

    def describe_operation(self, number: int) -> str:
        """What an error names."""
        return self.expand(self.operations[number].describe())

    def describe(self) -> list[str]:
        """The plan for a reader, one line a step."""
        return [
            "clone namespaces=user,pid,net,uts,ipc,cgroup,time,mnt into the VE's cgroup",
            f"map ids 0-{self.id_count - 1} to {self.id_base}-{self.id_base + self.id_count - 1}",
            f"user namespaces at most {self.user_namespaces} of each user",
            f"hostname {self.hostname}",
            *(self.expand(operation.describe()) for operation in self.operations),
            f"capabilities {','.join(self.capabilities)}",
            "seccomp filter",
            f"exec {' '.join(self.init) if self.init else 'built-in init'}",
        ]

    def to_json(self) -> str:
        texts, others = _constant_texts(), {key: value for key, value in vars(self).items() if key != "operations"}
        operations = ", ".join([texts.get(id(operation)) or _text(operation) for operation in self.operations])
        return f'{json.dumps(others)[:-1]}, "operations": [{operations}]}}'

    @staticmethod
    def from_json(text: str) -> Plan:
        document = json.loads(text)
        constants = iter(_constants())
        known, operation = next(constants)
        operations: list[Operation] = []
        for values in document.pop("operations"):
            if values == known:  # most are: two parts of three of a plan, in this order
                operations.append(operation)
                known, operation = next(constants, (None, operation))
            else:
                operations.append(_KINDS[values[0]](**_tuples(values[1])))
        return Plan(operations=tuple(operations), **_tuples(document))


def _text(operation: Operation) -> str:
    # Not asdict(): copying each value deeply takes ten times as long as all the rest.
    return json.dumps((operation.kind, vars(operation)))


@functools.cache
def _constant_texts() -> dict[int, str]:
    """Of the operations that every plan shares, by their identities: they live as long as we do."""
    return {id(operation): _text(operation) for operation in kernel_operations()}


@functools.cache
def _constants() -> tuple[tuple[Any, Operation], ...]:
    """The same as they are read, with what they are read as."""
    return tuple((json.loads(_text(operation)), operation) for operation in kernel_operations())


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """JSON knows lists only; plans hold tuples, so that they stay hashable and comparable."""
    return {key: _tuple(value) for key, value in values.items()}


def _tuple(value: Any) -> Any:
    return tuple(_tuple(item) for item in value) if isinstance(value, list) else value


# runc's and systemd-nspawn's lists: what tells of the host or acts on it. Access is denied by the user namespace
# already; the masks are the second wall, and the VE cannot lift them (they are locked by mount_namespaces(7)).
_PROC_MASKED = (
    "acpi", "asound", "cmdline", "config.gz", "diskstats", "interrupts", "iomem", "kcore", "keys", "key-users",
    "kallsyms", "kmsg", "kpagecgroup", "kpagecount", "kpageflags", "latency_stats", "modules", "partitions",
    "sched_debug", "scsi", "slabinfo", "sysrq-trigger", "timer_list", "timer_stats", "vmallocinfo",
)
_SYS_MASKED = ("firmware", "dev", "power", "module", "kernel/security", "devices/virtual/powercap",
               "devices/virtual/dmi", "fs/bpf", "fs/pstore", "kernel/debug", "kernel/tracing", "kernel/slab",
               "hypervisor")
_LINKS = (
    ("dev/fd", "/proc/self/fd"), ("dev/stdin", "/proc/self/fd/0"), ("dev/stdout", "/proc/self/fd/1"),
    ("dev/stderr", "/proc/self/fd/2"), ("dev/ptmx", "pts/ptmx"),
)
_NODES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0))


def root_operations(template: Template, data: str) -> list[Operation]:
    """The overlay of each tree of the template; writes of tree N go to `data`/N."""
    layers: list[Operation] = []
    overlays: list[Operation] = []
    for number, tree in enumerate(template.trees):
        first = len(layers)
        layers += [Layer(first + position, source) for position, source in enumerate(tree.lowers)]
        indexes = tuple(range(first, len(layers)))
        overlays.append(Overlay(tree.mountpoint, indexes, f"{data}/{number}"))
    return layers + overlays


@functools.cache
def kernel_operations() -> tuple[Operation, ...]:
    """/proc, /sys, /dev and the temporary file systems, the same for every VE."""
    quiet = ("nosuid", "nodev", "noexec")
    owner = (("uid", "{base}"), ("gid", "{base}"))
    return (
        Filesystem("proc", "proc", flags=quiet),  # by a child of the set-up, which meanwhile goes on with /dev
        Filesystem("tmpfs", "dev", (("mode", "755"), ("size", "512k"), ("nr_inodes", "1024"), *owner), ("nosuid",)),
        *(Device(*node) for node in _NODES),
        *(Symlink(*link) for link in _LINKS),
        Directory("dev/pts"),
        Filesystem("devpts", "dev/pts", (("newinstance", ""), ("ptmxmode", "666"), ("mode", "620"),
                                         ("gid", "{tty}")), ("nosuid", "noexec")),
        Directory("dev/shm", 0o1777),
        Filesystem("tmpfs", "dev/shm", (("mode", "1777"), *owner), ("nosuid", "nodev")),
        Directory("dev/mqueue"),
        Filesystem("mqueue", "dev/mqueue", flags=quiet),
        Filesystem("tmpfs", "run", (("mode", "755"), ("size", "20%"), *owner), ("nosuid", "nodev")),
        Mask("proc", _PROC_MASKED),  # by that child as well, and so what follows
        ReadOnly("proc", ("bus", "fs", "irq", "sys"), writable=("sys/net",)),
        # The whole host's, though every network namespace has the file and its root may write it; there is no way back.
        ReadOnly("proc", ("sys/net/netfilter/nf_hooks_lwtunnel",)),
        Filesystem("sysfs", "sys", flags=(*quiet, "ro")),
        Mask("sys", _SYS_MASKED),
        Filesystem("cgroup2", "sys/fs/cgroup", flags=quiet),
        Console(),
        # Programs may ping without a set-uid helper; the range is that of the VE's own groups.
        Sysctl("net/ipv4/ping_group_range", "{base} {last}"),
    )


@functools.cache
def nesting_operations() -> tuple[Operation, ...]:
    """Another /proc and /sys without masks, out of the way. The kernel lets nobody in a user namespace mount a new one
    unless he sees one in full (mount_too_revealing in fs/namespace.c)."""
    quiet = ("nosuid", "nodev", "noexec")
    return (
        Directory("dev/.vemgr", 0o755),
        Directory("dev/.vemgr/proc", 0o555),
        Filesystem("proc", "dev/.vemgr/proc", flags=quiet),
        Directory("dev/.vemgr/sys", 0o555),
        Filesystem("sysfs", "dev/.vemgr/sys", flags=(*quiet, "ro")),
    )
