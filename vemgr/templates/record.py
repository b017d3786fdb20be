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
    name = directory.name
    if not directory.is_dir():
        raise TemplateNotFound(name)
    record = _read(directory)
    tree = directory / ("root" if record.kind == "host" else "rootfs")
    trees = [Tree("/", [str(tree)])]
    for link in record.links if record.kind == "host" else ():
        if not _LINK.fullmatch(link):
            raise TemplateUnusable(f"template {name} cannot be used: bad link '{link}' in {FILE}", template=name)
        trees.append(Tree(link, [str(directory / mask_name(link)), os.path.join(host_root, link[1:])]))
    for lower in (lower for tree_ in trees for lower in tree_.lowers):
        if not os.path.isdir(lower):
            raise TemplateNotFound(name, f"{lower} is missing")
    return Template(
        name=name, kind=record.kind, description=record.description, created=record.created,
        distribution=record.distribution, version=record.version, architecture=record.architecture,
        size=record.size, files=record.files, init=record.init, init_kind=record.init_kind, trees=trees,
    )


def _read(directory: Path) -> Record:
    name, path = directory.name, directory / FILE
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_SIZE_BOUND)
        return _parse(text)
    except FileNotFoundError:
        raise TemplateNotFound(name, f"{path} is missing") from None
    except (OSError, ValueError, RecursionError, msgspec.ValidationError) as why:
        if isinstance(why, OSError) and why.errno in SHORTAGES:
            raise SystemFailure(f"template {name} cannot be read: {why.strerror}", path=path, errno=why.errno) from why
        raise TemplateUnusable(
            f"template {name} cannot be used: {path}: {why}", remedy="remove it and make it again", template=name
        ) from why


@functools.lru_cache(maxsize=64)
def _parse(text: str) -> Record:
    """Kept by its text, since each start reads the file: so it can be edited at any time, and is parsed once."""
    return msgspec.convert(tomllib.loads(text), Record)
