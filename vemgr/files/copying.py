# SPDX-License-Identifier: GPL-2.0-or-later
"""The writes of a stopped VE, once more for another: owners, modes, times, attributes, ACLs, hard links, holes, and
what overlayfs notes of the layers below. Blocks are shared where the file system can do that (ioctl_ficlone(2)).

Both sides are seen through mounts that show the VE's own ids, so that the kernel translates all that has ids in it:
owners, ACLs and the namespace that file capabilities are bound to.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat

from vemgr.files.single import reopen
from vemgr.kernel.openat2 import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, openat2

_BELOW = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV
_DEPTH = 150  # directories; two descriptors each
_FICLONE = 0x40049409
_CHUNK = 8 << 20
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# Not what ties an entry to an inode of the layers below ("origin") or counts its names ("nlink"): it is another here.
_ATTRIBUTES = ("user.", "security.capability", "system.posix_acl_", "trusted.overlay.opaque",
               "trusted.overlay.redirect", "trusted.overlay.metacopy")


class Copier:
    def __init__(self) -> None:
        self._links: dict[int, str] = {}  # inode with several names: the first one of it here
        self._reflinks = self._one_system = True
        self._top = -1

    def tree(self, source: int, target: int) -> None:
        """What is in one directory into another, which is empty. Raises `OSError`."""
        self._top = target
        self._directory(source, target, "", 0)

    def _directory(self, source: int, target: int, path: str, depth: int) -> None:
        if depth > _DEPTH:
            raise OSError(errno.ELOOP, f"more than {_DEPTH} directories deep", ascii(path[:100]))
        with os.scandir(source) as entries:
            for entry in entries:
                self._entry(source, target, entry.name, f"{path}/{entry.name}", depth)
        self._describe(os.fstat(source), source, target)

    def _entry(self, source: int, target: int, name: str, path: str, depth: int) -> None:
        info = os.stat(name, dir_fd=source, follow_symlinks=False)
        if stat.S_ISDIR(info.st_mode):
            fd = openat2(source, name, os.O_RDONLY | os.O_DIRECTORY, resolve=_BELOW)
            try:
                os.mkdir(name, 0o700, dir_fd=target)
                below = openat2(target, name, os.O_RDONLY | os.O_DIRECTORY, resolve=_BELOW)
                try:
                    self._directory(fd, below, path, depth + 1)
                finally:
                    os.close(below)
            finally:
                os.close(fd)
            return
        if info.st_nlink > 1 and info.st_ino in self._links:
            os.link(self._links[info.st_ino].lstrip("/"), name, src_dir_fd=self._top, dst_dir_fd=target,
                    follow_symlinks=False)
            return
        if info.st_nlink > 1:
            self._links[info.st_ino] = path
        if stat.S_ISREG(info.st_mode):
            self._file(source, target, name)
            return
        if stat.S_ISLNK(info.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        elif stat.S_ISFIFO(info.st_mode) or stat.S_ISSOCK(info.st_mode) or _is_whiteout(info):
            os.mknod(name, info.st_mode, info.st_rdev, dir_fd=target)
        else:
            raise OSError(errno.EPERM, "a device, which no VE can have made", ascii(path[:100]))
        os.chown(name, info.st_uid, info.st_gid, dir_fd=target, follow_symlinks=False)
        os.utime(name, ns=(info.st_atime_ns, info.st_mtime_ns), dir_fd=target, follow_symlinks=False)

    def _file(self, source: int, target: int, name: str) -> None:
        seen = openat2(source, name, os.O_PATH, resolve=_BELOW)
        try:
            fd = reopen(seen, name)
        finally:
            os.close(seen)
        try:
            new = os.open(name, _NEW, 0o600, dir_fd=target)
            try:
                self._content(fd, new)
                self._describe(os.fstat(fd), fd, new)
            finally:
                os.close(new)
        finally:
            os.close(fd)

    def _content(self, source: int, target: int) -> None:
        if self._reflinks:
            try:
                fcntl.ioctl(target, _FICLONE, source)
                return
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                self._reflinks = False  # not on this file system
        size, position = os.fstat(source).st_size, 0
        os.ftruncate(target, size)
        with contextlib.suppress(_NoMoreDataError):
            while position < size:
                position = _next_data(source, position)
                end = os.lseek(source, position, os.SEEK_HOLE)
                while position < end:
                    copied = self._range(source, target, min(_CHUNK, end - position), position)
                    if not copied:
                        return
                    position += copied

    def _range(self, source: int, target: int, count: int, position: int) -> int:
        if self._one_system:
            try:
                return os.copy_file_range(source, target, count, position, position)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                self._one_system = False  # from one disk with a size to another
        return os.pwrite(target, os.pread(source, count, position), position)

    @staticmethod
    def _describe(info: os.stat_result, source: int, target: int) -> None:
        os.fchown(target, info.st_uid, info.st_gid)
        os.fchmod(target, stat.S_IMODE(info.st_mode))
        for name in os.listxattr(source):
            if name.startswith(_ATTRIBUTES):
                os.setxattr(target, name, os.getxattr(source, name))
        os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))


class _NoMoreDataError(Exception):
    pass


def _next_data(fd: int, position: int) -> int:
    try:
        return os.lseek(fd, position, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise _NoMoreDataError from None
        raise


def _is_whiteout(info: os.stat_result) -> bool:
    """How overlayfs notes that an entry of the layers below is gone (overlayfs, "whiteouts and opaque directories")."""
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0
