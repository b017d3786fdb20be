# SPDX-License-Identifier: GPL-2.0-or-later
"""Project quotas: what all files of one project may take of a file system (quotactl(2), linux/dqblk_xfs.h, linux/fs.h).

The calls of XFS, which ext4 answers as well. A directory whose project is inherited gives it to all that is made in it;
nobody in a user namespace of his own may change that (fileattr_set_prepare in the kernel's fs/ioctl.c).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from vemgr.kernel.libc import syscall

_SYS_QUOTACTL_FD = 443
_PRJQUOTA = 2
_Q_XGETQUOTA, _Q_XSETQLIM, _Q_XGETQSTAT = (ord("X") << 8) + 3, (ord("X") << 8) + 4, (ord("X") << 8) + 5
_ENFORCED = 1 << 5  # FS_QUOTA_PDQ_ENFD
_SECTOR = 512  # bytes in a "basic block" of the interface, whatever the file system's are
_DISK_QUOTA = struct.Struct("=bBHI6Q2i2H4b3Qi2H8x")
_VERSION, _OF_PROJECT = 1, 2
_HARD = 1 << 1 | 1 << 3  # of d_fieldmask: inodes and blocks
_GETXATTR, _SETXATTR = 0x801C581F, 0x401C5820  # FS_IOC_FS{GET,SET}XATTR
_FSXATTR = struct.Struct("=5I8x")
_INHERITED = 0x200  # FS_XFLAG_PROJINHERIT


def enforced(fd: int) -> bool:
    """Whether the file system keeps projects within their limits: built in, and mounted with "prjquota"."""
    status = ctypes.create_string_buffer(128)  # struct fs_quota_stat is smaller
    try:
        _quotactl(fd, _Q_XGETQSTAT, 0, status)
    except OSError:
        return False
    return bool(struct.unpack_from("=H", status, 2)[0] & _ENFORCED)


def set_limits(fd: int, project: int, size: int, inodes: int) -> None:
    """Bytes, rounded down to sectors, and inodes that a project may have; 0 is no limit. Raises `OSError`."""
    wanted = _DISK_QUOTA.pack(_VERSION, _OF_PROJECT, _HARD, project, size // _SECTOR, 0, inodes, 0, *[0] * 16)
    _quotactl(fd, _Q_XSETQLIM, project, ctypes.create_string_buffer(wanted, len(wanted)))


def limits(fd: int, project: int) -> tuple[int, int]:
    """Bytes and inodes that a project may have; 0 is no limit. Raises `OSError`."""
    size, inodes = _found(fd, project)[4:7:2]
    return size * _SECTOR, inodes


def usage(fd: int, project: int) -> tuple[int, int]:
    """Bytes and inodes that a project has. Raises `OSError`."""
    size, inodes = _found(fd, project)[8:10]
    return size * _SECTOR, inodes


def assign(path: str, project: int) -> None:
    """Give a directory, and all that will be made in it, to a project. Raises `OSError`."""
    with _directory(path) as fd:
        flags, *others = _FSXATTR.unpack(_attributes(fd))
        others[2] = project
        fcntl.ioctl(fd, _SETXATTR, _FSXATTR.pack(flags | _INHERITED, *others))


def project_of(path: str) -> int:
    """0 for none, also where the file system knows no projects. Raises `OSError` where there is no such directory."""
    with _directory(path) as fd:
        try:
            return int(_FSXATTR.unpack(_attributes(fd))[3])
        except OSError:
            return 0


@contextmanager
def _directory(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _found(fd: int, project: int) -> tuple[int, ...]:
    """A struct fs_disk_quota: its fields 4 and 6 are the hard limits of blocks and inodes, 8 and 9 what is used."""
    buffer = ctypes.create_string_buffer(_DISK_QUOTA.size)
    try:
        _quotactl(fd, _Q_XGETQUOTA, project, buffer)
    except OSError as error:
        if error.errno != errno.ENOENT:  # it has never had anything
            raise
    return _DISK_QUOTA.unpack(buffer)


def _attributes(fd: int) -> bytes:
    return fcntl.ioctl(fd, _GETXATTR, bytes(_FSXATTR.size))


def _quotactl(fd: int, command: int, project: int, buffer: ctypes.Array[ctypes.c_char]) -> None:
    syscall("quotactl_fd", _SYS_QUOTACTL_FD, fd, command << 8 | _PRJQUOTA, project, ctypes.byref(buffer))
