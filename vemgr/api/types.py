# SPDX-License-Identifier: GPL-2.0-or-later
"""What the interface passes: the types of its parameters and answers, as varlink knows them."""

from typing import TypedDict

from asyncvarlink import FileDescriptor


class VE(TypedDict):
    name: str
    group: str
    state: str
    template: str
    address: str
    address6: str
    publish: list[str]
    pid: int
    verb: str


class LinkInfo(TypedDict):
    interface: str
    network: str
    address: str
    address6: str
    mac: str


class VEDetails(VE):
    hostname: str
    cgroup: str
    ready: bool
    idBase: int
    created: str
    lastExit: str
    restarts: int
    restartIn: int
    givenUp: bool
    ephemeral: bool
    settings: dict[str, str]
    inForce: dict[str, str]
    usage: dict[str, int]
    diskBy: str
    view: str
    network: list[LinkInfo]
    networkInUse: list[LinkInfo]
    console: str


class TemplateInfo(TypedDict):
    name: str
    kind: str
    description: str
    created: str
    distribution: str
    version: str
    architecture: str
    size: int
    files: int
    init: str
    initKind: str
    users: list[str]


class NetworkInfo(TypedDict):
    name: str
    bridge: str
    mode: str
    mode6: str
    subnet: str
    gateway: str
    subnet6: str
    gateway6: str


class HostInfo(TypedDict):
    version: str
    controllers: list[str]
    cgroup: str
    subnet: str
    bridge: str
    networks: list[NetworkInfo]
    keeperPid: int
    stateDir: str


class Holder(TypedDict):
    ve: str
    amount: int


class ResourceInfo(TypedDict):
    resource: str
    total: int
    reserve: int
    overcommit: float
    promisable: int
    promised: int
    free: int
    used: int
    holders: list[Holder]


class CapacityInfo(TypedDict):
    policy: str
    resources: list[ResourceInfo]


class GroupResource(TypedDict):
    resource: str
    claimed: int
    promised: int
    free: int
    holders: list[Holder]


class GroupInfo(TypedDict):
    name: str
    parent: str
    settings: dict[str, str]
    inForce: dict[str, str]
    usage: dict[str, int]
    ves: list[str]
    running: list[str]
    resources: list[GroupResource]


class Fitting(TypedDict):
    unlimited: bool
    count: int
    scarce: str


class Share(TypedDict):
    resource: str
    guarantee: str
    limit: str
    weight: int
    entitled: str
    used: str


class Knob(TypedDict):
    file: str
    value: str
    wanted: str
    reason: str


class Finding(TypedDict):
    check: str
    level: str
    fact: str
    meaning: str
    remedy: str


class Beancounter(TypedDict):
    resource: str
    unit: str
    held: int | None
    maxHeld: int | None
    limit: int | None
    unlimited: bool
    guarantee: int | None
    failures: int | None


class Statistics(TypedDict):
    name: str
    state: str
    counters: list[Beancounter]


class Demand(TypedDict):
    name: str
    pid: int
    settings: dict[str, str]
    cpuUsed: int
    cpuWaited: int | None
    memory: int | None
    workingSet: int | None
    ioRead: int | None
    ioWrite: int | None
    netIn: int | None
    netOut: int | None


class EventInfo(TypedDict):
    number: int
    time: float
    kind: str
    ve: str
    detail: str
    count: int


class PolicyInfo(TypedDict):
    policy: str
    configured: str


class Change(TypedDict):
    file: str
    old: str
    new: str
    reason: str


class OthersChange(TypedDict):
    file: str
    of: str
    old: str
    new: str


class Preview(TypedDict):
    changes: list[Change]
    others: list[OthersChange]
    pending: list[str]


class Explanation(TypedDict):
    name: str
    group: str
    state: str
    policy: str
    shares: list[Share]
    workingSet: int | None
    knobs: list[Knob]
    decisions: list[EventInfo]


class Events(TypedDict):
    events: list[EventInfo]


class Outcome(TypedDict):
    name: str
    step: str
    error: str
    exitCode: int


class Outcomes(TypedDict):
    outcomes: list[Outcome]


class Command(TypedDict):
    argv: list[str]
    env: dict[str, str]
    cwd: str
    user: str
    tty: bool


class Started(TypedDict):
    name: str
    pid: int
    status: FileDescriptor


class Pulled(TypedDict):
    mode: int
    mtime: int
    skipped: list[str]
    skippedCount: int


class Imported(TypedDict):
    name: str
    notes: list[str]


class Profile(TypedDict):
    name: str
    settings: dict[str, str]
    error: str


class VolumeInfo(TypedDict):
    name: str
    size: int | None
    inodes: int | None
    used: int | None
    files: int | None
    users: list[str]
