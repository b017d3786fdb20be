# SPDX-License-Identifier: GPL-2.0-or-later
"""Loop devices: a file as a block device (loop(4), linux/loop.h).

A device made here goes by itself when nobody has it open or mounted any more (LO_FLAGS_AUTOCLEAR), whoever was killed:
no record of it is needed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

_LOOP_CONFIGURE, _LOOP_CTL_GET_FREE = 0x4C0A, 0x4C82
_LOOP_GET_STATUS64, _LOOP_SET_CAPACITY = 0x4C05, 0x4C07
_AUTOCLEAR, _DIRECT_IO = 4, 16
_INFO = struct.Struct("=5Q4I64s64s32s2Q")
_BLOCK = 4096
_ATTEMPTS = 64
_CONTROL = "/dev/loop-control"
_SYSFS = "/sys/block"


def available() -> bool:
    return os.path.exists(_CONTROL)


def attach(file: int) -> tuple[str, int]:
    """A device for an open file; returns its path and a descriptor, which keeps it. Raises `OSError`.

    Direct I/O, where the file's file system can, since what is in the cache twice is charged once at most.
    """
    info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, _AUTOCLEAR | _DIRECT_IO, b"", b"", b"", 0, 0)
    config = struct.pack("=II", file, _BLOCK) + info + bytes(64)
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_ATTEMPTS):
            path = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(fd, _LOOP_CONFIGURE, config)
                return path, fd
            except OSError as error:
                os.close(fd)
                if error.errno != errno.EBUSY:  # somebody else was quicker
                    raise
        raise OSError(errno.EBUSY, "no loop device stays free", _CONTROL)
    finally:
        os.close(control)


def find(path: str) -> tuple[str, int]:
    """The device that is attached to the file at `path`, as `attach` returns it. Raises `OSError`."""
    wanted = os.stat(path)
    for name in os.listdir(_SYSFS):
        if not name.startswith("loop") or not os.path.exists(f"{_SYSFS}/{name}/loop/backing_file"):
            continue
        fd = os.open(f"/dev/{name}", os.O_RDWR | os.O_CLOEXEC)
        try:
            device, inode = _INFO.unpack(fcntl.ioctl(fd, _LOOP_GET_STATUS64, bytes(_INFO.size)))[:2]
            if (inode, device) == (wanted.st_ino, _kernels_number(wanted.st_dev)):
                return f"/dev/{name}", fd
        except OSError as error:
            if error.errno != errno.ENXIO:  # it has been detached this moment
                os.close(fd)
                raise
        os.close(fd)
    raise FileNotFoundError(errno.ENOENT, "no loop device has this file", path)


def _kernels_number(device: int) -> int:
    """huge_encode_dev(): minor in the lower and upper bits, major between them."""
    major, minor = os.major(device), os.minor(device)
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


def has_grown(fd: int) -> None:
    """Have the device take the size that its file has now."""
    fcntl.ioctl(fd, _LOOP_SET_CAPACITY, 0)
