# SPDX-License-Identifier: GPL-2.0-or-later
"""What makes two templates the same: the names, kinds, owners, modes, contents and targets of all their files. Not the
times, which a second import of the same archive need not keep, and not the name of the template."""

from __future__ import annotations

import hashlib
import os
import stat

from vemgr.core.layers import Template
from vemgr.kernel.openat2 import open_beneath

_CHUNK = 1 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def template_digest(kind: str, release: str, lowers: list[str]) -> str:
    """SHA-256 over the trees of a template; for the template `host`, which nobody can carry elsewhere, what the host's
    system calls itself. Reads every file, which may take seconds. Raises `OSError`."""
    if kind == "host":
        return f"host:{release}"
    digest = hashlib.sha256()
    for lower in lowers:
        top = os.open(lower, _DIRECTORY | os.O_NOFOLLOW)
        try:
            _tree(digest, top, b"")
        finally:
            os.close(top)
    return f"sha256:{digest.hexdigest()}"


def digest_parts(template: Template) -> dict[str, object]:
    """What `template_digest` is told of a template."""
    return {"kind": template.kind, "release": f"{template.distribution} {template.version} {template.architecture}",
            "lowers": [lower for tree in template.trees for lower in tree.lowers]}


def _tree(digest: hashlib._Hash, directory: int, path: bytes) -> None:
    for name in sorted(map(os.fsencode, os.listdir(directory))):
        info = os.stat(name, dir_fd=directory, follow_symlinks=False)
        below = path + b"/" + name
        what = b""
        if stat.S_ISLNK(info.st_mode):
            what = os.readlink(name, dir_fd=directory)
        elif stat.S_ISREG(info.st_mode):
            what = _content(directory, name)
        # A length before each part, so that no two trees can be written as the same bytes.
        for part in (below, b"%o %d %d" % (info.st_mode, info.st_uid, info.st_gid), what):
            digest.update(len(part).to_bytes(8, "little") + part)
        if stat.S_ISDIR(info.st_mode):
            fd = open_beneath(directory, name, _DIRECTORY)
            try:
                _tree(digest, fd, below)
            finally:
                os.close(fd)


def _content(directory: int, name: bytes) -> bytes:
    digest = hashlib.sha256()
    with open(open_beneath(directory, name, os.O_RDONLY), "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.digest()
