# SPDX-License-Identifier: GPL-2.0-or-later
"""What the API asks for, answered from the use cases: `vemgr.api.interface.Service`."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import stat
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from typing import Any

import vemgr
from vemgr.api.types import Command
from vemgr.core.config import parse_settings
from vemgr.core.errors import BadValue, StillRunning
from vemgr.core.ids import ID_COUNT
from vemgr.core.layers import HOST_TEMPLATE, Template
from vemgr.core.lifecycle import Verb
from vemgr.runtime.instances import Parts
from vemgr.runtime.launcher import Launcher
from vemgr.runtime.manager import Manager
from vemgr.runtime.observing.statistics import Statistics
from vemgr.runtime.ordering import Outcome
from vemgr.runtime.scheduling.accounting import Accounting
from vemgr.runtime.scheduling.demands import Demands
from vemgr.runtime.scheduling.preview import preview
from vemgr.runtime.store import storage_errors


class DaemonService:
    """`end` ends the daemon."""

    def __init__(self, manager: Manager, parts: Parts, statistics: Statistics, launcher: Launcher,
                 end: Callable[[], None]) -> None:
        self._manager = manager
        self._parts = parts
        self._launcher = launcher
        self._end = end
        self._accounting = Accounting(parts)
        self._demands = Demands(parts, manager.instances)
        self._statistics = statistics

    def ves(self) -> list[dict[str, Any]]:
        return [instance.summary() for instance in self._manager.instances]

    async def show(self, name: str) -> dict[str, Any]:
        return await self._manager.show(name)

    async def create(self, name: str, template: str, texts: dict[str, str]) -> None:
        await self._manager.create(name, template, texts)

    async def profiles(self) -> list[dict[str, Any]]:
        return await asyncio.to_thread(self._parts.profiles.list)

    async def volumes(self) -> list[dict[str, Any]]:
        return await self._manager.volumes.list()

    async def volume(self, name: str) -> dict[str, Any]:
        return await self._manager.volumes.show(name)

    async def create_volume(self, name: str, size: str | None, inodes: str | None) -> None:
        await self._manager.volumes.create(name, size, inodes)

    async def set_volume(self, name: str, size: str | None, inodes: str | None) -> None:
        await self._manager.volumes.set(name, size, inodes)

    async def remove_volume(self, name: str) -> None:
        await self._manager.volumes.remove(name)

    async def plan(self, name: str) -> list[str]:
        return (await self._manager.plan(name)).describe()

    async def start(self, name: str, wait: int | None) -> None:
        await self._launcher.returned()
        await self._manager.start(name, wait=_seconds(wait, "wait"))

    async def stop(self, name: str, timeout: int | None, kill: bool) -> str:
        return await self._manager.stop(name, timeout=_seconds(timeout), kill=kill)

    async def start_all(self) -> AsyncIterator[dict[str, Any]]:
        names = {instance.name for instance in self._manager.instances
                 if not instance.running and not instance.definition.ephemeral}
        async for outcome in self._manager.order.start(names):
            yield _outcome(outcome)

    async def stop_all(self, timeout: int | None, kill: bool) -> AsyncIterator[dict[str, Any]]:
        names = {instance.name for instance in self._manager.instances
                 if instance.running or instance.restarting or instance.verb == Verb.START}
        async for outcome in self._manager.order.stop(names, 0.0 if kill else _seconds(timeout)):
            yield _outcome(outcome)

    async def restart(self, name: str, timeout: int | None) -> str:
        await self._launcher.returned()
        return await self._manager.restart(name, timeout=_seconds(timeout))

    async def suspend(self, name: str) -> None:
        await self._manager.suspend(name)

    async def resume(self, name: str) -> None:
        await self._manager.resume(name)

    async def destroy(self, name: str, force: bool) -> None:
        await self._manager.destroy(name, force=force)

    async def set(self, name: str, texts: dict[str, str]) -> list[str]:
        return await self._manager.set(name, texts)

    async def preview(self, name: str, texts: dict[str, str]) -> dict[str, Any]:
        instance = self._manager.instances.get(name)
        settings = parse_settings(await self._manager.expanded(texts), instance.definition.settings)
        return preview(self._parts, instance, settings)

    async def exec(self, name: str, command: Command, stdio: list[int]) -> tuple[int, int]:
        """The command's pid, and a descriptor from which its wait status can be read."""
        _check_command(command, stdio)
        return await self._exec(name, command, stdio)

    async def _exec(self, name: str, command: Command, stdio: list[int], *, main: bool = False) -> tuple[int, int]:
        await self._launcher.returned()
        with storage_errors(f"run a command in VE {name}"):
            reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            pid = await self._manager.exec(name, dict(command), writer, stdio, main=main)
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        return pid, reader

    async def attach(self, name: str, read_only: bool, force: bool, stream: int) -> str:
        kind = _socket_type(stream)
        if kind != socket.SOCK_SEQPACKET:
            raise BadValue("stream", kind, "not a socket of type SOCK_SEQPACKET")
        return await self._manager.attach(name, stream, writes=not read_only, force=force)

    def open_log(self, name: str) -> int:
        return self._manager.open_log(name)

    async def push(self, name: str, path: str, source: dict[str, Any], stream: int, hold: int) -> None:
        job = {**source, "stream": stream, "hold": _checked_hold(hold)}
        for key, most in (("uid", ID_COUNT - 1), ("gid", ID_COUNT - 1), ("mode", 0o7777)):
            if not 0 <= job[key] <= most:
                raise BadValue(key, job[key], f"not between 0 and {most}")
        if "/" in job["name"] or "\0" in job["name"] or job["name"] in (".", ".."):
            raise BadValue("fileName", ascii(job["name"]), "not the name of a file")
        await self._manager.transfers.do(Verb.PUSH, name, path, job, (stream, hold))

    async def pull(self, name: str, path: str, kind: str, stream: int, hold: int) -> dict[str, Any]:
        job = {"kind": kind, "stream": stream, "hold": _checked_hold(hold)}
        return {"skippedCount": 0, **await self._manager.transfers.do(Verb.PULL, name, path, job, (stream, hold))}

    async def clone(self, name: str, new: str, hold: int) -> None:
        await self._manager.copies.clone(name, new, _checked_hold(hold))

    async def export(self, name: str, with_template: bool, stream: int, hold: int) -> list[str]:
        return await self._manager.carrying.export(name, stream, _checked_hold(hold), with_template=with_template)

    async def import_(self, name: str, template: str, texts: dict[str, str], trusted: bool, stream: int,
                      hold: int) -> tuple[str, list[str]]:
        return await self._manager.carrying.import_(name, template, texts, stream, _checked_hold(hold), trusted=trusted)

    async def rename(self, name: str, new: str) -> None:
        await self._manager.copies.rename(name, new)

    async def create_template(self, name: str, ve: str, description: str, hold: int) -> None:
        await self._manager.copies.template(name, ve, description, _checked_hold(hold))

    async def run(self, name: str, template: str, texts: dict[str, str], command: Command,
                  stdio: list[int]) -> tuple[str, int, int]:
        name = name or f"run-{secrets.token_hex(4)}"
        _check_command(command, stdio)
        await self._manager.create(name, template, texts, ephemeral=True)
        try:
            await self._manager.start(name)
            pid, status = await self._exec(name, command, stdio, main=True)
        except BaseException:
            await self._manager.discard(name)
            raise
        return name, pid, status

    # templates

    def _users(self, template: str) -> list[str]:
        return [instance.name for instance in self._manager.instances.users_of(template)]

    def _describe(self, template: Template) -> dict[str, Any]:
        found = asdict(template)
        del found["trees"]
        found["initKind"] = found.pop("init_kind")
        return {**found, "users": self._users(template.name)}

    async def templates(self) -> list[dict[str, Any]]:
        await self._manager.template(HOST_TEMPLATE)
        return [self._describe(t) for t in await asyncio.to_thread(self._parts.templates.list)]

    async def template(self, name: str) -> dict[str, Any]:
        return self._describe(await self._manager.template(name))

    async def import_template(self, name: str, description: str, archive: int) -> dict[str, Any]:
        with self._parts.template_verbs.held(name, "import"):
            with storage_errors(f"read the archive of template {name}"):
                if stat.S_ISDIR(os.fstat(archive).st_mode):
                    raise BadValue("archive", archive, "a directory, which cannot be read from")
                copy = os.dup(archive)
            with os.fdopen(copy, "rb") as stream:
                template = await asyncio.get_running_loop().run_in_executor(
                    self._parts.imports,
                    lambda: self._parts.templates.import_archive(name, stream, description=description))
        return self._describe(template)

    async def remove_template(self, name: str) -> None:
        with self._parts.template_verbs.held(name, "remove"):
            await asyncio.to_thread(self._parts.templates.remove, name, self._users(name))

    async def refresh_host_template(self) -> None:
        await self._manager.refresh_host_template()

    # the host

    async def events(self, name: str, since: float, follow: bool, after: int) -> AsyncIterator[list[dict[str, Any]]]:
        async for events in self._parts.journal.read(name, since, follow=follow, after=after):
            yield [asdict(event) for event in events]

    async def host(self) -> dict[str, Any]:
        await self._parts.networking.choose()
        networks = self._parts.networking.describe()
        return {
            "version": vemgr.__version__, "controllers": sorted(self._parts.tree.controllers),
            "cgroup": self._parts.tree.base, "subnet": networks[0]["subnet"],
            "bridge": networks[0]["bridge"], "networks": networks,
            "keeperPid": self._launcher.keeper.pid, "stateDir": self._parts.config.state_dir,
        }

    async def capacity(self) -> dict[str, Any]:
        return await self._accounting.capacity()

    def fitting(self, cpus: str, memory: str, network: str, group: str) -> dict[str, Any]:
        return self._accounting.fitting(cpus, memory, network, group)

    def groups(self) -> list[dict[str, Any]]:
        return self._manager.groups.list()

    def group(self, name: str) -> dict[str, Any]:
        return self._manager.groups.show(name)

    async def create_group(self, name: str, parent: str, texts: dict[str, str]) -> None:
        await self._manager.groups.create(name, parent, texts)

    async def set_group(self, name: str, texts: dict[str, str]) -> None:
        await self._manager.groups.set(name, texts)

    async def remove_group(self, name: str) -> None:
        await self._manager.groups.remove(name)

    async def examine(self, installed: str) -> list[dict[str, Any]]:
        # Seldom asked for, and nothing that every daemon should carry.
        from vemgr.runtime.doctor.examination import examine  # noqa: PLC0415
        from vemgr.runtime.doctor.findings import Site  # noqa: PLC0415
        from vemgr.runtime.doctor.reading import ThisHost  # noqa: PLC0415

        await self._parts.networking.choose()
        subnets = {network["bridge"]: network["subnet"] for network in self._parts.networking.describe()}
        running = frozenset(instance.name for instance in self._manager.instances if instance.running)
        site = Site(self._parts.config, vemgr.__version__, installed, daemon=True, cgroup=self._parts.tree.base,
                    running=running, subnets=subnets)
        return await asyncio.to_thread(examine, ThisHost(), site)

    async def statistics(self, names: list[str]) -> list[dict[str, Any]]:
        return await self._statistics.collect(names)

    async def demand(self) -> list[dict[str, Any]]:
        return await self._demands.look()

    async def explain(self, name: str) -> dict[str, Any]:
        return await self._accounting.explain(self._manager.instances.get(name))

    def policy(self) -> dict[str, Any]:
        return self._manager.policy.show()

    async def set_policy(self, policy: str) -> None:
        await self._manager.policy.switch(policy)

    async def restore_network(self) -> None:
        await self._parts.networking.restore()

    async def shutdown(self) -> None:
        """Refused while VEs run: the command line stops them first, with their time-outs."""
        running = [instance.name for instance in self._manager.instances if instance.running]
        if running:
            raise StillRunning(", ".join(running), "running")
        await self._parts.networking.take_back()
        self._parts.journal.end()
        self._end()


def _outcome(outcome: Outcome) -> dict[str, Any]:
    error = outcome.error
    return {"name": outcome.name, "step": outcome.step, "error": str(error) if error else "",
            "exitCode": error.exit_code if error else 0}


def _seconds(timeout: int | None, field: str = "timeout") -> float | None:
    if timeout is None:
        return None
    if not 0 <= timeout <= 3600:
        raise BadValue(field, timeout, "not a number of seconds from 0 to 3600")
    return float(timeout)


def _socket_type(fd: int) -> int:
    """0 for what is no local socket."""
    with storage_errors("look at the stream"):
        copy = os.dup(fd)
    try:
        stream = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        return 0
    with stream:
        return stream.type if stream.family == socket.AF_UNIX else 0


def _checked_hold(fd: int) -> int:
    if _socket_type(fd) != socket.SOCK_STREAM:
        raise BadValue("hold", fd, "not a socket of type SOCK_STREAM")
    return fd


def _check_command(command: Command, stdio: list[int]) -> None:
    wanted = 1 if command["tty"] else 3
    if len(stdio) != wanted:
        raise BadValue("stdio", len(stdio), f"{wanted} descriptors are needed")
    texts = [*command["argv"], *command["env"], *command["env"].values(), command["cwd"], command["user"]]
    if any("\0" in text for text in texts):
        raise BadValue("command", "\\0", "a command cannot hold a zero byte")
    if command["cwd"] and not command["cwd"].startswith("/"):
        raise BadValue("cwd", command["cwd"], "not an absolute path")
    try:
        length = sum(len(os.fsencode(text)) for text in texts)
    except UnicodeEncodeError:  # half of a pair of surrogates; those that stand for a byte pass
        raise BadValue("command", "\\ud800", "a character in it cannot be encoded") from None
    if length > _LONGEST_COMMAND:
        raise BadValue("command", "...", f"longer than {_LONGEST_COMMAND} bytes in all",
                       remedy="write it to a file or pass it on standard input")


# A request to the keeper is one datagram; JSON may double the length of a text.
_LONGEST_COMMAND = 64_000
