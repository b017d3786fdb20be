# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes that work on files for the daemon (`vemgr.files`).

Apart from the daemon because they enter user and mount namespaces, which a process with threads cannot; because they
may take long, and are killed where a thread could not be; and because what a VE has shaped is then read with the rights
of the VE. They hold a lock while they live: the next daemon waits for it, so that it finds what they have taken back.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import subprocess
import sys
from typing import Any

from vemgr.core import errors
from vemgr.core.errors import SystemFailure, VemgrError
from vemgr.kernel.programs import ended
from vemgr.runtime.store import storage_errors

log = logging.getLogger(__name__)

_LAST_WISH = 10.0  # seconds to take back what was begun
_EARLIER, _NAP = 20.0, 0.02  # seconds
_ANSWER = 60_000  # bytes; less than a pipe holds
_KEPT = ("PATH", "PYTHONPATH", "LANG")  # of the environment: it becomes a process of the VE's root
_CLASSES = {kind.__name__: kind for kind in errors.all_errors()}


class FileJobs:
    def __init__(self, run_dir: str) -> None:
        self.stage = f"{run_dir}/stage"
        self._lock_path = f"{run_dir}/files.lock"
        self._running: dict[str, set[asyncio.Task[Any]]] = {}

    async def wait_for_earlier(self) -> None:
        """Until those of an earlier daemon are gone, who have been told to end; but not for ever: one may hang in a
        disk that does not answer. Raises `SystemFailure`."""
        with storage_errors(f"lock {self._lock_path}"):
            fd = self._open_lock()
            try:
                async with asyncio.timeout(_EARLIER):
                    while not _locked(fd):  # noqa: ASYNC110  (no event tells of a lock)
                        await asyncio.sleep(_NAP)
            except TimeoutError:
                log.error("a process of an earlier daemon still works on the files of a VE: see who holds %s",
                          self._lock_path)
            finally:
                os.close(fd)

    def _open_lock(self) -> int:
        return os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    async def run(self, ve: str, job: dict[str, Any], fds: tuple[int, ...]) -> dict[str, Any]:
        """Have a job done with the files of a VE; returns what is said of it. `fds`: the descriptors that it names.
        Raises what the job has raised."""
        task = asyncio.get_running_loop().create_task(self._run(job, fds))
        self._running.setdefault(ve, set()).add(task)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():  # by `end`
                raise SystemFailure(f"cannot {job['what']}: the VE has ended meanwhile") from None
            task.cancel()
            await asyncio.wait([task])
            raise
        finally:
            self._running[ve].discard(task)
            if not self._running[ve]:
                del self._running[ve]

    async def end(self, ve: str) -> None:
        """End what is being done with the files of a VE, which stops: its next life must not meet us."""
        tasks = self._running.get(ve)
        if tasks:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _run(self, job: dict[str, Any], fds: tuple[int, ...]) -> dict[str, Any]:
        with storage_errors(job["what"]), contextlib.ExitStack() as stack:
            lock = self._open_lock()
            stack.callback(os.close, lock)
            text = json.dumps({**job, "daemon": os.getpid(), "lock": lock})
            # Not left to subprocess, which loses the one when it cannot make the other.
            null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, null)
            answer, told = os.pipe2(os.O_CLOEXEC)
            stack.callback(os.close, answer)
            stack.callback(os.close, told)
            os.set_blocking(answer, False)  # what is there when it has ended is all
            process = subprocess.Popen(  # noqa: ASYNC220  (returns with the exec; asyncio's own would start a thread)
                [sys.executable, "-P", "-m", "vemgr.files.main", text], stdin=null, stdout=told,
                pass_fds=(*fds, lock), cwd="/",
                env={key: value for key, value in os.environ.items() if key in _KEPT})
            stack.enter_context(process)
            try:
                await ended(process.pid)
            except BaseException:
                process.terminate()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LAST_WISH):
                        await ended(process.pid)
                process.kill()
                process.wait()
                raise
            code = process.wait()
            return _outcome(job, code, os.read(answer, _ANSWER) if code == 0 else b"")


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _outcome(job: dict[str, Any], code: int, said: bytes) -> dict[str, Any]:
    try:
        outcome = json.loads(said)
    except ValueError:
        raise SystemFailure(f"cannot {job['what']}: the process for it ended without a word, with code {code}",
                            remedy="the daemon's log tells more") from None
    if "failed" not in outcome:
        return dict(outcome["done"])
    kind = _CLASSES.get(outcome["failed"], SystemFailure)
    error = kind.__new__(kind)
    VemgrError.__init__(error, outcome["message"], remedy=outcome["remedy"], **outcome["facts"])
    raise error
