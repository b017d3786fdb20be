# SPDX-License-Identifier: GPL-2.0-or-later
"""export, import, and the clone of a VE with a disk: a stopped VE's own writes, with all that overlayfs has noted.

The host's root reads and writes them, by descriptor and through mounts that show the VE's own ids: so a file tells
nothing of the ids of the host that it comes from, and the kernel translates owners, ACLs and file capabilities to those
of the host that it goes to.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from vemgr.core.errors import ExportUnusable, TemplateUnusable
from vemgr.files import opening
from vemgr.files.bundle import FORMAT, Manifest, Reader, Writer, encode, framed
from vemgr.files.copying import Copier
from vemgr.files.layering import LAYER_LIMITS, LayerPacker
from vemgr.files.packing import Packer
from vemgr.kernel import mounts
from vemgr.kernel.syncfs import syncfs
from vemgr.templates.archive import unpack
from vemgr.templates.archive_entry import layer_metadata
from vemgr.templates.digest import template_digest
from vemgr.templates.store import Templates

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def export(job: dict[str, Any]) -> dict[str, Any]:
    """Write a VE to `stream`. `disk`: its data are a mount that hangs nowhere."""
    about, inside = job["digest"], job["template-inside"]
    manifest = Manifest(format=FORMAT, template_digest=template_digest(**about), template_inside=inside,
                        trees=job["count"], **job["manifest"])
    writer = Writer(job["stream"])
    writer.write(encode(manifest))
    if inside:
        with writer.part() as stream:
            template = Packer(stream, keep_fifos=True)
            top = os.open(about["lowers"][0], _DIRECTORY)
            template.tree(top)
            template.close()
            os.close(top)
    data, ids = _data(job["data"], job["disk"], job["stage"]), opening.id_map(job["id-base"], 0)
    skipped: list[str] = []
    for number in range(job["count"]):
        with writer.part() as stream:
            packer = LayerPacker(stream)
            top = opened(f"{data}/{number}/upper", ids)
            packer.tree(top)
            packer.close()
            os.close(top)
            skipped += packer.skipped.names
    writer.end()
    return {"skipped": skipped}


def manifest(job: dict[str, Any]) -> dict[str, Any]:
    """The manifest of what comes from `stream`, of which nothing else is read."""
    return {"text": Reader(job["stream"]).manifest()}


def digest(job: dict[str, Any]) -> dict[str, Any]:
    return {"digest": template_digest(**job["digest"])}


def restore(job: dict[str, Any]) -> dict[str, Any]:
    """Read what follows the manifest into directories that are there. `template`: the name to store the template
    under that is in the file, "" to pass it over."""
    text = job["manifest"]
    found = msgspec.json.decode(text, type=Manifest)
    reader = Reader(job["stream"], framed(text.encode()))
    try:
        if found.template_inside:
            with reader.part("the template") as stream:
                if job["template"]:
                    Templates(Path(job["templates"])).import_archive(
                        job["template"], stream, description=f"came with VE {found.name}")
        data, ids = _data(job["data"], job["disk"], job["stage"]), opening.id_map(job["id-base"], 0)
        for number in range(found.trees):
            top = opened(f"{data}/{number}/upper", ids)
            with reader.part("the VE's files") as stream:
                unpack(stream, top, limits=LAYER_LIMITS, describe=layer_metadata, whiteouts=True)
            os.close(top)
        reader.end()
    except TemplateUnusable as error:
        raise ExportUnusable(error.message, remedy="fetch it again, or export the VE again", **error.facts) from error
    return {}


def clone_disk(job: dict[str, Any]) -> dict[str, Any]:
    """Copy the writes of a VE from one disk to another, both mounts that hang nowhere."""
    opening.private_mounts()
    opening.mount_stage(job["stage"])
    source_ids, target_ids = opening.id_map(job["id-base"], 0), opening.id_map(job["target-base"], 0)
    for name in ("data", "target"):
        hang(job[name], name)
    for number in range(job["count"]):
        source, target = opened(f"data/{number}/upper", source_ids), opened(f"target/{number}/upper", target_ids)
        Copier().tree(source, target)
        syncfs(target)
        os.close(source)
        os.close(target)
    return {}


def opened(path: str, ids: int) -> int:
    """A directory that shows a VE's own ids."""
    mount = opening.mapped_clone(path, ids)
    try:
        return os.open(".", _DIRECTORY, dir_fd=mount)
    finally:
        os.close(mount)


def _data(path: str, disk: bool, stage: str) -> str:
    if not disk:
        return path
    opening.private_mounts()
    opening.mount_stage(stage)
    hang(path, "disk")
    return "disk"


def hang(path: str, name: str) -> None:
    """Put a mount that hangs nowhere, by a path of the daemon's, into the stage: only what hangs can be cloned."""
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.mkdir(name, 0o700)
    target = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    mounts.attach(fd, target, name)
    os.close(target)
    os.close(fd)
