# SPDX-License-Identifier: GPL-2.0-or-later
"""Failures in the programs that the spawner's children execute: a VE's set-up process and its init.

They are system calls without a C library, so strace(1) makes them fail. It counts each call by its name and in each
process apart: the N-th `openat` of the set-up process and of init is one point, where the set-up process comes first.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.faults.inject import Outcome
from tests.faults.stage import Stage
from tests.faults.verbs import Scenario
from tests.kernel.conftest import eventually
from vemgr.api.client import RemoteError

#: What may fail, and how. Not what the spawner itself does (sendmsg, recvmsg, wait4), and not what cannot.
CALLS = {
    "openat": "ENOSPC", "openat2": "EMFILE", "mkdirat": "ENOSPC", "mknodat": "ENOSPC", "symlinkat": "ENOSPC",
    "fchownat": "EIO", "fchown": "EIO", "fchmodat": "EIO", "fchmod": "EIO", "renameat": "ENOSPC", "write": "ENOSPC",
    "open_tree": "EMFILE", "move_mount": "ENOMEM", "fsopen": "EMFILE", "fsconfig": "ENOMEM", "fsmount": "EMFILE",
    "mount_setattr": "ENOMEM", "umount2": "EBUSY", "pivot_root": "EBUSY", "setns": "ENOMEM", "unshare": "ENOMEM",
    "sethostname": "ENOMEM", "pipe2": "EMFILE", "socket": "EMFILE", "ioctl": "EIO", "fchdir": "EIO", "chdir": "EIO",
    "setgroups": "ENOMEM", "setresuid": "EAGAIN", "setresgid": "EAGAIN", "setsid": "EPERM", "capset": "EPERM",
    "seccomp": "ENOMEM", "prctl": "ENOMEM", "dup3": "EBUSY", "close_range": "ENOMEM", "execve": "ENOMEM",
}
#: Failures that a start gets over: looking for what this kernel or the VE does not have, and the name of a process.
MAY_PASS = re.compile(r"prctl|O_RDONLY\|O_NONBLOCK")


def spawner(stage: Stage) -> int:
    """Its pid; it is started with the first VE."""
    keeper = stage.services["keeper"].pid
    for pid in Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split():
        if "vemgr-spawner" in Path(f"/proc/{pid}/cmdline").read_text():
            return int(pid)
    raise AssertionError("the keeper has no spawner")


@contextlib.contextmanager
def traced(stage: Stage, *expressions: str) -> Iterator[Path]:
    """The spawner and its children under strace; yields the file that it writes."""
    pid, log = spawner(stage), stage.base / "strace"
    tracer = subprocess.Popen(["strace", "-f", "-qq", "-o", str(log), "-p", str(pid),
                               *(part for each in expressions for part in ("-e", each))], stderr=subprocess.DEVNULL)
    try:
        status = Path(f"/proc/{pid}/status")
        eventually(lambda: f"TracerPid:\t{tracer.pid}" in status.read_text(), "strace does not attach")
        yield log
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait(20)


def count(stage: Stage, scenario: Scenario) -> Counter[str]:
    """How often each call is made, by the process that makes it most."""
    with traced(stage, f"trace={','.join(CALLS)}") as log:
        scenario.act(stage)
        text = log.read_text()
    scenario.undo(stage)
    made: dict[str, Counter[str]] = {}
    for line in text.splitlines():
        found = re.match(r"(\d+) +(\w+)\(", line)
        if found:
            made.setdefault(found[1], Counter())[found[2]] += 1
    most: Counter[str] = Counter()
    for each in made.values():
        most |= each
    return most


def points(stage: Stage, scenario: Scenario) -> list[tuple[str, int]]:
    return [(call, number) for call, most in sorted(count(stage, scenario).items()) for number in range(1, most + 1)]


def inject(stage: Stage, scenario: Scenario, call: str, number: int, before: dict[str, Any], outcome: Outcome) -> None:
    """As `tests.faults.inject.inject`, for one point."""
    name = CALLS[call]
    error = None
    # What fails while a file is written is tried again after that file is gone, to learn why.
    when = f"{number}+" if call in ("write", "fchown") else str(number)
    with traced(stage, f"trace={call}", f"inject={call}:error={name}:when={when}") as log:
        try:
            scenario.act(stage)
        except RemoteError as failure:
            error = failure
        hit = [line for line in log.read_text().splitlines() if "(INJECTED)" in line]
    where = f"{scenario.name}, {call} {number}, {name}: {hit[:1]}"
    outcome.points += bool(hit)
    if error is None:
        if hit and not MAY_PASS.search(hit[0]):
            outcome.wrong.append(f"{where}: no failure")
        outcome.tolerated[call] += bool(hit)
        scenario.undo(stage)
    else:
        outcome.failed[f"{call} -> {error}"] += 1
        if os.strerror(getattr(errno, name)) not in str(error) or "operation" not in error.facts:
            outcome.wrong.append(f"{where}: {error} {error.facts}")
    stage.await_picture(before, why=f"{where} ({error})")
