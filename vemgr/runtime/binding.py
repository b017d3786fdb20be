# SPDX-License-Identifier: GPL-2.0-or-later
"""What of the host may be mounted in a VE, and how it is then put into the plan."""

from __future__ import annotations

import os
import stat

from vemgr.core.binds import BindMount
from vemgr.core.errors import BadValue
from vemgr.core.plan import Bind
from vemgr.runtime.volumes import Volumes

_KINDS = {stat.S_IFDIR: True, stat.S_IFREG: False, stat.S_IFSOCK: False}


def bind_operations(binds: tuple[BindMount, ...], own: tuple[str, ...], volumes: Volumes) -> tuple[Bind, ...]:
    """Raises `BadValue` for a source that is not there or must not be seen in a VE, and `VolumeNotFound`. `own`:
    vemgr's own directories.

    It asks the file system of the source, which may hang.
    """
    return tuple(Bind(volumes.path(bind.volume), bind.target.lstrip("/"), True, bind.read_only) if bind.volume
                 else _operation(bind, own) for bind in binds)


def _operation(bind: BindMount, own: tuple[str, ...]) -> Bind:
    source = bind.source
    try:
        # The set-up follows no symlink, so that nobody who may write to a directory on the way can put one there.
        real = os.path.realpath(source, strict=True)
        found = os.lstat(source)
    except OSError as error:
        raise _refused(source, (error.strerror or str(error)).lower()) from None
    if real != source:
        raise _refused(source, "a symlink is in it", f"write {real}")
    kind = _KINDS.get(stat.S_IFMT(found.st_mode))
    if kind is None:
        raise _refused(source, "neither a directory nor a file nor a socket")
    for directory in own:
        if _holds(directory, source) or _holds(source, directory):
            raise _refused(source, f"it would show {directory}, which is vemgr's own", "mount a directory beside it")
    return Bind(source, bind.target.lstrip("/"), kind, bind.read_only)


def _holds(directory: str, path: str) -> bool:
    """Whether `directory` is `path` or a parent of it, by whatever mount it is reached: told by inode."""
    wanted = os.stat(directory)
    path = os.path.realpath(path)
    while not os.path.samestat(os.stat(path), wanted):
        if path == "/":
            return False
        path = os.path.dirname(path)
    return True


def _refused(source: str, why: str, remedy: str = "") -> BadValue:
    return BadValue("mount", source, why, remedy=remedy)
