# SPDX-License-Identifier: GPL-2.0-or-later
"""A vemgr of the benchmark's own: state, bridge, table and cgroup that no other instance has."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import signal
import socket
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmark.measure import Failed
from benchmark.process import run, timed
from vemgr.api.client import Client, RemoteError
from vemgr.core.errors import VemgrError
from vemgr.kernel.cgroups import cgroup2_mountpoint
from vemgr.kernel.veth import host_ifname

ROOT = Path(__file__).parents[2]
TEMPLATE = "tiny"
CLIENTS = 4
_PATIENCE = 30.0  # seconds
_COMING_UP = 120.0
_LONGEST_SOCKET = 107  # unix(7), sun_path
# As a careful administrator would set them for a small service; what this host cannot enforce is left out.
_LIMITS = (
    {"cpus": "1.5", "cpu-weight": "200"}, {"cpu-mask": "0"}, {"memory": "256M", "swap": "0"}, {"pids": "100"},
    {"io-weight": "200"}, {"io-write": "500M/s", "iops-write": "100000"},
)
# What pip installs as `vemgr`, for its time as a whole process.
_SCRIPT = """#!{python}
import re
import sys
from {module} import {function}
if __name__ == "__main__":
    sys.argv[0] = re.sub(r"(-script\\.pyw|\\.exe)?$", "", sys.argv[0])
    sys.exit({function}())
"""


class Instance:
    """`settings`: all limits that this host can enforce. Raises `Failed` where the daemon does not come up."""

    def __init__(self, base: Path, trees: Mapping[str, Path], extra: str = "") -> None:
        """`trees`: templates by name. `extra`: further lines for vemgr.toml."""
        if len(f"{base}/run/keeper.sock") > _LONGEST_SOCKET:
            raise Failed(f"{base} is too long for a socket in it; choose a shorter --dir")
        base.mkdir(exist_ok=True)  # each group of figures tries again
        tag = secrets.token_hex(3)
        self.base, self.state, self.run_dir = base, base / "state", base / "run"
        self._cgroup = f"vemgr-bench-{tag}"
        self._names = itertools.count(1)
        config = base / "vemgr.toml"
        self._tag = f"vb{tag}"  # of an instance that is not the host's own its links have the bridge's name
        config.write_text(
            f'state-dir = "{self.state}"\nrun-dir = "{self.run_dir}"\nbridge = "vb{tag}"\ntable = "vb{tag}"\n'
            f'cgroup = "{self._cgroup}"\n{extra}\n')
        self._command = self._install(base / "vemgr")
        self._environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "VEMGR_CONFIG": str(config)}
        self._clients: list[Client] = []
        try:
            self._come_up()
            for name, tree in trees.items():
                self.cli("template", "import", name, str(tree))
            self.client = self.new_client()
            self.host = self.client.call("GetHost")
            self.settings = self._enforceable_limits()
        except BaseException:
            with contextlib.suppress(Failed):  # the first error says more
                self.close()
            raise

    def _come_up(self) -> None:
        """A daemon in a machine without KVM may need longer than the command line waits for it."""
        deadline = time.monotonic() + _COMING_UP
        while True:
            try:
                self.cli("host")
                return
            except Failed:
                if time.monotonic() > deadline:
                    raise

    @staticmethod
    def _install(path: Path) -> str:
        with open(ROOT / "pyproject.toml", "rb") as file:
            module, _, function = tomllib.load(file)["project"]["scripts"]["vemgr"].partition(":")
        path.write_text(_SCRIPT.format(python=sys.executable, module=module, function=function))
        path.chmod(0o755)
        return str(path)

    def new_client(self) -> Client:
        client = Client(f"{self.run_dir}/vemgr.sock")
        self._clients.append(client)
        return client

    def cli(self, *arguments: str) -> str:
        return run([self._command, *arguments], env=self._environment)

    def timed_cli(self, *arguments: str) -> float:
        """The command as a whole process."""
        return timed([self._command, *arguments], str(self.base / "cli.log"), self._environment)

    def call(self, method: str, client: Client | None = None, **parameters: Any) -> dict[str, Any]:
        """Raises `Failed` for the daemon's errors."""
        try:
            return (client or self.client).call(method, parameters)
        except VemgrError as error:
            raise Failed(f"{method} {parameters.get('name', '')}: {error}") from error

    def _enforceable_limits(self) -> dict[str, str]:
        accepted: dict[str, str] = {}
        for limits in _LIMITS:
            try:
                self.call("Create", name="probe", template=TEMPLATE, settings={**accepted, **limits})
            except Failed as error:
                if not is_not_enforceable(error):
                    raise
                continue
            accepted |= limits
            self.call("Destroy", name="probe")
        return accepted

    # VEs

    def create(self, *, template: str = TEMPLATE, client: Client | None = None) -> str:
        name = f"b{next(self._names)}"
        self.call("Create", client, name=name, template=template, settings=self.settings)
        return name

    def start(self, name: str, client: Client | None = None) -> None:
        self.call("Start", client, name=name)

    def stop(self, name: str) -> None:
        """Kill it, and wait until the kernel has taken its network apart: that work is not to fall to the next run."""
        if self.running().get(name) and not self._links([name]):
            raise Failed(f"{name} runs without the link {host_ifname(name, self._tag)}")  # what is waited for below
        self.call("Stop", name=name, kill=True)
        self.await_no_links([name])

    def await_no_links(self, names: Iterable[str]) -> None:
        until(lambda: not self._links(names), "the links of stopped VEs stay")

    def _links(self, names: Iterable[str]) -> set[str]:
        return {host_ifname(name, self._tag) for name in names} & {link for _, link in socket.if_nameindex()}

    def stamp_of(self, name: str) -> Path:
        return self.state / "ve" / name / "data/0/upper/stamp"

    def first_instruction(self, name: str) -> float:
        """Start a VE; seconds from just before the request to the first instruction of its init."""
        stamp = self.stamp_of(name)
        stamp.unlink(missing_ok=True)
        began = time.time_ns()
        self.start(name)
        return (self.read_stamp(name) - began) / 1e9

    def read_stamp(self, name: str) -> int:
        """When a VE's init began, in nanoseconds since 1970. A started VE without one has not started: `Failed`."""
        stamp, found = self.stamp_of(name), ""

        def written() -> bool:
            nonlocal found
            with contextlib.suppress(FileNotFoundError):
                found = stamp.read_text()
            return found.endswith("\n")

        until(written, f"init of {name} wrote no stamp")
        return int(found)

    def running(self) -> dict[str, int]:
        """The pids of the running VEs' inits."""
        return {ve["name"]: ve["pid"] for ve in self.call("List")["ves"] if ve["state"] == "running"}

    def for_each(self, names: Iterable[str], action: Callable[[str, Client], object]) -> None:
        """With four clients at once. Raises the first `Failed`, after all have been tried."""
        idle = [self.new_client() for _ in range(CLIENTS)]

        def one(name: str) -> None:
            client = idle.pop()
            try:
                action(name, client)
            finally:
                idle.append(client)

        with ThreadPoolExecutor(CLIENTS) as pool:
            outcomes = [pool.submit(one, name) for name in names]
        for outcome in outcomes:
            outcome.result()

    def create_many(self, count: int) -> list[str]:
        names: list[str] = []
        self.for_each(map(str, range(count)), lambda _, client: names.append(self.create(client=client)))
        return names

    def start_many(self, names: Iterable[str]) -> None:
        self.for_each(names, self.start)

    def destroy_many(self, names: Sequence[str]) -> None:
        self.for_each(names, lambda name, client: self.call("Destroy", client, name=name, force=True))
        self.await_no_links(names)

    @contextlib.contextmanager
    def ve(self, template: str = TEMPLATE) -> Iterator[str]:
        """A VE that goes away afterwards."""
        name = self.create(template=template)
        try:
            yield name
        finally:
            self.destroy_many([name])

    # its end

    def own_pids(self) -> list[int]:
        """Daemon and keeper."""
        daemon = peer_pid(f"{self.run_dir}/vemgr.sock")
        return [daemon, int(self.call("GetHost")["keeperPid"])]

    def close(self) -> None:
        try:
            if self._clients:
                self.destroy_many([ve["name"] for ve in self.call("List")["ves"]])
            for client in self._clients:
                client.close()
            self.cli("shutdown", "--timeout", "0")
            until(lambda: not self._processes(), "daemon or keeper stays after a shutdown")
        finally:
            if left := self._processes():
                self._clear_away(left)

    def _clear_away(self, pids: Iterable[int]) -> None:
        """After a failure: VEs end with their keeper."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        top = Path(cgroup2_mountpoint()) / self._cgroup
        until(lambda: not top.exists() or "populated 0" in (top / "cgroup.events").read_text(),
              "the VEs' processes stay")
        for directory, _, _ in os.walk(top, topdown=False):
            os.rmdir(directory)

    def _processes(self) -> list[int]:
        """Daemon and keeper have our directory on their command lines; of a zombie that is empty."""
        found = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if os.fsencode(f"{self.base}/") in Path(f"/proc/{entry}/cmdline").read_bytes():
                    found.append(int(entry))
        return found


def is_not_enforceable(error: Exception) -> bool:
    """Whether the daemon has refused a setting because this host cannot have it."""
    return isinstance(error.__cause__, RemoteError) and error.__cause__.identifier == "NotEnforceable"


def peer_pid(path: str) -> int:
    """Who listens on a unix socket (SO_PEERCRED, unix(7))."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(path)
        return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], sys.byteorder)


def until(condition: Callable[[], bool], complaint: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(complaint)
        time.sleep(0.001)
