# SPDX-License-Identifier: GPL-2.0-or-later
"""What a daemon does when it comes up: find out what is true, re-adopt what runs, clean what is dead, and say so."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace

from vemgr.core.errors import TemplateNotFound, VemgrError
from vemgr.core.lifecycle import State
from vemgr.core.names import check_name
from vemgr.runtime.instances import Parts
from vemgr.runtime.launcher import Child
from vemgr.runtime.manager import Manager
from vemgr.runtime.network.uplink import share_of

log = logging.getLogger(__name__)


def load_definitions(manager: Manager, parts: Parts) -> None:
    """Take every definition into account. A VE whose definition is broken goes on if it runs, and can be stopped or
    destroyed; what it holds is not given to another."""
    manager.groups.load()
    for name in parts.store.names():
        parts.store.tidy(name)
        try:
            manager.instances.admit(parts.store.load(name))
        except VemgrError as error:
            log.error("%s", error)
            try:
                manager.instances.admit(parts.store.salvage(check_name(name)))
            except VemgrError as not_ours:
                log.error("%s/%s is left alone: %s", parts.store.directory, name, not_ours)


def sweep(manager: Manager, parts: Parts) -> None:
    """Remove what interrupted operations have left, in the background: it may be much."""
    parts.logs.sweep(parts.store.names())
    for gone in (*parts.store.leftovers(), *parts.volumes.leftovers()):
        log.warning("removing what an interrupted operation has left: %s", gone)
        manager.in_background(manager.purge(gone))
    for name in parts.templates.sweep():
        log.warning("removed what an interrupted operation has left: template %s", name)


async def reconcile(manager: Manager, parts: Parts, children: list[Child]) -> None:
    """`children`: what the keeper has."""
    inits = {child.ve: child for child in sorted(children, key=lambda c: c.status is None) if child.kind == "init"}
    for name, child in inits.items():
        adopt(manager, parts, name, child)
    manager.adopt_restarts()
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
    instance.began(child.pid, ready=child.ready)
    parts.limits.settle(name)
    parts.counters.begin(name, parts.tree.path(name), adopted=True)
    instance.in_force = replace(instance.in_force, group=parts.tree.group_of(name)[1:])  # where it was started
    parts.promises.adopt(name, instance.in_force)
    parts.limits.adopt(name, instance.in_force)
    with contextlib.suppress(OSError):
        # What was asked for, not what has come of it: a daemon may have died between the two.
        if parts.tree[name].freeze:
            instance.state = State.SUSPENDED
    if not instance.definition.started:
        # The daemon that started it died before it could note that; the next start would write /etc/hosts again.
        instance.definition = replace(instance.definition, started=True)
        parts.store.mark_started(name)
    log.info("VE %s is %s, process %d", name, instance.state, child.pid)


async def _clean_cgroups(manager: Manager, parts: Parts) -> None:
    for name in parts.tree.names():
        instance = manager.instances.find(name)
        if instance is not None and instance.running:
            continue
        log.warning("cleaning up after VE %s", name)
        await manager.clean(name)
    parts.tree.tidy_groups()
    for group in parts.tree.groups():
        parts.limits.settle(group)


async def _restore_network(manager: Manager, parts: Parts) -> None:
    running = {instance.name: (instance.definition.links, instance.definition.settings.publish)
               for instance in manager.instances if instance.running}
    shares = {instance.name: share_of(instance.definition) for instance in manager.instances if instance.running}
    try:
        await parts.networking.uplink.adopt({ve: share for ve, share in shares.items() if share is not None})
        for link in await parts.networking.adopt(running):
            log.warning("removed the left-over link %s", link)
    except VemgrError as error:
        log.error("the VEs' network: %s", error)


async def keep_host_template_tight(manager: Manager, parts: Parts) -> None:
    """A package that was installed on the host since the template `host` was made may have brought files that only
    the host's root may read; VEs on it could. Make it anew, or say why that has to wait."""
    try:
        leaks = await asyncio.to_thread(parts.templates.host_leaks)
        if leaks:
            await manager.refresh_host_template()
            log.info("template host made anew: packages have added files that only root may read")
    except TemplateNotFound:
        return  # not made yet
    except VemgrError as error:
        log.warning("VEs on template host can read files that only the host's root may, like %s: %s; stop them and "
                    "use 'vemgr template refresh-host'", ", ".join(leaks[:3]), error)


async def start_on_boot(manager: Manager, run_dir: str) -> None:
    """Start the VEs that start with the host: by the first daemon since boot, which a file in /run tells."""
    marker = f"{run_dir}/booted"
    boot_id = _read("/proc/sys/kernel/random/boot_id")
    if _read(marker) == boot_id:
        return
    names = {instance.name for instance in manager.instances
             if instance.definition.settings.on_boot and not instance.running}
    async for outcome in manager.order.start(names):
        if outcome.error is not None:
            log.error("VE %s does not start with the host: %s", outcome.name, outcome.error)
    if manager.ending:
        return  # the next daemon goes on with those that were not begun
    with open(marker, "w", encoding="ascii") as file:
        file.write(boot_id)


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except OSError:
        return ""
