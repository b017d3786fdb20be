# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands that run in VEs beside their init: what is asked for, and the one by which some inits are asked to end."""

from __future__ import annotations

import asyncio
import os
import struct
from typing import Any

from vemgr.core.errors import SystemFailure
from vemgr.core.privileges import effective
from vemgr.runtime.instances import Instance, Parts
from vemgr.runtime.launcher import Launcher

_POWEROFF = {"kind": "exec", "argv": ["poweroff"], "env": {}, "cwd": "/", "user": "root", "tty": False}
_STATUS = struct.Struct("=i")


async def run(parts: Parts, launcher: Launcher, instance: Instance, command: dict[str, Any], status_fd: int,
              stdio: list[int]) -> int:
    """Returns the command's pid on the host; its status is told by `status_fd`. Raises as `Launcher.exec`, and
    `SystemFailure`."""
    settings = instance.definition.settings
    try:
        cgroup_fd = parts.tree.open_for_exec(instance.name)
    except OSError as error:
        raise SystemFailure(f"VE {instance.name}: its cgroup cannot be entered: {error.strerror}") from error
    try:
        bounds = {"capabilities": effective(settings.capability)} if settings.capability else {}
        return await launcher.exec(instance.name, {**command, **bounds}, cgroup_fd,
                                   parts.filters.fd(settings.opened), status_fd, stdio)
    finally:
        os.close(cgroup_fd)


async def power_off(parts: Parts, launcher: Launcher, instance: Instance) -> bool:
    """Run the VE's own poweroff(8); whether it says that the end has begun. Raises as `run`; `OSError` without
    descriptors."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        try:
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            try:
                await run(parts, launcher, instance, _POWEROFF, writer, [null, null, null])
            finally:
                os.close(null)
        finally:
            os.close(writer)
        await _readable(reader)
        status = os.read(reader, _STATUS.size)
    finally:
        os.close(reader)
    return len(status) == _STATUS.size and _STATUS.unpack(status)[0] == 0


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(fd, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(fd)
