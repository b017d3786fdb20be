# SPDX-License-Identifier: GPL-2.0-or-later
"""Instances that are processes of the host's kernel, started by a program of the host: what the drivers of runtimes and
the one of the bare host have in common.

Each is a process that stays as long as its instance, in the foreground of the runtime's own command, so that nobody
has to ask whether it runs. Its mark is in the environment of all that descends from it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from vemgr.compare import journal, marked, tree
from vemgr.compare.commands import PATH, Commands, Spawned, new_mark, on_cpus
from vemgr.compare.driver import Context, DriverFailed, Finished, Resources
from vemgr.compare.memory import in_pid_namespace_of, pss
from vemgr.compare.starting import await_command, parse_stamp
from vemgr.core.errors import VemgrError

_KIND = "instance"
_PATIENCE = 60.0  # seconds for a process 1 to run, on a host that is busy with other things
_PROBE_MEMORY = 64 << 20
_GRACE = 10.0  # seconds for it to end


class Runtime(ABC):
    """What differs. `address`: of an instance, as the host reaches it."""

    name: str
    label: str
    tool: str  # the program without which there is nothing
    address: str | None = None

    def configure(self, instance: LocalInstance) -> None:
        """Write what the runtime reads, before the clock of the start runs."""
        del instance

    @abstractmethod
    def start(self, instance: LocalInstance) -> list[str]:
        """The command that stays as long as the instance."""

    @abstractmethod
    def wrap(self, instance: LocalInstance, argv: Sequence[str], variables: dict[str, str]) -> list[str]:
        """The command of the host that runs `argv` in it with these variables."""

    def leader(self, instance: LocalInstance) -> int:
        """Process 1 by its number on the host; 0 where there is none, or none any more."""
        return next((pid for pid in marked.descendants([instance.process.pid]) if _is_first(pid)), 0)

    def ask_to_end(self, instance: LocalInstance) -> None:
        os.kill(instance.leader, signal.SIGTERM)

    def remove(self, name: str, directory: Path) -> None:
        """What it keeps of an instance whose processes are gone. Nothing of it being there is no error."""
        del name, directory


class LocalInstance:
    """One instance; made running."""

    def __init__(self, driver: LocalDriver, name: str, resources: Resources) -> None:
        self.name, self.resources, self.driver = name, resources, driver
        self.mark, self._leader = new_mark(), 0
        self.first_instruction: float | None = None
        self._runtime = driver.runtime
        self.address = self._runtime.address
        self.directory = driver.directory
        self.affinity = set(sorted(os.sched_getaffinity(0))[: resources.cpus])
        self._stopped = False
        self._process: subprocess.Popen[bytes] | None = None
        self.tree = tree.InstanceTree(name, driver.lower, driver.directory, driver.journal)
        self._number = driver.journal.add(_KIND, name=name, mark=self.mark)
        try:
            self._runtime.configure(self)
            self._start()
        except BaseException:
            self.stop()
            raise

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process
        return self._process

    @property
    def leader(self) -> int:
        """Process 1 by its number on the host. Looked for when it is needed: that takes longer than some starts."""
        self._leader = self._leader or self._runtime.leader(self)
        return self._leader

    def _start(self) -> None:
        argv = self._runtime.start(self)
        with open(f"{self.tree.root.parent}/log", "wb") as log:
            started, begin = time.time_ns(), time.monotonic()
            with on_cpus(self.affinity):
                self._process = subprocess.Popen(
                    argv, env={"PATH": os.environ.get("PATH", PATH), marked.VARIABLE: self.mark}, process_group=0,
                    cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.first_instruction = (self._await_stamp() - started) / 1e9
        commands = Commands(self.name, lambda argv, variables: self._runtime.wrap(self, argv, variables),
                            mark=self.mark, affinity=self.affinity)
        self.up = await_command(lambda seconds: commands.run([tree.FIRST], timeout=seconds), begin)
        self._commands = commands

    def _await_stamp(self) -> int:
        deadline = time.monotonic() + _PATIENCE
        while (found := parse_stamp(self.tree.stamp)) is None:
            self._check(deadline)
            time.sleep(0.0005)
        return found

    def _check(self, deadline: float) -> None:
        if self.process.poll() is None and time.monotonic() < deadline:
            return
        said = Path(f"{self.tree.root.parent}/log").read_text(errors="replace").strip().splitlines()
        why = said[-1] if said else f"exit code {self.process.poll()}"
        raise DriverFailed(f"{self._runtime.name} does not start {self.name}: {why}", instance=self.name)

    def run(self, argv: Sequence[str], *, timeout: float, input: bytes = b"") -> Finished:
        return self._commands.run(argv, timeout=timeout, input=input)

    def spawn(self, argv: Sequence[str]) -> Spawned:
        return self._commands.spawn(argv)

    def memory(self) -> int | None:
        """PSS of its processes and of those that the runtime keeps for it."""
        return pss({*in_pid_namespace_of(self.leader), *marked.marked(self.mark)} if _is_first(self.leader)
                   else marked.marked(self.mark))

    def disk_bytes(self) -> int:
        return self.tree.disk_bytes()

    def stop(self) -> float:
        if self._stopped:
            return 0.0
        leader = self.leader if self._process else 0  # looked for before the clock runs
        begin = time.monotonic()
        if self._process and leader and self._process.poll() is None:
            self._runtime.ask_to_end(self)
            if not marked.await_end(self._process.pid, _GRACE):
                marked.end(self.mark, grace=0)
        seconds = time.monotonic() - begin
        _remove(self._runtime, {"name": self.name, "mark": self.mark}, self.directory)
        if self._process:
            self._process.kill()
            self._process.wait()
        self.driver.journal.done(self._number)
        self.tree.remove()
        self._stopped = True
        self.driver.forget(self)
        return seconds


class LocalDriver:
    """A driver of what its runtime starts."""

    def __init__(self, context: Context, runtime: Runtime) -> None:
        self.runtime, self.name, self.label = runtime, runtime.name, runtime.label
        self.directory, self.lower = context.directory, Path()
        self.journal = journal.Journal(context.directory, self.name)
        self._instances: list[LocalInstance] = []
        self._disk: int | None = None

    def probe(self) -> str:
        if shutil.which(self.runtime.tool) is None:
            return f"{self.runtime.tool} is not installed"
        if os.geteuid() != 0:
            return "only root may start instances; run vemgr with sudo"
        return self._try()

    def _try(self) -> str:
        """Being installed says little: by starting one it is seen whether the host lets it."""
        name = f"vemgr-probe-{new_mark()}"
        lower = self.directory / "instances" / f"{name}-lower"
        number = self.journal.add(tree.KIND, path=str(lower))
        before, self.lower = self.lower, lower
        try:
            for each in ("dev", "etc", "proc", "run", "sys", "tmp", "usr"):
                (lower / each).mkdir(parents=True)
            LocalInstance(self, name, Resources(1, _PROBE_MEMORY)).stop()
        except VemgrError as error:
            return str(error).replace(name, "an instance")
        finally:
            self.lower = before
            shutil.rmtree(lower, ignore_errors=True)
            self.journal.done(number)
            self.journal.close()
        return ""

    def prepare(self, root: Path, resources: Resources, directory: Path) -> None:
        del resources, directory
        tree.first_program()
        self.lower = root

    def start(self, name: str, resources: Resources) -> LocalInstance:
        instance = LocalInstance(self, name, resources)
        self._instances.append(instance)
        self._disk = instance.tree.disk_bytes()
        return instance

    def forget(self, instance: LocalInstance) -> None:
        if instance in self._instances:
            self._instances.remove(instance)

    def disk_bytes(self) -> int | None:
        return self._disk

    def clean(self) -> list[str]:
        def undo(entry: journal.Entry) -> str | None:
            return _remove(self.runtime, entry, self.directory) if entry["kind"] == _KIND else tree.undo(entry)

        return journal.clean(self.directory, self.name, undo)

    def close(self) -> None:
        for instance in [*self._instances]:
            instance.stop()
        self.journal.close()


def _remove(runtime: Runtime, entry: journal.Entry, directory: Path) -> str | None:
    there_was = marked.end(entry["mark"])
    runtime.remove(entry["name"], directory)
    return f"{runtime.name} instance {entry['name']}" if there_was else None


def _is_first(pid: int) -> bool:
    """Whether it is process 1 of a namespace below ours (proc_pid_status(5), NSpid)."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            numbers = next(line for line in file if line.startswith("NSpid:")).split()[1:]
    except (OSError, StopIteration):
        return False
    return len(numbers) > 1 and numbers[-1] == "1"
