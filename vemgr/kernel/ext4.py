# SPDX-License-Identifier: GPL-2.0-or-later
"""ext4 in a file: making it, mounting it nowhere, and giving it another size while it is not mounted."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import struct

from vemgr.kernel import mounts, programs
from vemgr.kernel.libc import SYS_fsconfig, SYS_fsmount, SYS_fsopen

BLOCK = 4096
_PATIENCE = 3600.0  # seconds; a terabyte with millions of files takes minutes
_EXT4_IOC_RESIZE_FS = 0x40086610  # fs/ext4/ext4.h
_MENDED = 1  # of e2fsck's exit codes, as 0, a good one
_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"

# A handle of its own, which lets other threads run during a call: a mount may have a journal to replay.
_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


def missing_tools() -> list[str]:
    return [tool for tool in ("mkfs.ext4", "e2fsck", "resize2fs") if shutil.which(tool, path=_PATH) is None]


def make(path: str, inodes: int | None) -> None:
    """Make a file system as large as the file. Raises `OSError` with the tool's own words, as `resize` does.

    No block is kept back for root: the ids of a VE have no part in that. An error makes it read-only, so that it is not
    damaged further.
    """
    count = ["-N", str(inodes)] if inodes is not None else []
    command = ["mkfs.ext4", "-q", "-F", "-b", str(BLOCK), "-m", "0", "-e", "remount-ro", "-E",
               "lazy_itable_init=1,lazy_journal_init=1,nodiscard", *count, path]
    _run(command)


def resize(path: str, size: int) -> None:
    """Give one that is not mounted another size, and its file too. Raises `OSError`: ENOSPC where more is in use."""
    _run(["e2fsck", "-f", "-p", path], good=(0, _MENDED))
    if size < os.stat(path).st_size:
        try:
            _run(["resize2fs", path, f"{size // 1024}K"])
        except OSError as error:
            raise OSError(errno.ENOSPC, error.strerror, path) from error
        os.truncate(path, size)
    else:
        os.truncate(path, size)
        _run(["resize2fs", path])


def grow_mounted(device: str, size: int) -> None:
    """Give one that is mounted a larger size, which its device must have. Raises `OSError`; needs CAP_SYS_RESOURCE.

    Another mount of what is mounted already, which hangs nowhere: the VE's own is out of our sight.
    """
    fd = mount(device)
    try:
        top = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)  # fsmount's is a path only
        try:
            fcntl.ioctl(top, _EXT4_IOC_RESIZE_FS, struct.pack("=Q", size // BLOCK))
        finally:
            os.close(top)
    finally:
        os.close(fd)


def _run(command: list[str], good: tuple[int, ...] = (0,)) -> None:
    code, said = programs.run(command, _PATIENCE, {"PATH": _PATH})
    if code not in good:
        raise OSError(errno.EIO, f"{command[0]}: {said or code}", command[-1])


def mount(device: str) -> int:
    """A detached mount; returns its descriptor, which keeps it. Raises `OSError`."""
    context = _call(SYS_fsopen, device, b"ext4", mounts.FSOPEN_CLOEXEC)
    try:
        for key, value in ((b"source", device.encode()), (b"discard", None)):
            command = mounts.FSCONFIG_SET_FLAG if value is None else mounts.FSCONFIG_SET_STRING
            _call(SYS_fsconfig, device, context, command, key, value, 0)
        _call(SYS_fsconfig, device, context, mounts.FSCONFIG_CMD_CREATE, None, None, 0)
        return _call(SYS_fsmount, device, context, mounts.FSMOUNT_CLOEXEC, 0)
    finally:
        os.close(context)


def _call(number: int, path: str, *arguments: int | bytes | None) -> int:
    widened = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = int(_syscall(ctypes.c_long(number), *widened))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return result
