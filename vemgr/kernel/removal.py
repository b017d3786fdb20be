# SPDX-License-Identifier: GPL-2.0-or-later
"""Deleting a directory tree that a VE's root has shaped."""

from __future__ import annotations

import errno
import os
import secrets

from vemgr.kernel.openat2 import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, openat2

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_DEEPEST = 64  # of what is deleted in place: each level takes two descriptors


def remove_tree(path: str, *, dir_fd: int | None = None) -> None:
    """Delete `path` and all below it, whatever its depth and width. Raises `OSError`; what is left can be removed
    again. `dir_fd`: the directory that `path` is a name in.

    A VE can nest directories deeper than any recursion (shutil.rmtree's is at 1,000) or number of descriptors goes, and
    fill one with more names than should be in memory at once. So the tree is flattened while it is deleted: each
    subdirectory moves up to the top under the next number, and is emptied there when its turn comes. Symlinks are
    unlinked and never followed. What somebody has mounted in the tree is not entered (EBUSY).
    """
    top = os.open(path, _DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        _Flattening(top).run()
    finally:
        os.close(top)
    os.rmdir(path, dir_fd=dir_fd)


class _Flattening:
    def __init__(self, top: int) -> None:
        self._top = top
        self._prefix = f".vemgr-removed-{secrets.token_hex(8)}-"  # no name that anybody could have taken before
        self._moved = 0

    def run(self) -> None:
        self._empty(self._top, 0)
        done = 0
        while done < self._moved:
            self._remove(f"{self._prefix}{done}", self._top, 0)
            done += 1

    def _remove(self, name: str, parent: int, depth: int) -> None:
        directory = openat2(parent, name, _DIRECTORY,
                            resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV)
        try:
            self._empty(directory, depth)
        finally:
            os.close(directory)
        try:
            os.rmdir(name, dir_fd=parent)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            self._move(name, parent)  # some file systems skip names while others go away: once more

    def _empty(self, directory: int, depth: int) -> None:
        """Unlink the files of a directory and move its subdirectories to the top. `depth`: how far below it."""
        with os.scandir(directory) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.name, dir_fd=directory)
                elif not (directory == self._top and entry.name.startswith(self._prefix)):
                    self._take(entry.name, directory, depth)

    def _take(self, name: str, directory: int, depth: int) -> None:
        """Delete a subdirectory that is empty, and move any other."""
        try:
            os.rmdir(name, dir_fd=directory)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return
        try:
            self._move(name, directory)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or depth == _DEEPEST:
                raise
            self._remove(name, directory, depth + 1)  # a new name wants space; what goes from in there may make some

    def _move(self, name: str, directory: int) -> None:
        os.rename(name, f"{self._prefix}{self._moved}", src_dir_fd=directory, dst_dir_fd=self._top)
        self._moved += 1
