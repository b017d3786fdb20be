# SPDX-License-Identifier: GPL-2.0-or-later
"""How VEs end: by the stop verb, by themselves, by a reboot from inside, with their command, with the keeper."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from vemgr.core.errors import CannotStop, SystemFailure, TemplateNotFound, TemplateUnusable, VemgrError
from vemgr.core.events import Kind
from vemgr.core.lifecycle import State
from vemgr.core.restarting import Policy
from vemgr.runtime import commands, stopping
from vemgr.runtime.hooks import Stage
from vemgr.runtime.instances import Instance, Instances, Parts
from vemgr.runtime.launcher import Child, Launcher
from vemgr.runtime.network.addressing import Addressing
from vemgr.runtime.planning import powers_off, stop_signal
from vemgr.runtime.restarting import Restarter
from vemgr.runtime.starting import Starter

log = logging.getLogger(__name__)

REBOOT = signal.SIGHUP  # how the kernel ends the init of a pid namespace that calls reboot(2) to restart
_REAP = 10.0  # seconds for the keeper to report the end of an init that has been killed
# A VE that reboots as soon as it is up would keep the daemon busy: after a short life its next one begins later.
_SHORT_LIFE = 10.0
_REBOOT_DELAY = 2.0
_AGAIN = 0.5  # seconds between two runs of a poweroff that fails
_DISCARD_DELAY, _DISCARD_DELAY_BOUND = 1.0, 60.0  # before an ephemeral VE that could not be removed is tried again


class Ender:
    def __init__(self, parts: Parts, launcher: Launcher, instances: Instances, starter: Starter,
                 addressing: Addressing) -> None:
        self._parts = parts
        self._launcher = launcher
        self._instances = instances
        self._starter = starter
        self._addressing = addressing
        self.restarter = Restarter(parts, lambda instance: self.in_background(self._restart(instance)))
        self._tasks: set[asyncio.Task[None]] = set()
        self._doomed: set[str] = set()  # data of removed VEs that could not be deleted yet

    async def start(self, instance: Instance) -> None:
        """Start a stopped VE with its hooks, whose failure undoes the start. The caller holds its lock.

        What cannot be enforced or promised is refused before the first hook runs.
        """
        settings = instance.definition.settings
        self._parts.limits.check(settings)
        if settings.network_rate:
            await self._parts.networking.rates.check()
        if settings.shares_uplink:
            self._parts.networking.uplink.check()
        with self._parts.promises.admitted(instance.name, settings):
            await self._parts.hooks.run(Stage.PRE_START, instance.definition)
            await self._start_with_share(instance)
        try:
            if settings.network_rate:
                await self._parts.networking.limit(instance.name, settings.network_rate)
            await self._parts.hooks.run(Stage.POST_START, instance.definition, pid=str(instance.pid))
        except BaseException:
            if instance.running:
                await self.stop(instance, 0.0)
            raise

    async def _start_with_share(self, instance: Instance) -> None:
        """The class is there before the first packet."""
        if not instance.definition.settings.shares_uplink:
            await self._starter.start(instance)
            return
        networking = self._parts.networking
        await networking.share(instance.definition)
        try:
            await self._starter.start(instance)
        except BaseException:
            networking.uplink.released(instance.name)
            raise

    async def stop(self, instance: Instance, timeout: float, until: float = math.inf) -> str:
        """Stop a VE whose lock the caller holds; 0 seconds means kill. Returns the step that ended it.

        `until`: time of the loop from which on there is no waiting, neither for hooks nor for the VE.
        """
        instance.stopping = True
        try:
            if timeout > 0:
                await self._before_stop(instance, until)
            step = await self._end(instance, timeout, until)
        except BaseException:
            if instance.ended.is_set() and instance.running:  # it was left to us, and we have failed
                await self._tidy(instance)
            raise
        finally:
            instance.stopping = False
        log.info("VE %s stopped: %s", instance.name, step)
        self._parts.journal.add(Kind.STOPPED, instance.name, step)
        return step

    async def _before_stop(self, instance: Instance, until: float) -> None:
        try:
            async with asyncio.timeout_at(until if until < math.inf else None):
                await self._parts.hooks.try_(Stage.PRE_STOP, instance.definition, pid=str(instance.pid))
        except TimeoutError:
            log.warning("VE %s: the hooks before its stop have taken all the time that it has", instance.name)

    async def _end(self, instance: Instance, timeout: float, until: float) -> str:
        reason = "on request"
        left = round(max(0.0, until - asyncio.get_running_loop().time()), 1)
        if timeout > 0 >= left:
            timeout, reason = 0.0, "no time is left of what all VEs have"
        timeout = min(timeout, left)
        if timeout > 0:
            if instance.state == State.SUSPENDED:
                await stopping.freeze(self._parts.tree, instance.name, False)
                instance.state = State.RUNNING
            reason = await self._ask(instance, timeout)
        if reason != "clean":
            stopping.kill(self._parts.tree, instance.name)
        try:
            # The kernel ends an init only when all processes of its pid namespace have ended (pid_namespaces(7)).
            async with asyncio.timeout(_REAP):
                await instance.ended.wait()
        except TimeoutError:
            raise CannotStop(f"VE {instance.name} cannot be stopped: its processes do not die",
                             remedy="look for state D in ps; a hung disk or network file system holds them",
                             ve=instance.name) from None
        await self._tidy(instance)
        return "clean" if reason == "clean" else f"killed: {reason}"

    async def _ask(self, instance: Instance, timeout: float) -> str:
        began = asyncio.get_running_loop().time()
        try:
            template = await self._starter.template(instance.definition.template)
            signum = stop_signal(instance.definition, template)
            if powers_off(instance.definition, template) and (end := await self._power_off(instance, timeout)):
                return end
            pidfd = os.pidfd_open(instance.pid)
        except ProcessLookupError:
            return "clean"
        except (TemplateNotFound, TemplateUnusable):
            return "its template is gone, so the way to stop it is unknown"
        except OSError as error:
            raise _cannot_ask(instance, error) from error
        spent = asyncio.get_running_loop().time() - began
        try:
            return await stopping.ask_to_end(instance.pid, pidfd, int(signum), timeout, instance.ended, spent)
        except OSError as error:
            raise _cannot_ask(instance, error) from error
        finally:
            os.close(pidfd)

    async def _power_off(self, instance: Instance, timeout: float) -> str:
        """As `stopping.ask_to_end`; "" if the VE has no poweroff(8), or could not run it."""
        try:
            async with asyncio.timeout(timeout):
                # An init that is still coming up has not opened its pipe yet: poweroff fails until then.
                while not await commands.power_off(self._parts, self._launcher, instance):
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(instance.ended.wait(), _AGAIN)
                await instance.ended.wait()
        except TimeoutError:
            return f"{timeout:g} s passed"
        except (VemgrError, OSError) as error:
            if instance.ended.is_set():
                return "clean"
            log.info("VE %s: poweroff cannot be run in it, so its init is sent a signal: %s", instance.name, error)
            return ""
        return "clean"

    async def _tidy(self, instance: Instance) -> None:
        """After the end of init. The kernel takes the link down together with the VE's network namespace."""
        try:
            await self._parts.file_jobs.end(instance.name)
            self._parts.counters.end(instance.name)
            await self._starter.remove_cgroup(instance.name)
        finally:
            self._parts.networking.released(instance.name)
            self._parts.promises.release(instance.name)
            instance.is_over()
        await self._parts.hooks.try_(Stage.POST_STOP, instance.definition, ended=instance.last_exit)

    async def remove(self, instance: Instance) -> str:
        """Remove a stopped VE, whose lock the caller holds; returns what is to be purged then."""
        gone = await asyncio.to_thread(self._parts.store.remove, instance.name)
        self._instances.forget(instance)
        self.restarter.forget(instance)
        self._launcher.forget(instance.name)
        self._parts.logs.remove(instance.name)
        if instance.definition.settings.disk is not None:
            self._parts.disks.quotas.clear(instance.definition.id_base)
        log.info("VE %s destroyed", instance.name)
        self._parts.journal.add(Kind.DESTROYED, instance.name)
        return gone

    async def purge(self, gone: str) -> None:
        """Delete the data of a removed VE: minutes, when it held a million files. What resists is tried again with
        the next one, and when the daemon starts."""
        self._doomed.add(gone)
        for path in sorted(self._doomed):
            self._doomed.discard(path)
            if not await asyncio.get_running_loop().run_in_executor(self._parts.purges, self._parts.store.purge, path):
                self._doomed.add(path)

    # what the keeper reports

    def on_exit(self, child: Child) -> None:
        instance = self._instances.find(child.ve)
        if instance is not None and instance.stopping and instance.pid == child.pid:
            self._note_end(instance, child)  # the verb tidies up: nothing to wait for here
            self._launcher.taken(child)
        else:
            self.in_background(self._after_exit(child))

    def on_ready(self, child: Child) -> None:
        """The message may come before the start's own answer has been dealt with: `up` is cleared at the end only."""
        instance = self._instances.find(child.ve)
        if instance is not None and child.kind == "init" and instance.pid in (0, child.pid):
            instance.up.set()
            self._parts.journal.add(Kind.READY, child.ve)

    def _note_end(self, instance: Instance, child: Child) -> None:
        instance.last_exit = describe_exit(child.status or 0)
        instance.ended.set()

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("unexpected failure", exc_info=task.exception())

    async def drain(self, seconds: float) -> None:
        """Wait for what is being done in the background; what is not done by then the next daemon does again."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)

    async def _after_exit(self, child: Child) -> None:
        try:
            if child.kind == "init":
                await self._after_init(child)
            elif child.kind == "main":
                await self.discard(child.ve)
        finally:
            self._launcher.taken(child)

    async def _after_init(self, child: Child) -> None:
        instance = self._instances.find(child.ve)
        if instance is None or instance.pid != child.pid:
            return
        self._note_end(instance, child)
        async with instance.lock:
            if not instance.running or instance.pid != child.pid:
                return
            log.info("VE %s ended by itself: %s", instance.name, instance.last_exit)
            await self._tidy(instance)
            status = child.status or 0
            how = kind_of_exit(status)
            self._parts.journal.add(how, instance.name, instance.last_exit)
            instance.restarting = how == Kind.REBOOTED
        if instance.definition.ephemeral:
            await self.discard(instance.name)
        elif instance.restarting:
            await self._start_again(instance)
        else:
            self.restarter.ended(instance, how, child.start_time, powered_off=how == Kind.STOPPED and status != 0)

    async def _start_again(self, instance: Instance) -> None:
        """A reboot from inside. The lock is free during the delay, so that the VE can be stopped meanwhile."""
        if time.monotonic() - instance.rebooted < _SHORT_LIFE:
            await asyncio.sleep(_REBOOT_DELAY)
        async with instance.lock:
            if instance.restarting and self._instances.holds(instance):
                instance.rebooted = time.monotonic()
                await self._try_to_start(instance, "asked for a reboot")

    async def _restart(self, instance: Instance) -> None:
        """After a crash. What the VE's restarts were counted for may have been stopped, changed or destroyed since."""
        async with instance.lock:
            if instance.restarting and self._instances.holds(instance):
                if instance.definition.settings.restart == Policy.NO:
                    instance.restarting = False
                    self.restarter.forget(instance)
                else:
                    await self._try_to_start(instance, "was to be started again")

    async def _try_to_start(self, instance: Instance, why: str) -> None:
        """The caller holds its lock. A VE that does not start is one that has crashed at once."""
        instance.verb, instance.restarting = "start", False
        try:
            await self._addressing.reload(instance)
            await self.start(instance)
            instance.restarts = replace(instance.restarts, due=0.0)
        except VemgrError as error:
            log.error("VE %s %s but does not start: %s", instance.name, why, error)
            instance.last_exit = f"does not start: {error.message}"
            self.restarter.ended(instance, Kind.CRASHED, 0)
        finally:
            instance.verb = ""

    async def discard(self, name: str) -> None:
        """The command of an ephemeral VE has ended, or could not begin: the VE goes, if need be later."""
        if not await self._try_to_discard(name):
            self.in_background(self._discard_later(name))

    async def _discard_later(self, name: str) -> None:
        delay = _DISCARD_DELAY
        while not await self._discard_after(delay, name):
            delay = min(2 * delay, _DISCARD_DELAY_BOUND)

    async def _discard_after(self, delay: float, name: str) -> bool:
        await asyncio.sleep(delay)
        return await self._try_to_discard(name)

    async def _try_to_discard(self, name: str) -> bool:
        """Whether there is nothing more to be done."""
        instance = self._instances.find(name)
        if instance is None or not instance.definition.ephemeral:
            return True
        async with instance.lock:
            if not self._instances.holds(instance):
                return True  # destroyed meanwhile; a VE that has this name now is another
            try:
                if instance.running:
                    await self.stop(instance, 0.0)
                gone = await self.remove(instance)
            except VemgrError as error:
                log.error("ephemeral VE %s: %s", name, error)
                return False
        await self.purge(gone)
        return True

    async def on_keeper_lost(self) -> None:
        """The keeper's death ends its VEs (their inits ask for it with PR_SET_PDEATHSIG); make sure, and tidy up."""
        for instance in self._instances:
            if instance.running:
                instance.last_exit = "ended with the keeper"
                instance.ended.set()
                if instance.stopping:
                    continue  # the verb tidies up
                async with instance.lock:
                    if instance.running:
                        await self._tidy(instance)
                        self._parts.journal.add(Kind.CRASHED, instance.name, instance.last_exit)
                        self.restarter.ended(instance, Kind.CRASHED, 0)
            if instance.definition.ephemeral:
                await self.discard(instance.name)


def _cannot_ask(instance: Instance, error: OSError) -> SystemFailure:
    return SystemFailure(f"VE {instance.name} cannot be asked to end: {error.strerror}", remedy="--kill does not ask",
                         ve=instance.name, errno=error.errno)


def kind_of_exit(status: int) -> Kind:
    """Of an init that has ended by itself."""
    if os.WIFSIGNALED(status):
        return {int(REBOOT): Kind.REBOOTED, int(signal.SIGINT): Kind.STOPPED}.get(os.WTERMSIG(status), Kind.CRASHED)
    return Kind.STOPPED if status == 0 else Kind.CRASHED


def describe_exit(status: int) -> str:
    if os.WIFSIGNALED(status):
        signum = os.WTERMSIG(status)
        known = {int(REBOOT): "rebooted", int(signal.SIGINT): "powered off"}
        return known.get(signum, f"killed by signal {signum}")
    return f"exited with {os.waitstatus_to_exitcode(status)}"
