# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VE stands on: templates, and the read-only overlay trees that each one offers.

A template is a list of `Tree` values. Each becomes one overlay mount in the VE: the template's directories are the
lower layers, the VE brings its own upper directory. An archive has one tree, `/`. The built-in template `host` has
several, because `/usr` is a link to the host's own and so needs an overlay of its own below `/`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from vemgr.core.errors import BadValue

TemplateKind = Literal["host", "archive"]
InitKind = Literal["systemd", "busybox", "sysvinit", "openrc", "other", "none"]

HOST_TEMPLATE = "host"

# A leading letter or digit keeps hidden names free for half-made templates ('.NAME.partial-XXXX'), and no '/' can
# leave the templates directory. 63 is the length of a DNS label, which VE names share.
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Tree:
    """One overlay mount of a VE.

    `mountpoint`: absolute path in the VE. `lowers`: absolute host paths, the topmost layer first, as overlayfs
    takes them. All of them are read-only layers and are to be mounted with the VE's id map.
    """

    mountpoint: str
    lowers: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A template as it lies on disk.

    `created`: ISO 8601 time. `size`: bytes of file content of its own (what it links to is not counted).
    `files`: directory entries of its own. `init`: path in the tree of the program to run as process 1, "" if the
    tree has none (then `init_kind` is "none" and vemgr's own reaper serves). `distribution` and `version` are ID and
    VERSION_ID of os-release, `architecture` the machine name as uname prints it; all three may be "".
    `trees`: in mount order, a parent before what lies below it.
    """

    name: str
    kind: TemplateKind = "archive"
    description: str = ""
    created: str = ""
    distribution: str = ""
    version: str = ""
    architecture: str = ""
    size: int = 0
    files: int = 0
    init: str = ""
    init_kind: InitKind = "none"
    trees: list[Tree] = field(default_factory=list)


def check_template_name(name: str) -> str:
    """Returns `name` if it can name a template; raises BadValue otherwise."""
    if not _NAME.fullmatch(name):
        raise BadValue(
            "template", name, "a name has 1 to 63 characters a-z, 0-9, '.' and '-', and begins and ends with a-z or 0-9"
        )
    return name
