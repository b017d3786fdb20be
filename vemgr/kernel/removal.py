# SPDX-License-Identifier: GPL-2.0-or-later
"""Deleting a directory tree that a VE's root has shaped."""

from __future__ import annotations

import itertools
import os


def remove_tree(path: str) -> None:
    """Delete `path` and all below it, however deep it is. Raises `OSError`; what is left can be removed again.

    A VE can nest directories deeper than any recursion (shutil.rmtree's is at 1,000) or number of descriptors goes.
    So the tree is flattened while it is deleted: each subdirectory moves up to the top, and a directory without
    subdirectories is removed. Symlinks are unlinked and never followed.
    """
    top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        numbers = itertools.count()
        waiting = _empty(top, top, numbers)
        while waiting:
            name = waiting.pop()
            directory = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
            try:
                waiting += _empty(directory, top, numbers)
            finally:
                os.close(directory)
            os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(path)


def _empty(directory: int, top: int, numbers: itertools.count[int]) -> list[str]:
    """Unlink the files of a directory and move its subdirectories to `top`; returns their names there."""
    moved = []
    with os.scandir(directory) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in found:
        if not is_directory:
            os.unlink(name, dir_fd=directory)
        elif directory == top:
            moved.append(name)
        else:
            moved.append(_move_up(name, directory, top, numbers))
    return moved


def _move_up(name: str, directory: int, top: int, numbers: itertools.count[int]) -> str:
    while True:
        new = f".vemgr-removed-{next(numbers)}"
        try:
            os.mkdir(new, 0o700, dir_fd=top)  # rename(2) onto an empty directory replaces it, onto others fails
        except FileExistsError:
            continue  # the VE has such a name itself, or an earlier attempt has
        os.rename(name, new, src_dir_fd=directory, dst_dir_fd=top)
        return new
