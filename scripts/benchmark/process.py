# SPDX-License-Identifier: GPL-2.0-or-later
"""Running a program and timing it from before its fork to its end, with as little of our own in between as may be."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmark.measure import Failed

_PATIENCE = 120.0  # seconds; in a machine without KVM a podman takes several


def timed(argv: Sequence[str], log: str, env: Mapping[str, str] | None = None) -> float:
    """Seconds that the command took. Its output goes to the file `log`. Raises `Failed` unless it exits with 0.

    posix_spawn instead of subprocess: what Python does before the fork would be counted as the contender's.
    """
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    began = time.perf_counter()
    try:
        pid = os.posix_spawnp(argv[0], list(argv), dict(env or os.environ), file_actions=actions)
    except OSError as error:
        raise Failed(f"{argv[0]}: {error.strerror}") from error
    _await(pid, argv)
    _, status = os.waitpid(pid, 0)
    took = time.perf_counter() - began
    if code := os.waitstatus_to_exitcode(status):
        raise Failed(f"{' '.join(argv[:4])} ... ended with {code}: {_last_line(log)}")
    return took


def _await(pid: int, argv: Sequence[str]) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        if not select.select([pidfd], [], [], _PATIENCE)[0]:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise Failed(f"{argv[0]} hangs")
    finally:
        os.close(pidfd)


def run(argv: Sequence[str], *, env: Mapping[str, str] | None = None, directory: Path | None = None) -> str:
    """What is not timed. Returns standard output; raises `Failed`."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PATIENCE,
                              check=False, env=dict(env) if env else None, cwd=directory)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(f"{argv[0]}: {error}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-300:]
        raise Failed(f"{' '.join(argv[:6])} ... ended with {done.returncode}: {said}")
    return done.stdout


def _last_line(log: str) -> str:
    try:
        with open(log, encoding="utf-8", errors="replace") as file:
            lines = file.read().strip().splitlines()
    except OSError:
        return ""
    return lines[-1][-300:] if lines else ""
