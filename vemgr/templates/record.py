# SPDX-License-Identifier: GPL-2.0-or-later
"""The file `template.toml`: what is known of a template, as an administrator can read it."""

from __future__ import annotations

import functools
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import tomlkit

from vemgr.core.errors import SHORTAGES, SystemFailure, TemplateNotFound, TemplateUnusable
from vemgr.core.layers import InitKind, Template, TemplateKind, Tree
from vemgr.kernel.durable import replace_file
from vemgr.kernel.small_files import content_of

FILE = "template.toml"
_SIZE_BOUND = 64 * 1024

NotNegative = Annotated[int, msgspec.Meta(ge=0)]
# Where a host tree may be linked in the VE. Narrow, since each becomes a mount of a path of the host.
_LINK = re.compile(r"(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+")


class Record(msgspec.Struct, kw_only=True, frozen=True):
    """The contents of the file, see `Template` for the fields. `links`: directories of the host (kind `host`)."""

    format: Literal[1] = 1
    kind: TemplateKind
    description: str = ""
    created: str = ""
    distribution: str = ""
    version: str = ""
    architecture: str = ""
    size: NotNegative = 0
    files: NotNegative = 0
    init: str = ""
    init_kind: InitKind = "none"
    links: list[str] = msgspec.field(default_factory=list)


def mask_name(link: str) -> str:
    """The directory in the template `host` that lies over the host's `link`: "usr-mask" for "/usr"."""
    return link.rsplit("/", 1)[-1] + "-mask"


def write_record(directory: Path, record: Record) -> None:
    """Writes the file so that it is on disk when this returns. Raises OSError."""
    replace_file(str(directory / FILE), tomlkit.dumps(msgspec.to_builtins(record)))


def read_template(directory: Path, host_root: str) -> Template:
    """The template in `directory`, named like it. Raises TemplateNotFound if parts are missing, TemplateUnusable,
    SystemFailure."""
    top = str(directory)
    template = _read(top, host_root)
    for lower in (lower for tree in template.trees for lower in tree.lowers):
        if not os.path.isdir(lower):
            raise TemplateNotFound(template.name, f"{lower} is missing")
    return template


def _read(top: str, host_root: str) -> Template:
    name, path = os.path.basename(top), f"{top}/{FILE}"
    try:
        return _parse(content_of(path, _SIZE_BOUND), top, host_root)
    except (FileNotFoundError, NotADirectoryError):
        raise TemplateNotFound(name, f"{path} is missing" if os.path.isdir(top) else "") from None
    except (OSError, ValueError, RecursionError, msgspec.ValidationError) as why:
        if isinstance(why, OSError) and why.errno in SHORTAGES:
            raise SystemFailure(f"template {name} cannot be read: {why.strerror}", path=path, errno=why.errno) from why
        raise TemplateUnusable(
            f"template {name} cannot be used: {path}: {why}", remedy="remove it and make it again", template=name
        ) from why


@functools.lru_cache(maxsize=64)
def _parse(content: bytes, top: str, host_root: str) -> Template:
    """Kept by the content, since each start reads the file: so it can be edited at any time, and is parsed once."""
    record, name = msgspec.convert(tomllib.loads(content.decode()), Record), os.path.basename(top)
    trees = [Tree("/", [f"{top}/{'root' if record.kind == 'host' else 'rootfs'}"])]
    for link in record.links if record.kind == "host" else ():
        if not _LINK.fullmatch(link):
            raise TemplateUnusable(f"template {name} cannot be used: bad link '{link}' in {FILE}", template=name)
        trees.append(Tree(link, [f"{top}/{mask_name(link)}", os.path.join(host_root, link[1:])]))
    return Template(
        name=name, kind=record.kind, description=record.description, created=record.created,
        distribution=record.distribution, version=record.version, architecture=record.architecture,
        size=record.size, files=record.files, init=record.init, init_kind=record.init_kind, trees=trees,
    )
