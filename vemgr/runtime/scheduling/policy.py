# SPDX-License-Identifier: GPL-2.0-or-later
"""The scheduler's policy, switched while VEs run. It lasts until the host is started again, over the daemon's restarts:
a file in the run directory says it. For longer, vemgr.toml says it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from dataclasses import replace
from typing import Any

from vemgr.core.errors import BadValue
from vemgr.core.events import Kind
from vemgr.core.groups import group_key
from vemgr.core.host import HostConfig
from vemgr.core.scheduling import Policy, SchedulerConfig
from vemgr.kernel.durable import replace_file
from vemgr.runtime.instances import Instance, Instances, Parts
from vemgr.runtime.store import storage_errors

log = logging.getLogger(__name__)


def _path(config: HostConfig) -> str:
    return f"{config.run_dir}/policy"


def in_force(config: HostConfig) -> SchedulerConfig:
    """That of vemgr.toml, with the policy that it was switched to since."""
    try:
        with open(_path(config), encoding="ascii", errors="replace") as file:
            policy = Policy(file.read().strip())
    except (OSError, ValueError):
        return config.scheduler
    log.info("policy '%s', as it was switched to; vemgr.toml says '%s'", policy, config.scheduler.policy)
    return replace(config.scheduler, policy=policy)


class PolicySwitch:
    def __init__(self, parts: Parts, instances: Instances) -> None:
        self._parts = parts
        self._instances = instances
        self._lock = asyncio.Lock()

    def show(self) -> dict[str, Any]:
        return {"policy": str(self._parts.promises.config.policy),
                "configured": str(self._parts.config.scheduler.policy)}

    async def switch(self, name: str) -> None:
        """Raises `BadValue`, and `Overcommitted` where what runs does not fit the host by this policy."""
        if name not in list(Policy):
            raise BadValue("policy", name[:80], "not a policy", remedy=f"choose from {', '.join(Policy)}")
        async with self._lock:
            before, after = self._parts.promises.config.policy, Policy(name)
            if before == after:
                return
            self._parts.promises.switch(after)
            try:
                with storage_errors("keep the policy for the next daemon"):
                    await asyncio.to_thread(self._keep, after)
            except BaseException:
                self._parts.promises.switch(before)
                raise
            promises = self._parts.promises
            self._parts.limits.use(promises.config)
            for key in ("", *map(group_key, promises.groups)):  # what is certain of a promise is another part now
                promises.on_change(key)
            for instance in self._instances:
                await self._protect(instance)
            self._parts.journal.add(Kind.POLICY, "", f"{after}, was {before}")

    def _keep(self, policy: Policy) -> None:
        path = _path(self._parts.config)
        if policy == self._parts.config.scheduler.policy:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        else:
            replace_file(path, f"{policy}\n")

    async def _protect(self, instance: Instance) -> None:
        """Memory that a VE is promised now. One that ends meanwhile needs nothing."""
        if "memory" not in self._parts.limits.controllers:
            return
        async with instance.lock:
            if instance.running:
                with contextlib.suppress(OSError):  # what is not written here, the control loop finds
                    await self._parts.limits.restore(instance.name, instance.in_force, {"memory_guarantee"})
