# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs on VEs.

Each runs in phases: check the arguments, take the VE's lock, check what must hold without changing anything, then
execute with an undo for every step. So an error is either a `RefusedError` (nothing happened) or a `FailedError`
(what had begun was undone).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from typing import Any

from vemgr.core.config import BY_KEY, DEFAULTS, Definition, Settings, changed, parse_settings, show_settings
from vemgr.core.errors import ConsoleInUse, Locked, NoSuchVE, NoTemplate, SystemFailure, VEExists, VemgrError
from vemgr.core.events import Kind
from vemgr.core.layers import HOST_TEMPLATE, Template
from vemgr.core.lifecycle import Verb, check
from vemgr.core.names import check_name
from vemgr.core.plan import Plan
from vemgr.kernel.cgroups import CgroupTree, readings
from vemgr.runtime import commands, stopping
from vemgr.runtime.carrying import Carrying
from vemgr.runtime.copies import Copies
from vemgr.runtime.ending import Ender
from vemgr.runtime.instances import NEVER, Instance, Instances, Parts
from vemgr.runtime.launcher import Child, Launcher
from vemgr.runtime.limits import Limits
from vemgr.runtime.network.addressing import Addressing
from vemgr.runtime.ordering import Order, check_order, wait_until_up
from vemgr.runtime.restarting import describe
from vemgr.runtime.scheduling.balancer import Balancer
from vemgr.runtime.scheduling.groups import Groups
from vemgr.runtime.scheduling.loop import ControlLoop
from vemgr.runtime.scheduling.policy import PolicySwitch
from vemgr.runtime.starting import Starter
from vemgr.runtime.store import storage_errors
from vemgr.runtime.subids import free_base
from vemgr.runtime.transfers import Transfers
from vemgr.runtime.view_refresh import ViewRefresh
from vemgr.runtime.volume_verbs import VolumeVerbs
from vemgr.templates.store import utc_now

log = logging.getLogger(__name__)


class Manager:
    def __init__(self, parts: Parts, launcher: Launcher) -> None:
        self._parts = parts
        self._launcher = launcher
        self.instances = Instances()
        self.ending = False
        self._starter = Starter(parts, launcher)
        self._addressing = Addressing(parts, self.instances)
        self.groups = Groups(parts, self.instances)
        self._starter.prepare_group = self.groups.prepare
        self.transfers = Transfers(parts, self.instances, self._starter)
        self.carrying = Carrying(parts, self.instances, self._starter, self._addressing)
        self.copies = Copies(parts, self.instances, self._starter, self._addressing, launcher)
        self._ender = Ender(parts, launcher, self.instances, self._starter, self._addressing)
        self.views = ViewRefresh(parts, self.instances, self._ender.in_background)
        self._starter.purge = self._ender.purge
        self._starter.on_started = self.views.started
        self._balancer = Balancer(parts, self._ender.in_background)
        self.loop = ControlLoop(parts, self.instances, self._balancer)
        self.policy = PolicySwitch(parts, self.instances)
        self.volumes = VolumeVerbs(parts, self.instances, self.purge)
        self.order = Order(self.instances, self.start, self._stop, self._ender.in_background,
                           parts.config.start_parallel, parts.config.stop_deadline)

    async def show(self, name: str) -> dict[str, Any]:
        """Everything about one VE: its settings, the limits in force as the kernel has them, and what it uses."""
        instance = self.instances.get(name)
        definition = instance.definition
        network, network_in_use = self._parts.networking.show(name, definition.links)
        with storage_errors(f"read the limits of VE {name}"):
            in_force = self._parts.limits.in_force(name) if instance.running else {}
            if instance.running:
                in_force["group"] = BY_KEY["group"].show(instance.in_force.group)
            usage = _flat(readings(self._parts.tree[name])) if instance.running else {}
        usage |= self._parts.networking.traffic(name)
        return {
            **instance.summary(), "hostname": definition.hostname, "cgroup": self._parts.tree.path(name),
            "idBase": definition.id_base,
            "ready": instance.up.is_set(),
            "created": definition.created, "lastExit": instance.last_exit, **describe(instance.restarts),
            "ephemeral": definition.ephemeral,
            "settings": show_settings(definition.settings, all_=True),
            "inForce": in_force, "usage": usage,
            "diskBy": str(self._parts.disks.kind(name, definition.settings)),
            "view": self._parts.views.of(instance.pid) if instance.running else "",
            "network": network, "networkInUse": network_in_use,
            "console": self._parts.logs.tail(name),
        }

    async def attach(self, name: str, channel: int, *, writes: bool, force: bool) -> str:
        """Attach a client to the console of a VE, at once or as soon as that runs; returns the VE's state."""
        instance = self.instances.get(name)
        refusal = await self._launcher.attach(name, channel, writes=writes, force=force)
        if refusal:
            raise ConsoleInUse(name, refusal)
        return str(instance.state)

    def open_log(self, name: str) -> int:
        """The directory with what a VE has printed on its console (`core.console`), as a descriptor."""
        return self._parts.logs.open(self.instances.get(name).name)

    async def create(self, name: str, template: str, texts: Mapping[str, str], *, ephemeral: bool = False) -> None:
        """Raises `BadValue`, `BadParameter`, `VEExists`, `NoTemplate`, `TemplateNotFound`, `NotEnforceable`, ..."""
        check_name(name)
        settings = parse_settings(await self.expanded(texts))
        if not template:
            raise NoTemplate("no template given", remedy="name one with --template; 'host' is always there")
        if name in self.instances:
            raise VEExists(name)
        await self._starter.template(template)
        self._parts.limits.check(settings)
        if settings.network_rate:
            await self._parts.networking.rates.check()
        if settings.shares_uplink:
            self._parts.networking.uplink.check()
        self._parts.disks.check(name, DEFAULTS, settings, running=False)
        await self._starter.binds(settings)
        await self._starter.devices(settings)
        await self._parts.networking.choose()
        # Between here and the admission nothing waits, so no other client gets the name, an address or the ids, and
        # nobody takes the template away without seeing who uses it.
        self._parts.template_verbs.check_stays(template)
        check_order(self.instances, name, settings.after)
        self._parts.promises.check_group(settings)
        links = self._addressing.links(name, settings)
        if name in self.instances:
            raise VEExists(name)
        instance = self.instances.admit(Definition(
            name=name, template=template, created=utc_now(), settings=settings, ephemeral=ephemeral, links=links,
            id_base=free_base(self._parts.config, self.instances.id_bases),
        ))
        async with self.instances.held(name, Verb.CREATE):
            try:
                await asyncio.to_thread(self._parts.store.create, instance.definition)
            except BaseException:
                self.instances.forget(instance)
                raise
        log.info("VE %s created from template %s", name, template)
        self._parts.journal.add(Kind.CREATED, name, f"from template {template}")

    async def expanded(self, texts: Mapping[str, str]) -> Mapping[str, str]:
        """Settings with those of the profiles that they name."""
        return await asyncio.to_thread(self._parts.profiles.expanded, texts) if texts.get("profile") else texts

    async def destroy(self, name: str, *, force: bool = False) -> None:
        async with self.instances.held(name, Verb.DESTROY) as instance:
            if force and instance.running:
                await self._ender.stop(instance, 0.0)
            check(name, instance.state, Verb.DESTROY)
            gone = await self._ender.remove(instance)
        await self._ender.purge(gone)

    async def plan(self, name: str) -> Plan:
        """What a start would do; changes nothing."""
        instance = self.instances.get(name)
        try:
            definition = self._parts.store.load(name)
        except NoSuchVE:
            if instance.verb:  # being created or destroyed: to all others it is there
                raise Locked(f"VE {name}", instance.verb) from None
            raise
        return await self._starter.plan(definition)

    async def start(self, name: str, *, wait: float | None = None) -> None:
        """`wait`: for so many seconds, until the VE's init says that it is up. Raises `NotReady` if it does not."""
        async with self.instances.held(name, Verb.START) as instance:
            check(name, instance.state, Verb.START)
            # The file is the truth: an administrator may have edited it since.
            await self._addressing.reload(instance)
            self._ender.restarter.forget(instance)
            instance.rebooted = NEVER  # what it did in an earlier life is no reason to keep somebody waiting now
            await self._ender.start(instance)
            pid = instance.pid
        if wait is not None and not instance.up.is_set():
            await wait_until_up(instance, pid, wait)

    async def stop(self, name: str, *, timeout: float | None = None, kill: bool = False) -> str:
        """Stop a VE; returns the step that ended it: "clean", or "killed" and why."""
        return await self._stop(name, 0.0 if kill else timeout)

    async def _stop(self, name: str, timeout: float | None, until: float = math.inf) -> str:
        """`until`: time of the loop by when it must have ended by itself."""
        async with self.instances.held(name, Verb.STOP) as instance:
            crashed = instance.restarts.due > 0
            self._ender.restarter.forget(instance)
            if instance.restarting:  # it ended by itself and was about to start again
                instance.restarting = False
                if crashed:
                    self._parts.journal.add(Kind.STOPPED, name, "not restarted")
                return f"not restarted: {instance.last_exit}" if crashed else "clean"
            check(name, instance.state, Verb.STOP)
            return await self._ender.stop(instance, _patience(instance, timeout), until)

    async def restart(self, name: str, *, timeout: float | None = None) -> str:
        async with self.instances.held(name, Verb.STOP) as instance:
            check(name, instance.state, Verb.STOP)
            self._ender.restarter.forget(instance)
            with self._parts.promises.kept(name, lambda: instance.running):
                step = await self._ender.stop(instance, _patience(instance, timeout))
                await self._addressing.reload(instance)
                await self._ender.start(instance)
            return step

    async def suspend(self, name: str) -> None:
        async with self.instances.held(name, Verb.SUSPEND) as instance:
            after = check(name, instance.state, Verb.SUSPEND)
            if not await stopping.freeze(self._parts.tree, name, True):
                await stopping.freeze(self._parts.tree, name, False)
                raise SystemFailure(f"VE {name} does not freeze: a process of it is in an uninterruptible call",
                                    ve=name)
            instance.state = after
            self._parts.journal.add(Kind.SUSPENDED, name)

    async def resume(self, name: str) -> None:
        async with self.instances.held(name, Verb.RESUME) as instance:
            after = check(name, instance.state, Verb.RESUME)
            await stopping.freeze(self._parts.tree, name, False)
            instance.state = after
            self._parts.journal.add(Kind.RESUMED, name)

    async def set(self, name: str, texts: Mapping[str, str]) -> list[str]:
        """Change settings, live where the VE runs; returns the keys that wait for the next start."""
        async with self.instances.held(name, Verb.SET) as instance:
            check(name, instance.state, Verb.SET)
            before = self._parts.store.load(name)
            settings = parse_settings(await self.expanded(texts), before.settings)
            self._parts.limits.check(settings)
            if settings.network_rate:
                await self._parts.networking.rates.check()
            if settings.shares_uplink:
                self._parts.networking.uplink.check()
            after = replace(before, settings=settings)
            self._parts.disks.check(name, before.settings, settings, running=instance.running)
            if settings.mount != before.settings.mount:
                await self._starter.binds(settings)
            if (settings.device, settings.feature) != (before.settings.device, before.settings.feature):
                await self._starter.devices(settings)
            differing = changed(before.settings, settings)
            check_order(self.instances, name, settings.after)
            if {"network", "address", "mac", "publish"} & {setting.key for setting in differing}:
                await self._parts.networking.choose()
                after = replace(after, links=self._addressing.links(name, settings, before))
            promises = self._parts.promises
            promises.check_group(settings)
            with promises.admitted(name, self._live(instance, settings)) if instance.running else (
                    contextlib.nullcontext()):
                instance.definition = after  # before anything waits: its address is taken from now on
                try:
                    await self._parts.networking.check_addresses(name, set(after.links) - set(before.links))
                    sized = bool({"disk", "inodes"} & {setting.key for setting in differing})
                    await self._apply_and_save(instance, after, sized=sized)
                except BaseException:
                    instance.definition = before
                    raise
            self._parts.journal.add(Kind.SET, name, ", ".join(setting.key for setting in differing))
            live = self._parts.disks.live(name, settings)
            return [setting.key for setting in differing
                    if instance.running and not setting.live and setting.key not in live]

    async def _apply_and_save(self, instance: Instance, after: Definition, *, sized: bool) -> None:
        """`sized`: whether its disk is to get another size as well. On failure all is as before."""
        name, before, networking = after.name, instance.in_force, self._parts.networking
        if instance.running:
            networking.publish(name, after.settings.publish)
        try:
            if instance.running:
                if before.network_rate != after.settings.network_rate:
                    await networking.limit(name, after.settings.network_rate)
                if _share(before) != _share(after.settings):
                    await networking.share(after)
                await self._parts.limits.apply(name, after.settings, before)
            try:
                if sized:
                    resize = functools.partial(self._save_and_resize, after, running=instance.running)
                    await asyncio.get_running_loop().run_in_executor(self._parts.imports, resize)
                else:
                    await asyncio.to_thread(self._parts.store.save, after)
            except VemgrError:
                if instance.running:  # what is not kept must not be in force
                    await self._parts.limits.apply(name, before, after.settings)
                raise
        except VemgrError:
            if instance.running:
                networking.publish(name, before.publish)
                if before.network_rate != after.settings.network_rate:
                    await networking.limit(name, before.network_rate)
                if _share(before) != _share(after.settings):
                    await networking.share(replace(after, settings=before))
            raise
        instance.in_force = self._live(instance, after.settings)

    def _save_and_resize(self, after: Definition, *, running: bool) -> None:
        """What a daemon that ends in between leaves, the next start completes."""
        with self._parts.store.saved(after):
            self._parts.disks.resize(after, running=running)

    @staticmethod
    def _live(instance: Instance, settings: Settings) -> Settings:
        """What is in force of settings now: a cgroup cannot be moved, so a VE that runs stays in its group."""
        return replace(settings, group=instance.in_force.group) if instance.running else settings

    async def template(self, name: str) -> Template:
        return await self._starter.template(name)

    async def refresh_host_template(self) -> None:
        """Make `host` anew. Raises `TemplateInUse`, `Locked`."""
        with self._parts.template_verbs.held(HOST_TEMPLATE, "refresh"):
            users = self.instances.users_of(HOST_TEMPLATE)
            running = [instance.name for instance in users if instance.running or instance.lock.locked()]
            await asyncio.to_thread(self._parts.templates.refresh_host, running)

    async def clean(self, name: str) -> None:
        """Kill and remove a cgroup that no VE has."""
        await self._starter.remove_cgroup(name)

    async def purge(self, gone: str) -> None:
        await self._ender.purge(gone)

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        self._ender.in_background(work)

    async def exec(self, name: str, command: dict[str, Any], status_fd: int, stdio: list[int], *,
                   main: bool = False) -> int:
        """Run a command in a running VE; returns its pid on the host. The caller gets its status by `status_fd`.
        With the end of the `main` command of an ephemeral VE that VE goes."""
        instance = self.instances.get(name)
        check(name, instance.state, Verb.EXEC)
        return await commands.run(self._parts, self._launcher, instance,
                                  {**command, "kind": "main" if main else "exec"}, status_fd, stdio)

    async def discard(self, name: str) -> None:
        """Take away an ephemeral VE, whatever it is doing."""
        await self._ender.discard(name)

    def adopt_restarts(self) -> None:
        """Of the daemon before, when it is known what runs."""
        for instance in self.instances:
            self._ender.restarter.adopt(instance)

    def on_exit(self, child: Child) -> None:
        self._ender.on_exit(child)

    def on_ready(self, child: Child) -> None:
        self._ender.on_ready(child)

    async def on_keeper_lost(self) -> None:
        await self._ender.on_keeper_lost()

    def use_tree(self, tree: CgroupTree) -> None:
        """Take another place for the VEs' cgroups: a new keeper's."""
        self._parts.tree = tree
        self._parts.limits = Limits(tree, self._parts.store.directory, self._parts.promises.config,
                                    self._parts.limits.placements)
        self._balancer.forget()
        self.loop.use_tree()

    def end(self) -> None:
        """The daemon is about to end: nothing more is begun that nobody has asked for."""
        self.ending = True
        self.order.end_starts()
        self._ender.restarter.close()

    async def drain(self, seconds: float) -> None:
        await self._ender.drain(seconds)


def _patience(instance: Instance, timeout: float | None) -> float:
    return float(instance.definition.settings.stop_timeout) if timeout is None else timeout


def _share(settings: Settings) -> tuple[int, int]:
    return settings.network_guarantee, settings.network_weight


def _flat(found: dict[str, Any]) -> dict[str, int]:
    """Readings as one level of numbers: memory_current, cpu_stat.usage_usec, ..."""
    flat: dict[str, int] = {}
    for name, value in found.items():
        if isinstance(value, dict):
            flat.update({f"{name}.{key}": number for key, number in value.items()})
        else:
            flat[name] = value
    return flat
