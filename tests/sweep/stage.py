# SPDX-License-Identifier: GPL-2.0-or-later
"""A vemgr of the sweep's own, quick to start and to start again, and what the host looks like with it.

Daemon and keeper are forks of this process, which has imported what they import: a new one serves after some 30 ms
instead of a second. Nothing else about them differs. This process lives in a network namespace of its own and is the
subreaper of all that it starts, so that no process is lost from sight.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import vemgr.daemon.main
import vemgr.keeper.main
import vemgr.runtime.ending
from tests.sweep import trees
from vemgr.api.client import Client
from vemgr.api.location import load_config
from vemgr.core.errors import Unreachable
from vemgr.kernel import namespaces
from vemgr.kernel.cgroups import cgroup2_mountpoint
from vemgr.kernel.firewall import Firewall
from vemgr.kernel.sysctl import forwarding
from vemgr.templates.store import Templates

SPAWNER = "vemgr-spawner"
SECOND_NETWORK = "lan"
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_ATTACH = 15.0  # seconds for a daemon or a keeper to serve
_libc = ctypes.CDLL(None)

class Caller(Client):
    """A client whose calls can be begun, and answered later."""

    def begin(self, method: str, parameters: dict[str, Any], fds: list[int]) -> None:
        message = json.dumps({"method": f"org.vemgr.Manager.{method}", "parameters": parameters}).encode() + b"\0"
        socket.send_fds(self._socket, [message], fds)

    def fileno(self) -> int:
        return self._socket.fileno()

    def answer(self, seconds: float) -> dict[str, Any] | None:
        """The reply, with "error" in it where it is one; None when the daemon went without. Raises `TimeoutError`."""
        self._socket.settimeout(seconds)
        try:
            data, fds = self._receive()
        except ConnectionResetError:
            return None
        finally:
            self._socket.settimeout(None)
        for fd in fds:
            os.close(fd)
        return dict(json.loads(data))


class Stage:
    """`directory`: on a disk, as a real state directory is."""

    def __init__(self, directory: str = "/var/tmp") -> None:
        self.tag = secrets.token_hex(3)
        self.base = f"{directory}/vemgr-sweep-{self.tag}"
        self.state, self.run = f"{self.base}/state", f"{self.base}/run"
        self.bridge = self.table = f"vs{self.tag}"
        self.cgroups = f"{cgroup2_mountpoint()}/vemgr-sweep-{self.tag}"
        self.daemon = self.keeper = 0
        self._client: Caller | None = None
        self._controllers: list[str] | None = None
        os.mkdir(self.base, 0o700)
        with open(f"{self.base}/vemgr.toml", "w", encoding="ascii") as file:
            file.write(f'state-dir = "{self.state}"\nrun-dir = "{self.run}"\nbridge = "{self.bridge}"\n'
                       f'table = "{self.table}"\ncgroup = "{os.path.basename(self.cgroups)}"\n'
                       f'[network.{SECOND_NETWORK}]\nbridge = "{self.bridge}-2"\nsubnet6 = "fd77::/64"\n')
        self.instance = load_config(f"{self.base}/vemgr.toml").instance
        namespaces.unshare(namespaces.CLONE_NEWNET)
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        trees.host(f"{self.base}/host")
        vemgr.daemon.main.Templates = partial(  # type: ignore[misc]
            Templates, host_root=f"{self.base}/host")
        vemgr.runtime.ending._REBOOT_DELAY = 0.0  # between many reboots in a short time, which here are wanted
        for name, archive in (("busybox", trees.busybox()), ("small", trees.small())):
            with open(f"{self.base}/{name}.tar", "wb") as file:
                file.write(archive)

    def begin(self) -> None:
        """Start it all, with a template `bb`."""
        self.start_keeper()
        self.start_daemon()
        with open(f"{self.base}/busybox.tar", "rb") as file:
            self.call("ImportTemplate", [file.fileno()], name="bb", description="", archive=0)

    # the processes

    def start_keeper(self) -> None:
        self.keeper = self.fork(["keeper", "--run-dir", self.run], vemgr.keeper.main.main)
        self.wait(lambda: _listens(f"{self.run}/keeper.sock", socket.SOCK_SEQPACKET), "no keeper serves", _ATTACH)

    def start_daemon(self, before: Callable[[], object] = lambda: None) -> None:
        """`before` runs in the new process, before anything else."""
        self.forget_client()
        self.daemon = self.fork(["vemgrd", "--config", f"{self.base}/vemgr.toml"], vemgr.daemon.main.main, before)

    def fork(self, argv: list[str], main: Callable[[], None], before: Callable[[], object] = lambda: None) -> int:
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            return pid
        try:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            for signum in (signal.SIGTERM, signal.SIGINT):
                signal.signal(signum, signal.SIG_DFL)
            os.setsid()
            os.chdir("/")
            log = os.open(f"{self.base}/{argv[0]}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            null = os.open(os.devnull, os.O_RDWR)
            for target, fd in ((0, null), (1, log), (2, log)):
                os.dup2(fd, target)
            os.closerange(3, 1024)
            # What it writes in Python's own way goes where descriptor 2 does, whatever the stage made of its streams.
            sys.stdout = sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
            sys.argv = argv
            before()
            main()
        except SystemExit as error:
            os._exit(int(error.code or 0))
        except BaseException:
            import traceback  # noqa: PLC0415  (for the log of a process that is about to die)

            traceback.print_exc()
        finally:
            os._exit(1)

    def client(self) -> Caller:
        """The connection to the daemon, made when it serves. Raises `TimeoutError`."""
        if self._client is None:
            self.wait(self._connect, "no daemon serves", _ATTACH)
        assert self._client is not None
        return self._client

    def _connect(self) -> bool:
        try:
            self._client = Caller(f"{self.run}/vemgr.sock")
        except Unreachable:
            return False
        return True

    def forget_client(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def call(self, method: str, fds: list[int] | None = None, **parameters: Any) -> dict[str, Any]:
        return self.client().call(method, parameters, fds)

    def kill(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self.wait(lambda: not alive(pid), f"process {pid} does not die")

    def reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass

    def wait(self, condition: Callable[[], object], why: str, seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while True:
            self.reap()
            if condition():
                return
            if time.monotonic() > deadline:
                raise TimeoutError(why)
            time.sleep(0.002)

    def shut_down(self) -> None:
        """By the verb, and up again."""
        self.call("Shutdown")
        self.await_shutdown()

    def await_shutdown(self) -> None:
        self.wait(lambda: not alive(self.daemon) and not alive(self.keeper), "a shutdown does not come to its end")
        links, rules = [name for _, name in socket.if_nameindex()], Firewall(self.table).listing()
        assert links == ["lo"], f"after a shutdown there are links {links}"
        assert not rules, f"after a shutdown there are rules: {rules}"
        assert forwarding() == 0, "after a shutdown net.ipv4.ip_forward is not as it was"
        assert not os.path.exists(self.cgroups), "after a shutdown there are cgroups"
        self.start_missing()

    def start_missing(self) -> None:
        """What a command would start."""
        if not alive(self.keeper):
            self.start_keeper()
        if not alive(self.daemon):
            self.start_daemon()

    def ves(self) -> dict[str, dict[str, Any]]:
        return {ve["name"]: ve for ve in self.call("List")["ves"]}

    def limits(self, share: int = 1) -> dict[str, str]:
        """Settings for a VE that make use of all controllers there are; half of them for a `share` of 2."""
        if self._controllers is None:
            self._controllers = self.call("GetHost")["controllers"]
        most = {"memory": ("memory", f"{128 // share}M"), "pids": ("pids", str(200 // share)),
                "cpu": ("cpus", str(0.5 / share))}
        return dict(most[controller] for controller in sorted(self._controllers) if controller in most)

    def spawners(self) -> list[int]:
        """The keeper's, as soon as it has needed one."""
        return [pid for pid, parent in parents().items() if parent == self.keeper and name_of(pid) == SPAWNER]

    # the end

    def logs(self) -> str:
        """The last lines of daemon and keeper."""
        text = ""
        for name in ("vemgrd", "keeper"):
            with contextlib.suppress(OSError), open(f"{self.base}/{name}.log", encoding="utf-8") as file:
                text += f"--- {name}\n" + "".join(file.readlines()[-30:])
        return text

    def _forget_network(self) -> None:
        for bridge in (self.bridge, f"{self.bridge}-2"):
            subprocess.run(["ip", "link", "del", bridge], capture_output=True)
        with contextlib.suppress(Exception):
            Firewall(self.table).remove()

    def close(self) -> None:
        """Kill and remove everything, however wrong it is."""
        self.forget_client()
        for pid in (self.daemon, self.keeper):
            if pid:
                with contextlib.suppress(TimeoutError):
                    self.kill(pid)
        for top, _, _ in os.walk(self.cgroups, topdown=False):
            with contextlib.suppress(OSError), open(f"{top}/cgroup.kill", "w", encoding="ascii") as file:
                file.write("1")
        deadline = time.monotonic() + 5
        while os.path.exists(self.cgroups) and time.monotonic() < deadline:
            self.reap()
            for top, _, _ in os.walk(self.cgroups, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(top)
        self._forget_network()
        shutil.rmtree(self.base, ignore_errors=True)


def parents() -> dict[int, int]:
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
            found[int(name)] = int(file.read().rpartition(")")[2].split()[1])
    return found


def name_of(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "gone"


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _listens(path: str, kind: socket.SocketKind) -> bool:
    with socket.socket(socket.AF_UNIX, kind) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True
