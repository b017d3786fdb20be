# SPDX-License-Identifier: GPL-2.0-or-later
"""Starting VEs again that have ended by themselves (`core.restarting`).

What has been tried is kept in a file beside the VE's definition, for the next daemon. It is not synced: after a power
cut no VE runs, and what was tried before does not count any more.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace

from vemgr.core.events import Kind
from vemgr.core.restarting import Policy, Restarts, wants_restart
from vemgr.runtime.instances import Instance, Parts

log = logging.getLogger(__name__)

_FILE = "restarts.json"
_TICKS = os.sysconf("SC_CLK_TCK")


class Restarter:
    """`begin` is called with a VE that is to be started now."""

    def __init__(self, parts: Parts, begin: Callable[[Instance], None]) -> None:
        self._parts = parts
        self._begin = begin
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._closed = False

    def close(self) -> None:
        """The daemon ends: those that wait are left to the next one."""
        self._closed = True

    def ended(self, instance: Instance, how: Kind, start_time: int, *, powered_off: bool = False) -> None:
        """A VE has ended by itself, or its restart has failed. `start_time`: of its init, in clock ticks since boot;
        0 if it was never up."""
        config, policy = self._parts.config, instance.definition.settings.restart
        if not wants_restart(policy, how, powered_off=powered_off):
            self.forget(instance)
            return
        now = _now()
        lived = now - start_time / _TICKS if start_time else 0.0
        after = instance.restarts.next(now, lived, config.restart_limit, config.restart_window)
        if after is None:
            instance.restarts = replace(instance.restarts, due=0.0, given_up=True)
            instance.restarting = False
            tried = f"{config.restart_limit} restarts within {config.restart_window} s"
            log.error("VE %s is given up after %s: %s", instance.name, tried, instance.last_exit)
            self._parts.journal.add(Kind.GAVE_UP, instance.name, f"after {tried}")
        else:
            instance.restarts = after
            wait = f"restart {after.count} in {after.due - now:g} s"
            log.warning("VE %s: %s", instance.name, wait)
            self._parts.journal.add(Kind.RESTARTING, instance.name, wait)
            self._schedule(instance)
        self._save(instance)

    def forget(self, instance: Instance) -> None:
        """Somebody has started or stopped it, or it has ended for good: what was tried does not count any more."""
        timer = self._timers.pop(instance.name, None)
        if timer is not None:
            timer.cancel()
        if instance.restarts != Restarts():
            instance.restarts = Restarts()
            with suppress(OSError):
                os.unlink(self._path(instance.name))

    def adopt(self, instance: Instance) -> None:
        """Go on where the daemon before has ended, with a VE of which it is known whether it runs."""
        if instance.definition.settings.restart == Policy.NO:
            return
        try:
            with open(self._path(instance.name), encoding="utf-8") as file:
                found = json.load(file)
            if found.pop("boot") != _boot_id() or found.pop("name") != instance.name:
                return
            instance.restarts = Restarts(**{**found, "times": tuple(found["times"])})
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return
        if instance.running:
            instance.restarts = replace(instance.restarts, due=0.0)
        elif instance.restarts.due:
            self._schedule(instance)

    def _schedule(self, instance: Instance) -> None:
        instance.restarting = True
        self._timers[instance.name] = asyncio.get_running_loop().call_later(
            max(0.0, instance.restarts.due - _now()), self._now, instance)

    def _now(self, instance: Instance) -> None:
        if not self._closed:
            self._timers.pop(instance.name, None)
            self._begin(instance)

    def _save(self, instance: Instance) -> None:
        path = self._path(instance.name)
        try:
            with open(f"{path}.new", "w", encoding="utf-8") as file:
                json.dump({"boot": _boot_id(), "name": instance.name, **asdict(instance.restarts)}, file)
            os.rename(f"{path}.new", path)
        except OSError as error:
            log.warning("VE %s: its restarts are not kept for the next daemon: %s", instance.name, error.strerror)

    def _path(self, name: str) -> str:
        return f"{self._parts.store.path(name)}/{_FILE}"


def describe(restarts: Restarts) -> dict[str, object]:
    """`restartIn`: seconds, -1 if there is none to come."""
    return {"restarts": restarts.count, "givenUp": restarts.given_up,
            "restartIn": max(0, round(restarts.due - _now())) if restarts.due else -1}


def _now() -> float:
    """Seconds since boot: nobody sets this clock, and the next daemon has the same."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
