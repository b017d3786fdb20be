# SPDX-License-Identifier: GPL-2.0-or-later
"""Ending a VE in bounded time: signal, deadline, cgroup.kill, cgroup seen empty."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator

from vemgr.core.errors import CannotStop, SystemFailure
from vemgr.kernel.cgroups import CgroupTree
from vemgr.kernel.process import handles_signal

_LOOK = 0.02  # seconds between looks at the init
# An init that has not installed a handler so long after the request never will: sleep(1), a shell script. The kernel
# drops the signal for it, so waiting out the whole time would help nobody.
_NO_HANDLER = 5.0
_EMPTY = 10.0  # seconds for the kernel to empty a killed cgroup; longer means a task in uninterruptible sleep


async def ask_to_end(pid: int, pidfd: int, signum: int, timeout: float, ended: asyncio.Event,
                     spent: float = 0.0) -> str:
    """Ask init to end; returns "clean", or why it has not ended: no handler, or `timeout` seconds passed, of which
    `spent` had passed before.

    The kernel drops the signal while init has no handler for it, so it is sent when there is one, and only once:
    many programs take a second one as an order to give up their orderly end.
    """
    began = time.monotonic()
    deadline = began + timeout - spent
    sent = False
    while not ended.is_set():
        now = time.monotonic()
        if now >= deadline:
            return f"{timeout:g} s passed"
        if not sent and handles_signal(pid, signum):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signum)
            sent = True
        if not sent and now - began >= _NO_HANDLER:
            return f"init does not handle {_name(signum)}"
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), min(_LOOK, deadline - now) or _LOOK)
    return "clean"


def _name(signum: int) -> str:
    if signum == signal.SIGRTMIN + 3:
        return "SIGRTMIN+3"
    return signal.Signals(signum).name


def kill(tree: CgroupTree, ve: str) -> None:
    """Kill everything in a VE's cgroup. Raises `SystemFailure`; then nothing is killed."""
    with _asking(f"stop VE {ve}"):
        tree.kill(ve)


async def kill_all(tree: CgroupTree, ve: str) -> None:
    """Kill everything in a VE's cgroup and wait until it is empty. Raises `CannotStop`, and `SystemFailure` when the
    kernel cannot be asked; then nothing is killed."""
    kill(tree, ve)
    deadline = time.monotonic() + _EMPTY
    while _populated(tree, ve):
        if time.monotonic() >= deadline:
            raise CannotStop(f"VE {ve} cannot be stopped: processes do not die",
                             remedy="look for state D in ps; a hung disk or network file system holds them", ve=ve)
        await asyncio.sleep(0.005)


def _populated(tree: CgroupTree, ve: str) -> bool:
    """Unless we know better: they are killed already, so for want of a descriptor we ask again and do not give up."""
    try:
        return tree.populated(ve)
    except OSError:
        return True


async def freeze(tree: CgroupTree, ve: str, frozen: bool, timeout: float = 10.0) -> bool:
    """Freeze or thaw; whether it came to be within `timeout` seconds. Raises `SystemFailure`, with nothing changed."""
    what = f"{'freeze' if frozen else 'thaw'} VE {ve}"
    with _asking(what):
        tree[ve].freeze = frozen
    deadline = time.monotonic() + timeout
    try:
        while _frozen(tree, ve, what) != frozen:
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(0.005)
    except SystemFailure:
        with contextlib.suppress(OSError):
            tree[ve].freeze = not frozen
        raise
    return True


def _frozen(tree: CgroupTree, ve: str, what: str) -> bool:
    with _asking(what):
        return bool(tree[ve].events.get("frozen"))


@contextlib.contextmanager
def _asking(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        path = os.fsdecode(error.filename or "")
        raise SystemFailure(f"cannot {what}: {error.strerror}", path=path, errno=error.errno) from error
