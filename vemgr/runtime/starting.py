# SPDX-License-Identifier: GPL-2.0-or-later
"""Starting a VE: plan, cgroup, limits, network, init; each step with its undo."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

from vemgr.core.config import Definition, Settings
from vemgr.core.errors import CannotStop, NoSuchGroup, StartFailed, SystemFailure, TemplateNotFound, VemgrError
from vemgr.core.events import Kind
from vemgr.core.layers import HOST_TEMPLATE, Template
from vemgr.core.plan import Bind, Operation, Plan
from vemgr.kernel.netlink import batch
from vemgr.runtime import stopping
from vemgr.runtime.binding import bind_operations
from vemgr.runtime.disks import Storage
from vemgr.runtime.host_devices import device_operations, device_rules
from vemgr.runtime.images import OpenDisk
from vemgr.runtime.instances import Instance, Parts
from vemgr.runtime.launcher import Child, Launcher
from vemgr.runtime.planning import make_plan
from vemgr.runtime.quotas import OpenQuota

log = logging.getLogger(__name__)

_REMOVE_ATTEMPTS = 50
_LAUNCH_ATTEMPTS = 5
_TAKEN = (str(errno.EEXIST), str(errno.EBUSY))


class Starter:
    def __init__(self, parts: Parts, launcher: Launcher) -> None:
        self._parts = parts
        self._launcher = launcher
        self._host_template = asyncio.Lock()
        self.prepare_group: Callable[[str, str], Awaitable[None]] = _no_group
        self.purge: Callable[[str], Awaitable[None]] = _left
        self.on_started: Callable[[Instance, str], None] = lambda _instance, _view: None

    async def template(self, name: str) -> Template:
        """Raises `TemplateNotFound`, `TemplateUnusable`, `BadValue`."""
        if name != HOST_TEMPLATE:
            return self._parts.templates.show(name)
        with contextlib.suppress(TemplateNotFound):
            return self._parts.templates.show(name)
        async with self._host_template:  # whoever comes first makes it, the others wait
            return await asyncio.to_thread(self._parts.templates.host)

    async def plan(self, definition: Definition) -> Plan:
        """What a start would do; changes nothing. Raises `NotEnforceable` for a limit this host cannot enforce, and
        `Overcommitted` for a guarantee it cannot give."""
        self._parts.limits.check(definition.settings)
        if definition.settings.shares_uplink:
            self._parts.networking.uplink.check()
        self._parts.promises.check(definition.name, definition.settings)
        return await self._plan(definition, await self.template(definition.template))

    async def _plan(self, definition: Definition, template: Template) -> Plan:
        resolv_conf = ""
        if definition.links:
            await self._parts.networking.choose()
            resolv_conf = self._parts.networking.resolv_conf(definition.links)
        image = self._parts.disks.image(definition.name, definition.settings)
        return make_plan(definition, template, data=f"{self._parts.store.path(definition.name)}/data", image=image,
                         stage=f"{self._parts.config.run_dir}/stage", resolv_conf=resolv_conf,
                         binds=await self.binds(definition.settings), views=self._parts.views.operations(),
                         devices=await self.devices(definition.settings))

    async def binds(self, settings: Settings) -> tuple[Bind, ...]:
        """Raises `BadValue` for what must not be mounted in a VE, and `VolumeNotFound`."""
        if not settings.mount:
            return ()
        own = (self._parts.config.state_dir, self._parts.config.run_dir)
        return await asyncio.to_thread(bind_operations, settings.mount, own, self._parts.volumes)  # may hang: NFS

    async def devices(self, settings: Settings) -> tuple[Operation, ...]:
        """Raises `BadValue` for a device that must not be given to a VE."""
        if not settings.device and not settings.feature:
            return ()
        return await asyncio.to_thread(device_operations, settings.feature, settings.device)

    async def start(self, instance: Instance) -> None:
        """Start a stopped VE whose limits and promises have been checked; on failure everything is as before. The
        caller holds its lock."""
        definition, parts = instance.definition, self._parts
        template = await self.template(definition.template)
        if definition.template == HOST_TEMPLATE:  # others cannot go while this VE stands on them
            parts.template_verbs.check_stays(HOST_TEMPLATE)
        view = parts.views.generation
        plan = await self._plan(definition, template)
        if definition.links:
            await parts.networking.prepare(definition.links)
            await parts.networking.check_addresses(definition.name, definition.links)
        disk: OpenDisk | OpenQuota | None = None
        async with contextlib.AsyncExitStack() as undo:
            disk = await self.storage(definition, len(template.trees), undo)
            if isinstance(disk, OpenDisk):
                plan = plan.with_disk(disk.source)
            cgroup_fd = await self._make_cgroup(definition, undo)
            child = await self._launch(definition, plan, cgroup_fd, undo)
            undo.pop_all()
            os.close(cgroup_fd)
        if disk is not None:
            disk.handed_over()
        instance.began(child.pid, ready=child.ready)
        self.on_started(instance, view)
        log.info("VE %s started, process %d", definition.name, child.pid)
        parts.journal.add(Kind.STARTED, definition.name, f"process {child.pid}")
        parts.counters.begin(definition.name, parts.tree.path(definition.name))
        if not definition.started:
            instance.definition = replace(definition, started=True)
            parts.store.mark_started(definition.name)

    async def storage(self, definition: Definition, count: int,
                      undo: contextlib.AsyncExitStack) -> OpenDisk | OpenQuota | None:
        """Have what the VE writes to: directories, or its disk, made where they are not there."""
        name, settings, disks = definition.name, definition.settings, self._parts.disks
        if settings.disk is None:
            self._trees(definition, count, 0, undo)
            return None
        if disks.kind(name, settings) is Storage.QUOTA:
            quota = disks.quotas.open(definition)
            undo.callback(quota.close)
            self._trees(definition, count, definition.id_base, undo)
            return quota
        if await asyncio.to_thread(disks.images.make, name, settings):
            undo.push_async_callback(asyncio.to_thread, disks.images.drop, name)
        await asyncio.to_thread(disks.images.resize, name, settings.disk)
        disk = await asyncio.to_thread(disks.images.open, name, definition.id_base, count)
        undo.callback(disk.close)
        return disk

    def _trees(self, definition: Definition, count: int, project: int, undo: contextlib.AsyncExitStack) -> None:
        store = self._parts.store
        if store.trees(definition, count, project):  # a few calls: a thread's wake-up takes longer
            undo.push_async_callback(self._drop_trees, definition.name, count)

    async def _drop_trees(self, name: str, count: int) -> None:
        gone = await asyncio.to_thread(self._parts.store.drop_trees, name, count)
        if gone:
            await self.purge(gone)

    async def _make_cgroup(self, definition: Definition, undo: contextlib.AsyncExitStack) -> int:
        """The VE's cgroup, as a descriptor to be born into."""
        name, tree = definition.name, self._parts.tree
        with _cgroup_failures(name):
            if name in tree:
                await self.remove_cgroup(name)  # left by an earlier life that could not be tidied up
            if definition.settings.group and name not in tree:
                undo.callback(tree.leave, name)
                await self.prepare_group(name, definition.settings.group)
            tree.create(name, definition.id_base)
            undo.push_async_callback(self.remove_cgroup, name)
            fd = tree.open(name)
            undo.callback(os.close, fd)
            return fd

    async def _bound(self, definition: Definition, plan: Plan, cgroup_fd: int) -> None:
        """Give the VE's cgroup its device policy and limits."""
        with _cgroup_failures(definition.name):
            self._parts.devices.attach(cgroup_fd, device_rules(plan.operations))
        await self._parts.limits.apply(definition.name, definition.settings)

    async def _launch(self, definition: Definition, plan: Plan, cgroup_fd: int,
                      undo: contextlib.AsyncExitStack) -> Child:
        """Again where the random index of a link is taken, once in thousands of times, or still its name."""
        filter_fd = self._parts.filters.fd(definition.settings.opened)
        bounded = False

        async def connect() -> tuple[str, str]:
            nonlocal bounded
            if not bounded:
                await self._bound(definition, plan, cgroup_fd)
                bounded = True
                if definition.links:
                    undo.push_async_callback(self._disconnect, definition.name)
            links, inside = await self._connect(definition)
            return _encoded(links), _encoded(inside)

        for attempt in range(1, _LAUNCH_ATTEMPTS + 1):
            try:
                return await self._launcher.start(plan, cgroup_fd, filter_fd, connect)
            except StartFailed as failure:
                taken = failure.facts.get("operation") == "network" and failure.facts.get("errno") in _TAKEN
                if not taken or attempt == _LAUNCH_ATTEMPTS:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def _connect(self, definition: Definition) -> tuple[list[bytes], list[bytes]]:
        if not definition.links:
            return [], self._parts.networking.loopback_only()
        return await self._parts.networking.connect(definition.name, definition.links, definition.settings.publish)

    async def _disconnect(self, name: str) -> None:
        with contextlib.suppress(VemgrError):
            await self._parts.networking.disconnect(name)

    async def remove_cgroup(self, name: str) -> None:
        """Kill what is left in a VE's cgroup and remove it; what resists is logged and left to the next daemon."""
        if self._parts.tree.remove_empty(name):  # as nearly always: init has ended last, and most VEs make none below
            self._parts.tree.leave(name)
            return
        failure: Exception | None = None
        for attempt in range(_REMOVE_ATTEMPTS):
            try:
                await stopping.kill_all(self._parts.tree, name)
                await asyncio.to_thread(self._parts.tree.remove, name)  # a VE may have made thousands below
                self._parts.tree.leave(name)
                return
            except CannotStop as error:
                failure = error
                break
            except (OSError, SystemFailure) as error:
                # Zombies that nobody has reaped yet still count; and what a host runs short of may come back.
                failure = error
                await asyncio.sleep(0.005 * (attempt + 1))
        log.error("VE %s: its cgroup could not be removed: %s", name, failure)


@contextlib.contextmanager
def _cgroup_failures(ve: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SystemFailure(f"VE {ve} cannot start: its cgroup cannot be made: {error.strerror}",
                            path=error.filename, errno=error.errno) from error


async def _left(_gone: str) -> None:
    """Until the daemon starts again."""


async def _no_group(_ve: str, group: str) -> None:
    raise NoSuchGroup(group)


def _encoded(messages: list[bytes]) -> str:
    return base64.b64encode(batch(messages)).decode() if messages else ""
