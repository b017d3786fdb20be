# SPDX-License-Identifier: GPL-2.0-or-later
"""The VEs as the daemon knows them, and holding one for a verb."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from vemgr.core.config import Definition, Settings
from vemgr.core.errors import Locked, NoSuchVE
from vemgr.core.host import HostConfig
from vemgr.core.lifecycle import State, Verb
from vemgr.core.names import check_name
from vemgr.core.restarting import Restarts
from vemgr.kernel.cgroups import CgroupTree
from vemgr.kernel.devices import DevicePolicy, InheritedPolicy
from vemgr.runtime.counters import Counters
from vemgr.runtime.disks import Disks
from vemgr.runtime.file_jobs import FileJobs
from vemgr.runtime.filters import Filters
from vemgr.runtime.hooks import Hooks
from vemgr.runtime.journal import Journal
from vemgr.runtime.limits import Limits
from vemgr.runtime.logs import Logs
from vemgr.runtime.network.networking import Networking
from vemgr.runtime.profiles import Profiles
from vemgr.runtime.scheduling.promises import Promises
from vemgr.runtime.store import Store
from vemgr.runtime.views import Views
from vemgr.runtime.volumes import Volumes
from vemgr.templates.store import Templates

NEVER = -1e9  # of a monotonic clock
_TIDY = 15.0  # seconds


class TemplateVerbs:
    """What is being done to templates: one verb at a time on each."""

    def __init__(self) -> None:
        self._verbs: dict[str, str] = {}

    @contextlib.contextmanager
    def held(self, name: str, verb: str) -> Iterator[None]:
        """Raises `Locked`."""
        if name in self._verbs:
            raise Locked(f"template {name}", self._verbs[name])
        self._verbs[name] = verb
        try:
            yield
        finally:
            del self._verbs[name]

    def check_stays(self, name: str) -> None:
        """Raises `Locked` while a template is taken away or made anew: no VE must come to stand on what goes."""
        if self._verbs.get(name, "import") != "import":
            raise Locked(f"template {name}", self._verbs[name])


@dataclass
class Parts:
    """What the verbs work with, joined by the composition root. `tree` and `limits` change with a new keeper."""

    config: HostConfig
    store: Store
    templates: Templates
    tree: CgroupTree
    limits: Limits
    devices: DevicePolicy | InheritedPolicy
    networking: Networking
    logs: Logs
    filters: Filters
    disks: Disks
    promises: Promises
    file_jobs: FileJobs
    hooks: Hooks
    journal: Journal
    counters: Counters
    views: Views
    profiles: Profiles
    volumes: Volumes
    template_verbs: TemplateVerbs = field(default_factory=TemplateVerbs)
    # For what may take minutes, apart from the threads of everyday work and from each other: an import may wait for
    # ever for a client that writes nothing, and no destroy may wait for it.
    imports: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(4, "import"))
    purges: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2, "purge"))


@dataclass
class Instance:
    """What is known of a VE while the daemon runs.

    `verb`: in progress, "" if none. `up`: set once its init has said that it is up, or at once if it cannot say that.
    `ended`: set once its init is gone. `stopping`: a verb waits for that and will tidy up. `in_force`: the settings
    that its cgroup carries. `restarting`: it asked for a reboot, which is about to happen, or is to be
    started again after a crash. `restarts`: those. `rebooted`: when it last
    did, monotonic seconds. `last_exit`: how the last init ended.
    """

    definition: Definition
    state: State = State.STOPPED
    pid: int = 0
    verb: str = ""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    up: asyncio.Event = field(default_factory=asyncio.Event)
    stopping: bool = False
    in_force: Settings = field(default_factory=Settings)
    restarting: bool = False
    rebooted: float = NEVER
    last_exit: str = ""
    restarts: Restarts = field(default_factory=Restarts)

    @property
    def name(self) -> str:
        return self.definition.name

    @property
    def running(self) -> bool:
        """Whether it has an init, frozen or not."""
        return self.state != State.STOPPED

    def began(self, pid: int, *, ready: bool) -> None:
        self.state, self.pid, self.stopping = State.RUNNING, pid, False
        if ready:
            self.up.set()
        self.in_force = self.definition.settings
        self.restarting = False
        self.ended.clear()

    def is_over(self) -> None:
        self.state, self.pid = State.STOPPED, 0
        self.up.clear()

    def summary(self) -> dict[str, Any]:
        definition = self.definition
        return {"name": definition.name, "group": definition.settings.group, "state": str(self.state),
                "template": definition.template, "address": definition.address, "pid": self.pid, "verb": self.verb,
                "address6": definition.links[0].address6 if definition.links else "",
                "publish": list(map(str, definition.settings.publish))}


class Instances:
    """All VEs by name."""

    def __init__(self) -> None:
        self._by_name: dict[str, Instance] = {}

    def __iter__(self) -> Iterator[Instance]:
        """By name; a copy, so that VEs may come and go meanwhile."""
        return iter([self._by_name[name] for name in sorted(self._by_name)])

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def find(self, name: str) -> Instance | None:
        return self._by_name.get(name)

    def get(self, name: str) -> Instance:
        """Raises `BadValue` for what cannot be a name, and `NoSuchVE`."""
        instance = self._by_name.get(check_name(name))
        if instance is None:
            raise NoSuchVE(name)
        return instance

    def admit(self, definition: Definition) -> Instance:
        instance = self._by_name[definition.name] = Instance(definition)
        return instance

    def forget(self, instance: Instance) -> None:
        if self.holds(instance):
            del self._by_name[instance.name]

    def holds(self, instance: Instance) -> bool:
        """Whether this VE still is the one of its name: another may have been created since."""
        return self._by_name.get(instance.name) is instance

    @property
    def id_bases(self) -> list[int]:
        return [instance.definition.id_base for instance in self]

    def users_of(self, template: str) -> list[Instance]:
        return [instance for instance in self if instance.definition.template == template]

    @contextlib.asynccontextmanager
    async def held(self, name: str, verb: Verb) -> AsyncIterator[Instance]:
        """Hold a VE for one verb; a second one is refused at once instead of waiting for who knows how long.

        What the daemon itself does after the end of an init is short, and is waited for.
        """
        instance = self.get(name)
        if instance.lock.locked() and instance.verb:
            raise Locked(f"VE {name}", instance.verb)
        if instance.lock.locked():
            try:
                await asyncio.wait_for(instance.lock.acquire(), _TIDY)
            except TimeoutError:
                raise Locked(f"VE {name}", "tidy up") from None
        else:
            await instance.lock.acquire()  # at once; wait_for would make a task of it
        try:
            if not self.holds(instance):
                raise NoSuchVE(name)
            instance.verb = str(verb)
            yield instance
        finally:
            instance.verb = ""
            instance.lock.release()
