# SPDX-License-Identifier: GPL-2.0-or-later
"""What a daemon does when it comes up: find out what is true, re-adopt what runs, clean what is dead, and say so."""

from __future__ import annotations

import contextlib
import logging
import os

from vemgr.core.errors import VemgrError
from vemgr.core.lifecycle import State
from vemgr.runtime import stopping
from vemgr.runtime.instances import Parts
from vemgr.runtime.launcher import Child
from vemgr.runtime.manager import Manager

log = logging.getLogger(__name__)


def load_definitions(manager: Manager, parts: Parts) -> None:
    """Take every definition into account; a broken one is logged and left alone."""
    for left in (*parts.store.sweep(), *parts.templates.sweep()):
        log.warning("removed what an interrupted operation had left: %s", left)
    for name in parts.store.names():
        try:
            manager.instances.admit(parts.store.load(name))
        except VemgrError as error:
            log.error("%s", error)


async def reconcile(manager: Manager, parts: Parts, children: list[Child]) -> None:
    """`children`: what the keeper has."""
    inits = {child.ve: child for child in children if child.kind == "init"}
    for name, child in inits.items():
        adopt(manager, parts, name, child)
    await _clean_cgroups(manager, parts)
    await _restore_network(manager, parts)
    for child in children:
        if child.status is not None:
            manager.on_exit(child)
    busy = {child.ve for child in children if child.kind == "main"}
    for instance in manager.instances:
        if instance.definition.ephemeral and instance.name not in busy:
            await manager.discard(instance.name)


def adopt(manager: Manager, parts: Parts, name: str, child: Child) -> None:
    instance = manager.instances.find(name)
    if instance is None:
        if child.status is None:
            log.error("VE %s runs but has no definition: it is stopped", name)
        return  # its cgroup is cleaned with the others that nobody owns
    instance.began(child.pid)
    with contextlib.suppress(OSError):
        if parts.tree[name].events.get("frozen"):
            instance.state = State.SUSPENDED
    log.info("VE %s is %s, process %d", name, instance.state, child.pid)


async def _clean_cgroups(manager: Manager, parts: Parts) -> None:
    for name in parts.tree.names():
        instance = manager.instances.find(name)
        if instance is not None and instance.running:
            continue
        log.warning("cleaning up after VE %s", name)
        try:
            await stopping.kill_all(parts.tree, name)
            parts.tree.remove(name)
        except (OSError, VemgrError) as error:
            log.error("cgroup of VE %s: %s", name, error)


async def _restore_network(manager: Manager, parts: Parts) -> None:
    running = [instance for instance in manager.instances if instance.running]
    try:
        if any(instance.definition.address for instance in running):
            await parts.networking.prepare()
        for link in await parts.networking.drop_stale([instance.name for instance in running]):
            log.warning("removed the left-over link %s", link)
    except VemgrError as error:
        log.error("the VEs' network: %s", error)


async def start_on_boot(manager: Manager, run_dir: str) -> None:
    """Start the VEs that start with the host: by the first daemon since boot, which /run tells."""
    marker = f"{run_dir}/booted"
    if os.path.exists(marker):
        return
    for instance in manager.instances:
        if instance.definition.settings.on_boot and not instance.running:
            try:
                await manager.start(instance.name)
            except VemgrError as error:
                log.error("VE %s does not start with the host: %s", instance.name, error)
    with open(marker, "w", encoding="ascii"):
        pass
