# SPDX-License-Identifier: GPL-2.0-or-later
"""Load in the cgroup of a VE: processes of ours that go into it, and are killed in the end whatever happens.

They are in none of the VE's namespaces, so that it takes no program of the VE's, and the VE cannot see or stop them.
The kernel counts them as the VE's own. When it has to kill for want of memory, it takes them first.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator

import prctl

_DYING = 10.0  # seconds
_DIRECT = 1 << 18  # bytes of one transfer
_STEP = 1 << 20


@contextlib.contextmanager
def loaded(group: str, *works: Callable[[], None]) -> Iterator[list[int]]:
    """While the body runs, a process for each of `works` does it in `group`. Their pids. Raises `OSError`.

    They are in a cgroup of their own below it, so that none of what they have forked can be left.
    """
    leaf = f"{group}/.verify-{secrets.token_hex(4)}"
    os.mkdir(leaf, 0o700)
    pids: list[int] = []
    try:
        for work in works:
            pids.append(_begin(f"{leaf}/cgroup.procs", work))
        yield pids
    finally:
        _end(leaf, pids)


def _end(leaf: str, pids: list[int]) -> None:
    with contextlib.suppress(OSError):  # the VE has ended
        _write(f"{leaf}/cgroup.kill", "1")
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # one that had not entered yet
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
    wait_until(lambda: _is_removed(leaf), _DYING)


def _is_removed(leaf: str) -> bool:
    """EBUSY while a process in it has not quite ended."""
    try:
        os.rmdir(leaf)
    except OSError as error:
        return error.errno != errno.EBUSY
    return True


def _begin(procs: str, work: Callable[[], None]) -> int:
    ready, done = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            prctl.set_pdeathsig(signal.SIGKILL)
            os.close(ready)
            _write("/proc/self/oom_score_adj", "1000")
            _write(procs, "0")
            os.write(done, b"1")
            work()
        finally:
            os._exit(0)
    os.close(done)
    try:
        if not os.read(ready, 1):
            raise OSError(1, "the load cannot enter the VE's cgroup", procs)
    finally:
        os.close(ready)
    return pid


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def burn() -> None:
    while True:
        pass


def grow(most: int) -> Callable[[], None]:
    """Take and touch memory until there are `most` bytes of it, and keep it."""
    def work() -> None:
        held = []
        for _ in range(most // _STEP):
            piece = mmap.mmap(-1, _STEP)
            for at in range(0, _STEP, mmap.PAGESIZE):
                piece[at] = 1
            held.append(piece)
        signal.pause()
    return work


def multiply(most: int) -> Callable[[], None]:
    """Fork until there are `most` children, or no more; they end with it."""
    def work() -> None:
        for _ in range(most):
            try:
                child = os.fork()
            except OSError:
                break
            if child == 0:
                prctl.set_pdeathsig(signal.SIGKILL)
                signal.pause()
        signal.pause()
    return work


def transfer(path: str, *, write: bool, size: int, block: int = _DIRECT) -> Callable[[], None]:
    """Read or write the file without the page cache, `block` bytes at a time, over and over."""
    def work() -> None:
        fd = os.open(path, (os.O_WRONLY if write else os.O_RDONLY) | os.O_DIRECT | os.O_CLOEXEC)
        with mmap.mmap(-1, block) as buffer:  # aligned to a page, as O_DIRECT wants it
            at = 0
            while True:
                if write:
                    os.pwritev(fd, [buffer], at)
                else:
                    os.preadv(fd, [buffer], at)
                at = (at + block) % (size - size % block)
    return work


def fill(path: str, size: int) -> None:
    """A file of `size` bytes that are there on the disk."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for _ in range(0, size, _STEP):
            os.write(fd, b"\1" * _STEP)
        os.fsync(fd)
    finally:
        os.close(fd)


def wait_until(condition: Callable[[], bool], seconds: float, interval: float = 0.01) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval)
    return True
