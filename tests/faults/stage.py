# SPDX-License-Identifier: GPL-2.0-or-later
"""A vemgr whose calls to the kernel can be made to fail, and what the host looks like with it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.kernel.conftest import Instance, eventually
from vemgr.api.client import Client, RemoteError

SPACE, DESCRIPTOR, MEMORY, PROCESS, OTHER = KINDS = (1, 2, 4, 8, 16)
ALL = sum(KINDS)
_SOURCE = Path(__file__).with_name("failing_calls.c")
#: Whose calls: those of the daemon, of the keeper, of what the keeper forks (set-up, entering), of what that clones.
ROLES = {"daemon": 1, "keeper": 11, "helper": 12, "inside": 13}
OTHER = "bystander"
DEADLINE = 40.0  # seconds for any verb, with whatever fails in it


class _Control(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int32) for name in (
        "role", "at", "on", "kinds", "shortened", "count", "hits", "code")] + [
            ("call", ctypes.c_char * 32), ("about", ctypes.c_char * 216)]


@dataclass(frozen=True)
class Hit:
    """`count` calls were made, the first that failed was `call`; none for `hits` 0."""

    count: int
    hits: int
    code: int
    call: str
    about: str

    def __str__(self) -> str:
        return f"{self.call}({self.about}): {os.strerror(self.code)}"


class Faults:
    """The counter that all processes of a stage share."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(ctypes.sizeof(_Control)))
        with open(path, "r+b") as file:
            self._control = _Control.from_buffer(mmap.mmap(file.fileno(), 0))

    def arm(self, role: str, at: int, *, kinds: int = ALL, on: bool = False, shortened: bool = False) -> None:
        control = self._control
        control.role = 0
        control.at, control.on, control.kinds, control.shortened = at, on, kinds, shortened
        control.count = control.hits = control.code = 0
        control.call = control.about = b""
        control.role = ROLES[role]

    def relieve(self) -> None:
        """There is enough again; what has failed is still told."""
        self._control.at = 0

    def disarm(self) -> Hit:
        control = self._control
        control.role = 0
        return Hit(control.count, control.hits, control.code, control.call.decode(),
                   control.about.decode(errors="replace"))


class Stage(Instance):
    """An instance whose daemon and keeper are ours, with the library loaded. Zombies of both are reaped by `close`."""

    def __init__(self, base: str, state_dir: str | None = None) -> None:
        super().__init__(base, state_dir)
        library = self.base / "failing_calls.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", str(library),
                        str(_SOURCE)], check=True, timeout=60)
        self.faults = Faults(self.base / "faults")
        self.preload = {"LD_PRELOAD": str(library), "VEMGR_FAULTS": str(self.faults.path)}
        self.services: dict[str, subprocess.Popen[bytes]] = {}
        self.client: Client | None = None
        self.network: Any = None  # what `picture` tells of it when it has been made

    def begin(self) -> None:
        """Keeper and daemon, as far as they do not run yet."""
        self.run.mkdir(mode=0o700, exist_ok=True)
        for name, role, arguments, path in (
                ("keeper", "keeper", ["vemgr.keeper.main", "--run-dir", str(self.run)], self.run / "keeper.sock"),
                ("daemon", "daemon", ["vemgr.daemon.main", "--config", str(self.config)], self.run / "vemgr.sock")):
            old = self.services.get(name)
            if old is not None and old.poll() is None:
                continue
            path.unlink(missing_ok=True)
            with open(self.run / f"{name}.log", "ab") as log:
                self.services[name] = subprocess.Popen(
                    ["nsenter", f"--net=/run/netns/{self.netns}", sys.executable, "-m", *arguments], cwd="/",
                    env=self.environment(**self.preload, VEMGR_FAULTS_ROLE=str(ROLES[role])), stdin=subprocess.DEVNULL,
                    stdout=log, stderr=log, start_new_session=True)
            service = self.services[name]
            eventually(lambda service=service, path=path: path.exists() or service.poll() is not None, f"no {name}", 30)
            assert service.poll() is None, self.log(name)
        self.connect()

    def connect(self) -> Client:
        if self.client is not None:
            self.client.close()
        self.client = Client(f"{self.run}/vemgr.sock")
        self.client._socket.settimeout(DEADLINE)
        return self.client

    def log(self, name: str) -> str:
        return (self.run / f"{name}.log").read_text(errors="replace")

    def end(self, name: str) -> None:
        """SIGTERM to daemon or keeper."""
        service = self.services.pop(name)
        service.send_signal(signal.SIGTERM)
        service.wait(20)

    def call(self, method: str, fds: list[int] | None = None, **parameters: Any) -> dict[str, Any]:
        assert self.client is not None
        return self.client.call(method, parameters, fds)

    def pids(self) -> list[int]:
        return [service.pid for service in self.services.values()]

    # what is there

    def host(self) -> dict[str, Any]:
        """All that a verb could leave on this host, read without a process: some ms."""
        daemon, keeper = (self.services[name].pid for name in ("daemon", "keeper"))
        with open("/proc/self/mountinfo") as file:
            mounts = sorted(line.split(" - ")[0].split(maxsplit=2)[2] for line in file)
        with open(f"/proc/{daemon}/net/dev") as file:
            links = sorted(line.split(":")[0].strip() for line in file if ":" in line)
        return {
            "mounts": [mount for mount in mounts if self.netns in mount or str(self.base) in mount],
            "links": links, "cgroups": self.cgroups(), "files": self.files(),
            "children of the keeper": len(Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()),
            "children of the daemon": len(Path(f"/proc/{daemon}/task/{daemon}/children").read_text().split()),
            "daemon": self.descriptors(daemon), "keeper": self.descriptors(keeper),
        }

    def sysctl(self, key: str) -> str:
        return subprocess.run(["nsenter", f"--net=/run/netns/{self.netns}", "cat", f"/proc/sys/{key}"], check=True,
                              capture_output=True, text=True).stdout.strip()

    def ves(self) -> dict[str, Any]:
        """What the API tells of the VEs, less what time changes."""
        found = {}
        for ve in self.call("List")["ves"]:
            try:
                shown = self.call("Show", name=ve["name"])
            except RemoteError:
                continue  # an ephemeral one, on its way out
            found[ve["name"]] = {key: shown[key] for key in ("state", "verb", "address", "idBase", "settings",
                                                             "template", "ephemeral")}
            assert (ve["pid"] != 0) == (ve["state"] != "stopped")
        return found

    def settled(self, *, rules: bool = False) -> dict[str, Any]:
        """A picture to compare with: after the kernel has taken down what has ended."""
        def links() -> bool:
            wanted = [ve for ve in self.ves().values() if ve["state"] != "stopped" and ve["address"]]
            return len([link for link in self.host()["links"] if link.startswith("ve")]) == len(wanted)

        eventually(links, "links stay", 30)
        last: list[dict[str, Any]] = [{}]

        def same() -> bool:
            time.sleep(0.1)
            last.append(self.picture(rules=rules))
            return last[-1] == last[-2]

        eventually(same, "it never settles", 30)
        return last[-1]

    def picture(self, *, rules: bool = False) -> dict[str, Any]:
        ves = self.ves()
        return {**self.host(), "ves": ves, "definitions": self.definitions(), "loops": self.loops(),
                "groups": self.call("ListGroups")["groups"], "volumes": self.call("ListVolumes")["volumes"],
                "network": (self.ruleset(), self.sysctl("net/ipv4/ip_forward")) if rules else ""}

    def loops(self) -> list[str]:
        """Loop devices of files of ours."""
        files = [path.read_text().strip() for path in Path("/sys/block").glob("loop*/loop/backing_file")]
        return sorted(file for file in files if str(self.base) in file)

    def definitions(self) -> dict[str, str]:
        found = {}
        for path in sorted((self.state / "ve").glob("*/config.toml")):
            found[path.parent.name] = re.sub(r"(started|created) = .*\n", "", path.read_text())
        return found

    def await_picture(self, wanted: dict[str, Any], *, why: object, rules: bool = False, timeout: float = 15.0) -> None:
        """The kernel takes down links, and the keeper reaps, behind our back."""
        def difference() -> dict[str, Any]:
            now = self.picture(rules=rules)
            return {key: _difference(wanted[key], now[key]) for key in wanted if wanted[key] != now[key]}

        eventually(lambda: not difference(), lambda: f"after {why}: {json.dumps(difference(), indent=1)}", timeout)

    def discard(self) -> None:
        """End all, whatever has come of it."""
        for service in self.services.values():
            service.kill()
            service.wait(20)
        for directory, _, _ in os.walk(self.cgroup, topdown=False):
            if directory != self.cgroup and os.path.exists(f"{directory}/cgroup.kill"):
                Path(f"{directory}/cgroup.kill").write_text("1")
            eventually(lambda directory=directory: _removed(directory), f"{directory} stays")
        subprocess.run(["ip", "netns", "del", self.netns], check=True, timeout=20)

    def close(self) -> None:
        self.faults.disarm()
        if self.client is not None:
            self.client.close()
        try:
            if all(service.poll() is None for service in self.services.values()) and self.services:
                for ve in self.json("list"):
                    self("destroy", "--force", ve["name"])
                self("shutdown", "--timeout", "0")
                for service in self.services.values():
                    service.wait(20)
        finally:
            for service in self.services.values():
                if service.poll() is None:
                    service.kill()
                    service.wait(20)
            super().close()


@contextlib.contextmanager
def made_stage(*, alone: bool = False) -> Iterator[Stage]:
    """With templates, and unless `alone` with a VE that runs and that nothing must disturb."""
    with tempfile.TemporaryDirectory(prefix="vemgr-test-", dir="/var/tmp") as base:
        stage = Stage(base)
        try:
            stage.begin()
            stage.import_busybox()
            stage.import_busybox("bbinit", init=True)
            if not alone:
                stage.call("Create", name=OTHER, template="bb", settings={})
                stage.call("Start", name=OTHER)
            yield stage
        except BaseException:
            print(stage.log("daemon")[-2000:], stage.log("keeper")[-2000:], file=sys.stderr)
            stage.discard()
            raise
        stage.close()


def _removed(directory: str) -> bool:
    with contextlib.suppress(OSError):
        os.rmdir(directory)
    return not os.path.exists(directory)


def _difference(before: Any, after: Any) -> Any:
    if isinstance(before, dict):
        return {key: (before.get(key), after.get(key)) for key in {*before, *after}
                if before.get(key) != after.get(key)}
    if isinstance(before, list):
        gone, new = list(before), list(after)
        for item in before:
            if item in new:
                new.remove(item)
                gone.remove(item)
        return {"gone": gone, "new": new}
    return before, after
