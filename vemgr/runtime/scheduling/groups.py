# SPDX-License-Identifier: GPL-2.0-or-later
"""Groups of VEs: their verbs, and their cgroups, which are there while a VE runs in them.

What a group was promised is written down as long as the group is defined (`promises`); its limits are in force from
before the first VE is born in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vemgr.core.config import BY_KEY, changed
from vemgr.core.errors import BadValue, GroupExists, GroupInUse, NoSuchGroup, NotEnforceable, SystemFailure
from vemgr.core.events import Kind
from vemgr.core.groups import (
    GROUP_KEYS,
    MOST_LEVELS,
    Group,
    check_group_name,
    group_key,
    line_of,
    parse_group_settings,
    shown,
)
from vemgr.kernel.cgroups import protection_recurses, readings
from vemgr.runtime.group_store import GroupStore
from vemgr.runtime.instances import Instances, Parts
from vemgr.scheduler.admission import RESOURCES

log = logging.getLogger(__name__)


class Groups:
    def __init__(self, parts: Parts, instances: Instances) -> None:
        self._parts = parts
        self._instances = instances
        self._store = GroupStore(f"{parts.config.state_dir}/group")

    def load(self) -> None:
        for group in self._store.load():
            self._parts.promises.adopt_group(group)

    def _get(self, name: str) -> Group:
        group = self._parts.promises.groups.get(check_group_name(name))
        if group is None:
            raise NoSuchGroup(name)
        return group

    async def create(self, name: str, parent: str, texts: Mapping[str, str]) -> None:
        """Raises `BadValue`, `BadParameter`, `GroupExists`, `NoSuchGroup`, `NotEnforceable`, `Overcommitted`."""
        group = Group(check_group_name(name), parent, parse_group_settings(texts))
        async with self._parts.promises.changing:
            known = self._parts.promises.groups
            if name in known:
                raise GroupExists(name)
            if parent:
                self._get(parent)
            if len(line_of(known, parent)) >= MOST_LEVELS:
                raise BadValue("parent", parent, f"groups are in each other at most {MOST_LEVELS} deep")
            self._check(group)
            self._parts.promises.admit_group(group)
            try:
                await asyncio.to_thread(self._store.save, group)
            except BaseException:
                self._parts.promises.drop_group(name)
                raise
            self._parts.journal.add(Kind.CREATED, "", f"group {name}")

    async def set(self, name: str, texts: Mapping[str, str]) -> None:
        """Change a group, live: also for the VEs that run in it."""
        async with self._parts.promises.changing:
            before = self._get(name)
            after = replace(before, settings=parse_group_settings(texts, before.settings))
            self._check(after)
            promises = self._parts.promises
            promises.admit_group(after)
            try:
                await self._apply_and_save(before, after)
            except BaseException:
                promises.adopt_group(before)
                raise
            promises.adopt_group(after)  # again: now its files are as it was given
            keys = ", ".join(setting.key for setting in changed(before.settings, after.settings))
            self._parts.journal.add(Kind.SET, "", f"group {name}: {keys}")

    async def _apply_and_save(self, before: Group, after: Group) -> None:
        key, limits = group_key(after.name), self._parts.limits
        used = key in self._parts.tree
        if used:
            await limits.apply(key, after.settings, before.settings)
        try:
            await asyncio.to_thread(self._store.save, after)
        except BaseException:
            if used:  # what is not kept must not be in force
                await limits.apply(key, before.settings, after.settings)
            raise

    async def remove(self, name: str) -> None:
        """Raises `GroupInUse` while a VE or another group is in it."""
        async with self._parts.promises.changing:
            group, promises = self._get(name), self._parts.promises
            users = [f"VE {instance.name}" for instance in self._instances
                     if name in (instance.definition.settings.group, instance.running and instance.in_force.group)]
            users += [f"group {each.name}" for each in promises.groups.values() if each.parent == name]
            if users:
                raise GroupInUse(name, users)
            promises.drop_group(name)  # before anything waits: no VE is given it from now on
            try:
                await asyncio.to_thread(self._store.remove, name)
            except BaseException:
                promises.adopt_group(group)
                raise
            self._parts.journal.add(Kind.DESTROYED, "", f"group {name}")

    def _check(self, group: Group) -> None:
        settings = group.settings
        self._parts.limits.check(settings)
        if settings.memory_guarantee and not protection_recurses():
            # Without, the kernel would protect in a group only what its VEs were guaranteed themselves.
            raise NotEnforceable("memory-guarantee of a group", "cgroup2 is mounted without memory_recursiveprot",
                                 "mount -o remount,memory_recursiveprot /sys/fs/cgroup")

    async def prepare(self, ve: str, name: str) -> None:
        """Have the cgroups of a group, and of those that it is in, with their limits, and the VE's place in it. Raises
        `NoSuchGroup`, `NotEnforceable`, `SystemFailure`."""
        async with self._parts.promises.changing:
            self._get(name)
            line, tree = line_of(self._parts.promises.groups, name), self._parts.tree
            keys = [group_key(group.name) for group in line]
            tree.settle(ve, keys)
            try:
                for level, (key, group) in enumerate(zip(keys, line, strict=True)):
                    if tree.make_group(key, keys[:level]):
                        self._check(group)
                        await self._parts.limits.apply(key, group.settings)
                        self._parts.promises.adopt_group(group)  # what follows from guarantees is not in its files yet
            except OSError as error:
                tree.leave(ve)
                raise SystemFailure(f"the cgroup of group {name} cannot be made: {error.strerror}",
                                    path=error.filename, errno=error.errno) from error
            except BaseException:
                tree.leave(ve)
                raise

    def list(self) -> list[dict[str, Any]]:
        return [self._describe(group) for _, group in sorted(self._parts.promises.groups.items())]

    def show(self, name: str) -> dict[str, Any]:
        return self._describe(self._get(name))

    def _describe(self, group: Group) -> dict[str, Any]:
        key, parts = group_key(group.name), self._parts
        ledger, settings = parts.promises.ledger, group.settings
        used = key in parts.tree
        in_force, usage = {}, {}
        if used:
            with contextlib.suppress(OSError):  # its last VE is just ending
                in_force, usage = parts.limits.in_force(key), readings(parts.tree[key])
        members = [instance for instance in self._instances if instance.definition.settings.group == group.name]
        return {
            "name": group.name, "parent": group.parent,
            "settings": {name: BY_KEY[name].show(getattr(settings, BY_KEY[name].attribute)) for name in GROUP_KEYS},
            "inForce": {name: text for name, text in in_force.items() if name in GROUP_KEYS},
            "ves": [instance.name for instance in members],
            "running": sorted(ve for ve, each in parts.promises.running.items() if each.group == group.name),
            "usage": {name: usage[name] for name in ("memory_current", "pids_current") if name in usage} | (
                {"cpu_usec": usage["cpu_stat"]["usage_usec"]} if "cpu_stat" in usage else {}),
            "resources": [{"resource": each.name, "claimed": ledger.claimed(key, each.name),
                           "promised": ledger.promised(each.name, key), "free": ledger.free(each.name, key),
                           "holders": [{"ve": shown(holder), "amount": amount}
                                       for holder, amount in ledger.holders(each.name, key)]} for each in RESOURCES],
        }
