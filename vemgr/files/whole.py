# SPDX-License-Identifier: GPL-2.0-or-later
"""What is done with all files of a stopped VE: copied for another one, or made a template together with those below."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

from vemgr.files import opening
from vemgr.files.carrying import hang, opened
from vemgr.files.copying import Copier
from vemgr.files.packing import Packer
from vemgr.files.sides import other_side
from vemgr.kernel import mounts
from vemgr.kernel.syncfs import syncfs
from vemgr.templates.store import Templates

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def clone(job: dict[str, Any]) -> dict[str, Any]:
    """Copy the writes of a VE, tree by tree, into directories that are there."""
    source_ids, target_ids = opening.id_map(job["id-base"], 0), opening.id_map(job["target-base"], 0)
    for number in range(job["count"]):
        source = opened(f"{job['data']}/{number}/upper", source_ids)
        target = opened(f"{job['target']}/{number}/upper", target_ids)
        Copier().tree(source, target)
        syncfs(target)
        os.close(source)
        os.close(target)
    return {}


def template(job: dict[str, Any]) -> dict[str, Any]:
    """Make a template of what a VE sees: its own writes over those of its template. By way of an archive, so that there
    is one way into the store."""
    opening.private_mounts()
    ids = opening.id_map(job["id-base"], 0)
    opening.mount_stage(job["stage"])
    data = job["data"]
    if job["disk"]:
        hang(data, "disk")
        data = "disk"
    trees = {tree["mountpoint"]: _merged(number, tree["lowers"], data, ids)
             for number, tree in enumerate(job["trees"])}
    os.chdir("/")
    with other_side(lambda stream: _pack(trees, stream), reads=False) as stream:
        made = Templates(Path(job["templates"])).import_archive(job["name"], stream, description=job["description"])
    return {"size": made.size}


def _merged(number: int, lowers: list[str], data: str, ids: int) -> int:
    """A tree with the VE's writes, read-only: nothing is noted in them. It shows the VE's own ids, as its template has
    them."""
    upper = f"{data}/{number}/upper"
    layers = [opening.layer(upper, f"u{number}", ids)] if os.path.isdir(upper) else []
    layers += [opening.layer(source, f"l{number}.{position}") for position, source in enumerate(lowers)]
    if len(layers) == 1:
        return os.open(layers[0], _DIRECTORY)
    mount = mounts.new_filesystem("overlay", (("lowerdir", ":".join(layers)), ("redirect_dir", "follow")),
                                  mounts.MOUNT_ATTR["nodev"] | mounts.MOUNT_ATTR["ro"], source="vemgr")
    try:
        return os.open(".", _DIRECTORY, dir_fd=mount)
    finally:
        os.close(mount)


def _pack(trees: dict[str, int], stream: BinaryIO) -> None:
    # Mounted they are not, but a directory for each is in the tree above: what is in it is taken from there.
    packer = Packer(stream, keep_fifos=True, mounts={path: fd for path, fd in trees.items() if path != "/"})
    packer.tree(trees["/"])
    packer.close()
