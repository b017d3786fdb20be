# SPDX-License-Identifier: GPL-2.0-or-later
"""Reaching the daemon, and starting it (with its keeper) where there is no systemd to do so."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import time

from vemgr.api.client import Client
from vemgr.api.location import load_config
from vemgr.core.errors import Unreachable
from vemgr.core.host import HostConfig

_PATIENCE = 30.0  # seconds for a daemon to come up; the first one makes the template `host`
_KEPT = ("PATH", "PYTHONPATH", "LANG", "VEMGR_CONFIG")


def connect(config_path: str) -> Client:
    """A connection to the daemon. Raises `Unreachable` or `PermissionDenied`."""
    config = load_config(config_path)
    path = f"{config.run_dir}/vemgr.sock"
    try:
        client = Client(path)
    except Unreachable:
        if not _ours_to_start(config):
            raise
        _start(config, config_path)
        return Client(path)
    if _ours_to_start(config) and not _answers(f"{config.run_dir}/keeper.sock", socket.SOCK_SEQPACKET):
        _start(config, config_path)  # a keeper that was killed; the daemon takes up with the new one by itself
    return client


def _ours_to_start(config: HostConfig) -> bool:
    """Whether services are ours to start: not where systemd keeps them, except for an instance apart from its units."""
    if os.geteuid() != 0:
        return False
    return not os.path.isdir("/run/systemd/system") or config.run_dir != HostConfig().run_dir


def _answers(path: str, kind: socket.SocketKind) -> bool:
    with socket.socket(socket.AF_UNIX, kind) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def _start(config: HostConfig, config_path: str) -> None:
    """Start what is missing and wait for the API. Two commands at once start one daemon: the lock sees to it."""
    os.makedirs(config.run_dir, mode=0o700, exist_ok=True)
    with open(f"{config.run_dir}/start.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        deadline = time.monotonic() + _PATIENCE
        keeper, api = f"{config.run_dir}/keeper.sock", f"{config.run_dir}/vemgr.sock"
        if not _answers(keeper, socket.SOCK_SEQPACKET):
            _spawn(config, "keeper", ["-m", "vemgr.keeper.main", "--run-dir", config.run_dir])
            _await(keeper, socket.SOCK_SEQPACKET, deadline, f"{config.run_dir}/keeper.log")
        if not _answers(api, socket.SOCK_STREAM):
            pid = _spawn(config, "daemon", ["-m", "vemgr.daemon.main", "--config", config_path])
            _await(api, socket.SOCK_STREAM, deadline, f"{config.run_dir}/daemon.log", pid)


def _spawn(config: HostConfig, name: str, arguments: list[str]) -> int:
    """A process of its own: session, directory, environment and descriptors have nothing of the caller's."""
    log = os.open(f"{config.run_dir}/{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    env = {key: value for key, value in os.environ.items() if key in _KEPT}
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            os.chdir("/")
            os.umask(0o022)
            for target, fd in ((0, null), (1, log), (2, log)):
                os.dup2(fd, target)
            os.closerange(3, 1024)
            os.execve(sys.executable, [sys.executable, *arguments], env)
        finally:
            os._exit(127)
    os.close(log)
    os.close(null)
    return pid


def _await(path: str, kind: socket.SocketKind, deadline: float, log: str, pid: int = 0) -> None:
    while not _answers(path, kind):
        ended = pid and os.waitpid(pid, os.WNOHANG)[0]
        if ended or time.monotonic() > deadline:
            raise Unreachable(f"the service behind {path} does not start: {_last_line(log)}", remedy=f"see {log}",
                              path=path)
        time.sleep(0.01)


def _last_line(log: str) -> str:
    try:
        with open(log, encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return "no log"
    return lines[-1] if lines else "no word in its log"
