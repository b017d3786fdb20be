# SPDX-License-Identifier: GPL-2.0-or-later
"""The driver `ve`: VEs of vemgr, made and used over its API as by any other client.

The clock of a start runs from the request on an open connection, as a service would make it. A limit that the host
cannot enforce is left out; CPUs are then bounded by affinity, as on the bare host.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vemgr.api import holding
from vemgr.api.client import Client
from vemgr.api.location import load_config
from vemgr.compare import journal, marked, tree
from vemgr.compare.commands import ENVIRONMENT, new_mark, timed_out
from vemgr.compare.driver import Context, DriverFailed, Finished, Instance, Resources
from vemgr.compare.memory import in_pid_namespace_of, pss
from vemgr.compare.pipes import Pipes
from vemgr.compare.starting import await_command, parse_stamp
from vemgr.core.errors import VemgrError

_KIND, _TEMPLATE = "ve", "template"
_PATIENCE = 60.0
_NOT_EXECUTED = 126


class VEDriver:
    name = "ve"
    label = "VE of vemgr"

    def __init__(self, context: Context) -> None:
        self._context = context
        self.journal = journal.Journal(context.directory, self.name)
        self._instances: list[VE] = []
        self._controllers: list[str] = []
        self._disk: int | None = None
        self._templates: dict[str, int] = {}  # by their names, the numbers in the journal

    def connect(self) -> Client:
        return Client(f"{load_config(self._context.config).run_dir}/vemgr.sock")

    def probe(self) -> str:
        try:
            client = self.connect()
        except VemgrError as error:
            return str(error)
        client.close()
        return ""

    def prepare(self, root: Path, resources: Resources, directory: Path) -> None:
        """`root` is the tree of the template that the context names, which vemgr has itself."""
        del root, resources, directory
        tree.first_program()
        with contextlib.closing(self.connect()) as client:
            client.call("ShowTemplate", {"name": self._context.template})
            self._controllers = client.call("GetHost")["controllers"]

    def settings(self, resources: Resources) -> dict[str, str]:
        limits = {"cpu": ("cpus", str(resources.cpus)), "memory": ("memory", str(resources.memory))}
        return {"init": f"{tree.FIRST} {tree.STAMP}",
                **dict(limits[each] for each in limits if each in self._controllers)}

    @property
    def template(self) -> str:
        return self._context.template

    def affinity(self, resources: Resources) -> set[int] | None:
        return None if "cpu" in self._controllers else set(sorted(os.sched_getaffinity(0))[: resources.cpus])

    def start(self, name: str, resources: Resources) -> VE:
        return self.start_from(self.template, name, resources)

    def start_from(self, template: str, name: str, resources: Resources) -> VE:
        instance = VE(self, template, name, resources)
        self._instances.append(instance)
        self._disk = instance.disk
        return instance

    def template_of(self, instance: Instance, name: str) -> int:
        self._templates[name] = self.journal.add(_TEMPLATE, name=name)
        with contextlib.closing(self.connect()) as client, holding.held() as held:
            client.call("Stop", {"name": instance.name})
            client.call("CreateTemplate", {"name": name, "ve": instance.name, "description": "of vemgr compare",
                                           "hold": 0}, [held])
            destroy(client, instance.name)
            return tree.disk_bytes(Path(client.call("GetHost")["stateDir"]) / "templates" / name)

    def remove_template(self, name: str) -> None:
        with contextlib.closing(self.connect()) as client:
            remove_template(client, name)
        self.journal.done(self._templates.pop(name, 0))

    def forget(self, instance: VE) -> None:
        if instance in self._instances:
            self._instances.remove(instance)

    def disk_bytes(self) -> int | None:
        return self._disk

    def clean(self) -> list[str]:
        return journal.clean(self._context.directory, self.name, self._undo)

    def _undo(self, entry: journal.Entry) -> str | None:
        with contextlib.closing(self.connect()) as client:
            if entry["kind"] == _TEMPLATE:
                return f"template {entry['name']}" if remove_template(client, entry["name"]) else None
            return f"VE {entry['name']}" if destroy(client, entry["name"]) else None

    def close(self) -> None:
        for instance in [*self._instances]:
            instance.stop()
        for name in [*self._templates]:
            self.remove_template(name)
        self.journal.close()


def destroy(client: Client, name: str) -> bool:
    """Whether there was one. What a client that is gone has asked for may still be in progress; its end is awaited."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            client.call("Destroy", {"name": name, "force": True})
        except VemgrError as error:
            if error.identifier == "NoSuchVE":
                return False
            if error.identifier != "Locked" or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return True


def remove_template(client: Client, name: str) -> bool:
    """Whether there was one."""
    try:
        client.call("RemoveTemplate", {"name": name})
    except VemgrError as error:
        if error.identifier != "TemplateNotFound":
            raise
        return False
    return True


class VE:
    """A VE; made running."""

    def __init__(self, driver: VEDriver, template: str, name: str, resources: Resources) -> None:
        self.name, self._driver, self._template = name, driver, template
        self.first_instruction: float | None = None
        self.address: str | None = None
        self._affinity = driver.affinity(resources)
        self._mark, self._pid, self._stopped = new_mark(), 0, False
        self._client = driver.connect()
        self._number = driver.journal.add(_KIND, name=name)
        try:
            self._create(driver.settings(resources))
            self._start()
        except BaseException:
            self.stop()
            raise

    def _create(self, settings: dict[str, str]) -> None:
        try:
            self._client.call("Create", {"name": self.name, "template": self._template, "settings": settings})
        except VemgrError as error:
            if error.identifier == "VEExists":  # somebody else's, and not ours to remove
                self._driver.journal.done(self._number)
                self._client.close()
                self._stopped = True
            raise

    def _start(self) -> None:
        self._push(tree.first_program())
        started, begin = time.time_ns(), time.monotonic()
        self._client.call("Start", {"name": self.name})
        details = self._client.call("Show", {"name": self.name})
        self._pid = details["pid"]
        # In the tree of process 1, so that it is found however the VE's files are kept.
        stamp = Path(f"/proc/{self._pid}/root{tree.STAMP}")
        deadline = time.monotonic() + _PATIENCE
        while (found := parse_stamp(stamp)) is None:
            if time.monotonic() > deadline:
                raise DriverFailed(f"process 1 of VE {self.name} does not run", instance=self.name)
            time.sleep(0.0005)
        self.first_instruction = (found - started) / 1e9
        self.up = await_command(lambda seconds: self.run([tree.FIRST], timeout=seconds), begin)
        self.address = details["address"] or None
        self.disk = self.disk_bytes()

    def disk_bytes(self) -> int | None:
        """Of its writable layer: what its directory has, without the overlay's own mount."""
        directory = Path(self._client.call("GetHost")["stateDir"]) / "ve" / self.name
        return tree.disk_bytes(directory) if directory.is_dir() else None

    def _push(self, program: Path) -> None:
        fd = os.open(program, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with holding.held() as held:
                self._client.call("Push", {"name": self.name, "path": tree.FIRST, "kind": "file", "mode": 0o755,
                                           "stream": 0, "hold": 1}, [fd, held])
        finally:
            os.close(fd)

    def run(self, argv: Sequence[str], *, timeout: float, input: bytes = b"") -> Finished:
        mark = f"{self._mark}.{new_mark()}"
        begin = time.monotonic()
        with Pipes() as pipes:
            try:
                status = self._exec(argv, mark, pipes.theirs)
            except VemgrError as error:
                if error.identifier != "ExecFailed":
                    raise
                return Finished(int(error.facts.get("status", _NOT_EXECUTED)), b"", f"{error}\n".encode(),
                                time.monotonic() - begin)
            try:
                outputs = pipes.exchange(status, input, begin + timeout)
                code = _exit_code(status, self.name)
            except TimeoutError:
                marked.end(mark, grace=0)
                raise timed_out(self.name, argv, timeout) from None
            except BaseException:
                marked.end(mark, grace=0)
                raise
            finally:
                os.close(status)
        return Finished(code, *outputs, time.monotonic() - begin)

    def spawn(self, argv: Sequence[str]) -> SpawnedInVE:
        mark = f"{self._mark}.{new_mark()}"
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.close(self._exec(argv, mark, [null, null, null]))
        finally:
            os.close(null)
        return SpawnedInVE(mark)

    def _exec(self, argv: Sequence[str], mark: str, stdio: list[int]) -> int:
        """The descriptor from which its wait status comes."""
        command: dict[str, Any] = {"argv": [*argv], "env": ENVIRONMENT | {marked.VARIABLE: mark}, "cwd": "/",
                                   "user": "root", "tty": False}
        reply = self._client.call("Exec", {"name": self.name, "command": command, "stdio": [0, 1, 2]}, stdio)
        if self._affinity:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(reply["pid"], self._affinity)
        status: int = reply["descriptors"][0]
        return status

    def memory(self) -> int | None:
        """memory.current of its cgroup, which has the kernel's share too; without the memory controller PSS."""
        found = self._client.call("Show", {"name": self.name})["usage"].get("memory_current")
        return int(found) if found is not None else pss(in_pid_namespace_of(self._pid))

    def stop(self) -> float:
        if self._stopped:
            return 0.0
        seconds = 0.0
        with contextlib.closing(self._driver.connect()) as client:  # ours may be in the middle of a call
            begin = time.monotonic()
            try:
                client.call("Stop", {"name": self.name})
                seconds = time.monotonic() - begin
            except VemgrError as error:
                if error.identifier not in ("NotRunning", "NoSuchVE", "Locked"):
                    raise
            destroy(client, self.name)
        self._client.close()
        self._stopped = True
        self._driver.journal.done(self._number)
        self._driver.forget(self)
        return seconds


class SpawnedInVE:
    """A command that goes on."""

    def __init__(self, mark: str) -> None:
        self._mark = mark

    def stop(self) -> None:
        marked.end(self._mark)


def _exit_code(status: int, name: str) -> int:
    data = os.read(status, 4)  # a native int, written at once
    if len(data) < 4:
        raise DriverFailed(f"the end of a command in VE {name} was not reported: the keeper is gone", instance=name)
    code = os.waitstatus_to_exitcode(struct.unpack("=i", data)[0])
    return code if code >= 0 else 128 - code
