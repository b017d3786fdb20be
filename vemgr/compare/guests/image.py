# SPDX-License-Identifier: GPL-2.0-or-later
"""The disk of the guests: the template's tree as an ext4 file system, built without mounting anything (mke2fs(8), -d).

One image for all guests of a template, and for each guest a qcow2 file with what it writes.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from vemgr.compare.tree import command

_SPARE = 1 << 30  # bytes that a workload may write, beside those that the tree has
_OVERHEAD = 4096 + 256 + 64  # bytes of a file beside its content: half a block, its inode, its name


def build(root: Path, directory: Path) -> Path:
    """The image of this tree; the one that is there if nothing in the tree has changed. Raises `DriverFailed`."""
    key, size = fingerprint(root)
    path = directory / f"{key}.ext4"
    if not path.exists():
        for old in directory.glob("*.ext4*"):
            old.unlink()
        new = path.with_name(f"{path.name}.new")
        try:
            make(root, new, size + _SPARE)
            new.rename(path)
        finally:
            new.unlink(missing_ok=True)  # of a disk that is full it is what has filled it
    return path


def make(root: Path, path: Path, size: int) -> None:
    """A file system of so many bytes, in a sparse file, with this tree in it. Raises `DriverFailed`."""
    command("mke2fs", "-q", "-F", "-t", "ext4", "-d", str(root), "-m", "0", "-E", "nodiscard,lazy_itable_init=1",
            str(path), f"{size // 1024}k", timeout=1200)


def fingerprint(root: Path) -> tuple[str, int]:
    """What identifies a tree and its state, and how many bytes it takes: names, sizes, times; not contents."""
    digest = hashlib.sha256(str(root).encode())
    size = 0
    for directory, names, files in os.walk(root):
        names.sort()
        for name in sorted([*names, *files]):
            path = os.path.join(directory, name)
            info = os.lstat(path)
            digest.update(f"{path}\0{info.st_mode}\0{info.st_size}\0{info.st_mtime_ns}\0".encode(errors="surrogateescape"))
            size += info.st_size + _OVERHEAD
    return digest.hexdigest()[:16], size


def overlay(base: Path, path: Path) -> None:
    """A disk that starts as `base` and keeps what is written to it."""
    command("qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "raw", str(path))


def cache_mode(directory: Path) -> str:
    """`none` where the file system lets a guest's writes go past the host's cache, so that nothing is cached twice;
    `writeback` elsewhere. With both of them an fsync in the guest is one of the host."""
    probe = directory / ".direct"
    try:
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_DIRECT | os.O_CLOEXEC, 0o600))
    except OSError:
        return "writeback"
    finally:
        probe.unlink(missing_ok=True)
    return "none"
