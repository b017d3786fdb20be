# SPDX-License-Identifier: GPL-2.0-or-later
"""The administrator's own programs at the turns of a VE's life.

For each stage there is a directory of them for all VEs, and one in the directory of a VE. They run one after another,
as root of the host, and each has bounded time, so that a hook can hold up nobody for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import stat
import subprocess
import time
from enum import StrEnum

from vemgr.core.config import Definition
from vemgr.core.errors import HookFailed
from vemgr.kernel.programs import ended, printed, streams
from vemgr.runtime.store import Store

log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9_-]+(\.sh)?")  # run-parts(8), and what scripts are called: not what an editor leaves
_LAST_WORDS = 500  # bytes of a hook's output that its failure is told with
_REAP = 5.0  # seconds for a killed hook to go; one in an uninterruptible wait may take for ever
_NAP = 0.02  # seconds
_WRITABLE = stat.S_IWGRP | stat.S_IWOTH
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Stage(StrEnum):
    PRE_START = "pre-start"
    POST_START = "post-start"
    PRE_STOP = "pre-stop"
    POST_STOP = "post-stop"


class Hooks:
    """`directory`: of the hooks for all VEs. `seconds`: what each has."""

    def __init__(self, directory: str, seconds: int, store: Store) -> None:
        self._directory = directory
        self._seconds = seconds
        self._store = store

    async def run(self, stage: Stage, definition: Definition, **facts: str) -> None:
        """Run all hooks of a stage, those for all VEs first. Raises `HookFailed` at the first that fails."""
        for path in self._found(stage, definition.name):
            await self._run(path, _environment(stage, definition, facts))

    async def try_(self, stage: Stage, definition: Definition, **facts: str) -> None:
        """The same where nothing may be held up: failures are logged, and the others still run."""
        for path in self._found(stage, definition.name):
            try:
                await self._run(path, _environment(stage, definition, facts))
            except HookFailed as error:
                log.warning("%s; goes on all the same", error.message)

    def _found(self, stage: Stage, name: str) -> list[str]:
        found: list[str] = []
        for directory in (f"{self._directory}/{stage}", f"{self._store.path(name)}/hooks/{stage}"):
            with contextlib.suppress(OSError):  # as nearly always: there is none
                found += [f"{directory}/{entry}" for entry in sorted(os.listdir(directory)) if _NAME.fullmatch(entry)]
        return [path for path in found if os.access(path, os.X_OK) and not os.path.isdir(path)]

    async def _run(self, path: str, environment: dict[str, str]) -> None:
        what = f"hook {path} of VE {environment['VEMGR_VE']}"
        try:
            status = os.stat(path)
            if status.st_uid != 0 or status.st_mode & _WRITABLE:
                raise HookFailed(f"{what} is not run: others than root may write it", path=path,
                                 remedy=f"chown root {path}; chmod go-w {path}")
            with streams() as (null, output):
                code = await self._ended(what, path, subprocess.Popen(  # noqa: ASYNC220  (returns with the exec)
                    [path], env=environment, cwd="/", stdin=null, stdout=output, stderr=output,
                    start_new_session=True))
                said = printed(output, _LAST_WORDS)
        except OSError as error:
            raise HookFailed(f"{what} cannot be run: {error.strerror}", path=path, errno=error.errno) from error
        if code:
            how = f"ended with {code}" if code > 0 else f"was killed by signal {-code}"
            raise HookFailed(f"{what} {how}" + (f": {said}" if said else ""), path=path, code=code)

    async def _ended(self, what: str, path: str, process: subprocess.Popen[bytes]) -> int:
        try:
            async with asyncio.timeout(self._seconds):
                await ended(process.pid)
            return process.wait()
        except TimeoutError:
            raise HookFailed(f"{what} has not ended within {self._seconds} s, and was killed",
                             remedy="raise hook-timeout in vemgr.toml, or have it do its work in the background",
                             path=path) from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                deadline = time.monotonic() + _REAP
                while process.poll() is None and time.monotonic() < deadline:  # noqa: ASYNC110  (needs no descriptor)
                    await asyncio.sleep(_NAP)


def _environment(stage: Stage, definition: Definition, facts: dict[str, str]) -> dict[str, str]:
    return {"PATH": _PATH, "VEMGR_HOOK": str(stage), "VEMGR_VE": definition.name,
            "VEMGR_TEMPLATE": definition.template, "VEMGR_ADDRESS": definition.address,
            "VEMGR_ID_BASE": str(definition.id_base), **{f"VEMGR_{key.upper()}": text for key, text in facts.items()}}
