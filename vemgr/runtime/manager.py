# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs on VEs.

Each runs in phases: check the arguments, take the VE's lock, check what must hold without changing anything, then
execute with an undo for every step. So an error is either a `RefusedError` (nothing happened) or a `FailedError`
(what had begun was undone).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vemgr.core.config import Definition, Settings, changed, check_name, parse_settings, show_settings
from vemgr.core.errors import (
    BadValue,
    CannotStop,
    Locked,
    NoSuchVE,
    NoTemplate,
    SystemFailure,
    VEExists,
    VemgrError,
)
from vemgr.core.host import HostConfig, allocate_ids
from vemgr.core.layers import HOST_TEMPLATE, Template
from vemgr.core.lifecycle import State, Verb, check
from vemgr.core.plan import Plan
from vemgr.kernel.cgroups import CgroupTree, readings
from vemgr.kernel.devices import DevicePolicy
from vemgr.runtime import stopping
from vemgr.runtime.launcher import Birth, Child, Launcher
from vemgr.runtime.limits import Limits
from vemgr.runtime.networking import Networking
from vemgr.runtime.planning import make_plan, stop_signal
from vemgr.runtime.store import Store
from vemgr.runtime.subids import foreign_ranges
from vemgr.templates.store import Templates, utc_now

log = logging.getLogger(__name__)

_REAP = 10.0  # seconds for the keeper to report the end of an init that has been killed
REBOOT = signal.SIGHUP  # how the kernel ends the init of a pid namespace that calls reboot(2) to restart


@dataclass
class Instance:
    """What is known of a VE while the daemon runs. `ended` is set once its init is gone and tidied away."""

    definition: Definition
    state: State = State.STOPPED
    pid: int = 0
    start_time: int = 0
    verb: str = ""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    stopping: bool = False
    last_exit: str = ""
    console: str = ""


@dataclass(frozen=True)
class Parts:
    """What the manager works with, joined by the composition root."""

    config: HostConfig
    store: Store
    templates: Templates
    tree: CgroupTree
    limits: Limits
    devices: DevicePolicy
    networking: Networking
    filter_fd: int


class Manager:
    def __init__(self, parts: Parts, launcher: Launcher) -> None:
        self._parts = parts
        self._launcher = launcher
        self._instances: dict[str, Instance] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # What there is

    @property
    def instances(self) -> Mapping[str, Instance]:
        return self._instances

    def admit(self, definition: Definition) -> Instance:
        """Take a definition found on disk into account."""
        instance = self._instances[definition.name] = Instance(definition)
        return instance

    def _instance(self, name: str) -> Instance:
        instance = self._instances.get(check_name(name))
        if instance is None:
            raise NoSuchVE(name)
        return instance

    def summaries(self) -> list[dict[str, Any]]:
        return [self._summary(self._instances[name]) for name in sorted(self._instances)]

    def _summary(self, instance: Instance) -> dict[str, Any]:
        definition = instance.definition
        return {"name": definition.name, "state": str(instance.state), "template": definition.template,
                "address": definition.address, "pid": instance.pid, "verb": instance.verb}

    async def show(self, name: str) -> dict[str, Any]:
        """Everything about one VE: its settings, the limits in force as the kernel has them, and what it uses."""
        instance = self._instance(name)
        definition = instance.definition
        running = instance.state != State.STOPPED
        return {
            **self._summary(instance), "hostname": definition.hostname, "idBase": definition.id_base,
            "created": definition.created, "lastExit": instance.last_exit, "ephemeral": definition.ephemeral,
            "settings": show_settings(definition.settings, all_=True),
            "inForce": self._parts.limits.in_force(name) if running else {},
            "usage": _flat(readings(self._parts.tree[name])) if running else {},
            "console": await self._console(instance.pid) if running else instance.console,
        }

    async def _console(self, init: int) -> str:
        try:
            return await self._launcher.console(init)
        except VemgrError:
            return ""

    @contextlib.asynccontextmanager
    async def _verb(self, name: str, verb: Verb) -> AsyncIterator[Instance]:
        """Hold a VE for one verb; a second one is refused at once instead of waiting for who knows how long."""
        instance = self._instance(name)
        if instance.lock.locked():
            raise Locked(f"VE {name}", instance.verb or "tidy up")
        async with instance.lock:
            instance.verb = str(verb)
            try:
                yield instance
            finally:
                instance.verb = ""

    # create and destroy

    async def create(self, name: str, template: str, texts: Mapping[str, str], *, ephemeral: bool = False) -> None:
        """Raises `BadValue`, `BadParameter`, `VEExists`, `NoTemplate`, `TemplateNotFound`, `NotEnforceable`, ..."""
        check_name(name)
        settings = parse_settings(texts)
        if not template:
            raise NoTemplate("no template given", remedy="name one with --template; 'host' is always there")
        if name in self._instances:
            raise VEExists(name)
        await self._template(template)
        if name in self._instances:  # another client was faster while the template was being looked at
            raise VEExists(name)
        self._parts.limits.check(settings)
        definition = Definition(
            name=name, template=template, created=utc_now(), settings=settings, ephemeral=ephemeral,
            address=await self._address(name, settings),
            id_base=allocate_ids(self._parts.config, self._taken_ids(), foreign_ranges()),
        )
        if name in self._instances:
            raise VEExists(name)
        self._parts.store.create(definition)
        self.admit(definition)
        log.info("VE %s created from template %s", name, template)

    async def _template(self, name: str) -> Template:
        if name == HOST_TEMPLATE:
            return await asyncio.to_thread(self._parts.templates.host)
        return self._parts.templates.show(name)

    def _taken_ids(self) -> list[int]:
        return [instance.definition.id_base for instance in self._instances.values()]

    async def _address(self, name: str, settings: Settings) -> str:
        if settings.network == "none":
            if settings.address:
                raise BadValue("address", settings.address, "a VE with network 'none' has no address")
            return ""
        pool = await self._parts.networking.choose()
        taken = {i.definition.address: n for n, i in self._instances.items() if i.definition.address and n != name}
        if settings.address:
            return pool.check(settings.address, taken)
        return pool.allocate(taken)

    async def destroy(self, name: str, *, force: bool = False) -> None:
        async with self._verb(name, Verb.DESTROY) as instance:
            if force and instance.state != State.STOPPED:
                await self._stop(instance, 0.0)
            check(name, instance.state, Verb.DESTROY)
            await self._destroy(instance)

    async def _destroy(self, instance: Instance) -> None:
        name = instance.definition.name
        gone = self._parts.store.remove(name)
        del self._instances[name]
        log.info("VE %s destroyed", name)
        # In a thread: a VE may hold a million files.
        await asyncio.to_thread(self._parts.store.purge, gone)

    # start

    async def plan(self, name: str) -> Plan:
        """What a start would do; changes nothing."""
        definition = self._instance(name).definition
        self._parts.limits.check(definition.settings)
        template = await self._template(definition.template)
        return await self._plan(definition, template)

    async def _plan(self, definition: Definition, template: Template) -> Plan:
        resolv_conf = ""
        if definition.settings.network != "none":
            await self._parts.networking.choose()
            resolv_conf = self._parts.networking.resolv_conf()
        return make_plan(definition, template, data=f"{self._parts.store.path(definition.name)}/data",
                         stage=f"{self._parts.config.run_dir}/stage", resolv_conf=resolv_conf)

    async def start(self, name: str) -> None:
        async with self._verb(name, Verb.START) as instance:
            check(name, instance.state, Verb.START)
            # The file is the truth: an administrator may have edited it since.
            instance.definition = self._parts.store.load(name)
            await self._start(instance)

    async def _start(self, instance: Instance) -> None:
        definition, parts = instance.definition, self._parts
        name = definition.name
        parts.limits.check(definition.settings)
        template = await self._template(definition.template)
        plan = await self._plan(definition, template)
        if definition.settings.network != "none":
            await parts.networking.prepare()
        parts.store.trees(definition, len(template.trees))
        async with contextlib.AsyncExitStack() as undo:
            cgroup_fd = await self._make_cgroup(definition, undo)
            undo.callback(os.close, cgroup_fd)
            if definition.settings.network != "none":
                undo.push_async_callback(self._disconnect, name)
            child = await self._launcher.start(plan, cgroup_fd, parts.filter_fd, lambda birth: self._connect(
                definition, birth))
            undo.pop_all()
            os.close(cgroup_fd)
        instance.ended.clear()
        instance.state, instance.pid, instance.start_time = State.RUNNING, child.pid, child.start_time
        instance.stopping = False
        if not definition.started:
            instance.definition = replace(definition, started=True)
            with contextlib.suppress(VemgrError):  # a full disk: /etc/hosts will be written once more, no harm
                parts.store.save(instance.definition)
        log.info("VE %s started, process %d", name, child.pid)

    async def _make_cgroup(self, definition: Definition, undo: contextlib.AsyncExitStack) -> int:
        name, tree = definition.name, self._parts.tree
        try:
            tree.create(name, definition.id_base)
            undo.push_async_callback(self._remove_cgroup, name)
            fd = tree.open(name)
            self._parts.devices.attach(fd)
        except OSError as error:
            raise SystemFailure(f"VE {name} cannot start: its cgroup cannot be made: {error.strerror}",
                                path=error.filename, errno=error.errno) from error
        try:
            await self._parts.limits.apply(name, definition.settings)
        except BaseException:
            os.close(fd)
            raise
        return fd

    async def _connect(self, definition: Definition, birth: Birth) -> list[bytes]:
        if definition.settings.network == "none":
            return self._parts.networking.loopback_only()
        return await self._parts.networking.connect(definition.name, birth.netns_fd, definition.address)

    async def _disconnect(self, name: str) -> None:
        with contextlib.suppress(VemgrError):
            await self._parts.networking.disconnect(name)

    async def _remove_cgroup(self, name: str) -> None:
        """Kill what is left in a VE's cgroup and remove it; what cannot be removed is logged for the next daemon."""
        try:
            await stopping.kill_all(self._parts.tree, name)
            for attempt in range(50):
                try:
                    self._parts.tree.remove(name)
                    return
                except OSError:
                    # Zombies that nobody has reaped yet still count.
                    await asyncio.sleep(0.005 * (attempt + 1))
            self._parts.tree.remove(name)
        except (OSError, CannotStop) as error:
            log.error("VE %s: its cgroup could not be removed: %s", name, error)

    # stop, suspend, resume

    async def stop(self, name: str, *, timeout: float | None = None, kill: bool = False) -> str:
        """Stop a VE; returns the step that ended it: "clean", or "killed" and why."""
        async with self._verb(name, Verb.STOP) as instance:
            check(name, instance.state, Verb.STOP)
            limit = instance.definition.settings.stop_timeout if timeout is None else timeout
            return await self._stop(instance, 0.0 if kill else float(limit))

    async def _stop(self, instance: Instance, timeout: float) -> str:
        name = instance.definition.name
        instance.stopping = True
        try:
            step = await self._end(instance, timeout)
        finally:
            instance.stopping = False
        log.info("VE %s stopped: %s", name, step)
        return step

    async def _end(self, instance: Instance, timeout: float) -> str:
        name = instance.definition.name
        reason = "on request"
        if timeout > 0:
            if instance.state == State.SUSPENDED:
                await stopping.freeze(self._parts.tree, name, False)
                instance.state = State.RUNNING
            reason = await self._ask(instance, timeout)
        if reason != "clean":
            await stopping.kill_all(self._parts.tree, name)
        try:
            await asyncio.wait_for(instance.ended.wait(), _REAP)
        except TimeoutError:
            raise CannotStop(f"VE {name} cannot be stopped: its init does not die", ve=name) from None
        await self._tidy(instance)
        return "clean" if reason == "clean" else f"killed: {reason}"

    async def _ask(self, instance: Instance, timeout: float) -> str:
        try:
            template = await self._template(instance.definition.template)
            signum = stop_signal(instance.definition, template)
            pidfd = os.pidfd_open(instance.pid)
        except ProcessLookupError:
            return "clean"
        except VemgrError:
            return "its template is gone, so the way to stop it is unknown"
        try:
            return await stopping.ask_to_end(instance.pid, pidfd, int(signum), timeout, instance.ended)
        finally:
            os.close(pidfd)

    async def _tidy(self, instance: Instance) -> None:
        """After the end of init: cgroup, host end of the network, state."""
        name = instance.definition.name
        await self._remove_cgroup(name)
        instance.state, instance.pid, instance.start_time = State.STOPPED, 0, 0
        # The kernel takes the link down together with the VE's network namespace, behind our back and for free.

    async def suspend(self, name: str) -> None:
        async with self._verb(name, Verb.SUSPEND) as instance:
            after = check(name, instance.state, Verb.SUSPEND)
            if not await stopping.freeze(self._parts.tree, name, True):
                await stopping.freeze(self._parts.tree, name, False)
                raise SystemFailure(f"VE {name} does not freeze: a process of it is in an uninterruptible call",
                                    ve=name)
            instance.state = after

    async def resume(self, name: str) -> None:
        async with self._verb(name, Verb.RESUME) as instance:
            after = check(name, instance.state, Verb.RESUME)
            await stopping.freeze(self._parts.tree, name, False)
            instance.state = after

    async def restart(self, name: str, *, timeout: float | None = None) -> str:
        async with self._verb(name, Verb.STOP) as instance:
            check(name, instance.state, Verb.STOP)
            limit = instance.definition.settings.stop_timeout if timeout is None else timeout
            step = await self._stop(instance, float(limit))
            instance.definition = self._parts.store.load(name)
            await self._start(instance)
            return step

    # set

    async def set(self, name: str, texts: Mapping[str, str]) -> list[str]:
        """Change settings, live where the VE runs; returns the keys that wait for the next start."""
        async with self._verb(name, Verb.SET) as instance:
            before = self._parts.store.load(name)
            settings = parse_settings(texts, before.settings)
            self._parts.limits.check(settings)
            after = replace(before, settings=settings)
            differing = changed(before.settings, settings)
            if {"network", "address"} & {setting.key for setting in differing}:
                after = replace(after, address=await self._address(name, settings))
            running = instance.state != State.STOPPED
            if running:
                await self._parts.limits.apply(name, settings, before.settings)
            try:
                self._parts.store.save(after)
            except VemgrError:
                if running:  # what is not kept must not be in force
                    await self._parts.limits.apply(name, before.settings, settings)
                raise
            instance.definition = after
            return [setting.key for setting in differing if running and not setting.live]

    # exec

    async def exec(self, name: str, command: dict[str, Any], status_fd: int, stdio: list[int]) -> int:
        """Run a command in a running VE; returns its pid on the host. The caller gets its status by `status_fd`."""
        instance = self._instance(name)
        check(name, instance.state, Verb.EXEC)
        kind = "main" if instance.definition.ephemeral else "exec"
        try:
            cgroup_fd = self._parts.tree.open_for_exec(name)
        except OSError as error:
            raise SystemFailure(f"VE {name}: its cgroup cannot be entered: {error.strerror}") from error
        try:
            return await self._launcher.exec(name, {**command, "kind": kind}, cgroup_fd, self._parts.filter_fd,
                                           status_fd, stdio)
        except VemgrError:
            if kind == "main":
                self._later(self._end_ephemeral(name))
            raise
        finally:
            os.close(cgroup_fd)

    # what the keeper reports

    def on_exit(self, child: Child) -> None:
        self._later(self._after_exit(child))

    def _later(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("unexpected failure", exc_info=task.exception())

    async def _after_exit(self, child: Child) -> None:
        if child.kind == "init":
            await self._after_init(child)
        elif child.kind == "main":
            await self._end_ephemeral(child.ve)
        self._launcher.taken(child)

    async def _after_init(self, child: Child) -> None:
        instance = self._instances.get(child.ve)
        if instance is None or instance.pid != child.pid:
            return
        name, status = child.ve, child.status or 0
        instance.last_exit = describe_exit(status)
        instance.console = await self._console(child.pid)  # the keeper forgets it with the child
        instance.ended.set()
        if instance.stopping:
            return  # the verb tidies up
        async with instance.lock:
            if instance.state == State.STOPPED or instance.pid != child.pid:
                return
            log.info("VE %s ended by itself: %s", name, instance.last_exit)
            await self._tidy(instance)
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) == REBOOT:
                await self._restart_after_reboot(instance)
            elif instance.definition.ephemeral:
                await self._destroy(instance)

    async def _restart_after_reboot(self, instance: Instance) -> None:
        try:
            await self._start(instance)
        except VemgrError as error:
            log.error("VE %s asked for a reboot but does not start: %s", instance.definition.name, error)

    async def _end_ephemeral(self, name: str) -> None:
        """The command of an ephemeral VE has ended: so does the VE."""
        instance = self._instances.get(name)
        if instance is None:
            return
        async with instance.lock:
            try:
                if instance.state != State.STOPPED:
                    await self._stop(instance, 0.0)
                await self._destroy(instance)
            except VemgrError as error:
                log.error("ephemeral VE %s: %s", name, error)

    async def on_keeper_lost(self) -> None:
        """The keeper's death ends its VEs (their inits ask for it with PR_SET_PDEATHSIG); make sure, and tidy up."""
        for instance in list(self._instances.values()):
            if instance.state != State.STOPPED:
                instance.last_exit = "ended with the keeper"
                instance.ended.set()
                await self._tidy(instance)
                if instance.definition.ephemeral:
                    await self._destroy(instance)

    def use_tree(self, tree: CgroupTree) -> None:
        """Take another place for the VEs' cgroups: a new keeper's."""
        self._parts = replace(self._parts, tree=tree, limits=Limits(tree, self._parts.store.directory))

    async def drain(self) -> None:
        """Wait for what is being done in the background."""
        while self._tasks:
            await asyncio.wait(self._tasks)


def describe_exit(status: int) -> str:
    if os.WIFSIGNALED(status):
        signum = os.WTERMSIG(status)
        known = {int(REBOOT): "rebooted", int(signal.SIGINT): "powered off"}
        return known.get(signum, f"killed by signal {signum}")
    return f"exited with {os.waitstatus_to_exitcode(status)}"


def _flat(found: dict[str, Any]) -> dict[str, int]:
    """Readings as one level of numbers: memory_current, cpu_stat.usage_usec, ..."""
    flat: dict[str, int] = {}
    for name, value in found.items():
        if isinstance(value, dict):
            flat.update({f"{name}.{key}": number for key, number in value.items()})
        else:
            flat[name] = value
    return flat
