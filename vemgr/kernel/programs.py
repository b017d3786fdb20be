# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs of the host that are run for their effect, by a daemon that may be short of descriptors and threads.

Not by way of subprocess's own DEVNULL and PIPE: it loses the one when it cannot make the other. And not by asyncio's
processes, each of which takes a thread to wait for it, and is nobody's when there is none to be had.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence


@contextlib.contextmanager
def streams() -> Iterator[tuple[int, int]]:
    """Nothing to read, and a file that takes what is printed: at a pipe, whatever a program has started and left behind
    would keep us waiting. Raises `OSError`."""
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        output = os.memfd_create("vemgr-output", os.MFD_CLOEXEC)
        try:
            yield null, output
        finally:
            os.close(output)
    finally:
        os.close(null)


def printed(output: int, most: int) -> str:
    """The end of it, on one line; at most so many bytes."""
    size = os.fstat(output).st_size
    return " ".join(os.pread(output, most, max(0, size - most)).decode(errors="replace").split())


def run(command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None,
        most: int = 300) -> tuple[int, str]:
    """Exit code, negative for a signal, and the end of what was printed. Raises `OSError` where it cannot be run, or
    has not ended in time and was killed."""
    with streams() as (null, output):
        try:
            done = subprocess.run(command, stdin=null, stdout=output, stderr=output, timeout=seconds, check=False,
                                  env=None if environment is None else dict(environment))
        except subprocess.TimeoutExpired as error:
            raise OSError(errno.ETIMEDOUT, f"{command[0]} has not ended within {seconds:g} s", command[-1]) from error
        return done.returncode, printed(output, most)


async def ended(pid: int) -> None:
    """Wait until a child of ours has ended; it is not reaped. Raises `OSError`."""
    pidfd = os.pidfd_open(pid)
    loop, event = asyncio.get_running_loop(), asyncio.Event()
    try:
        loop.add_reader(pidfd, event.set)
        await event.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
