# SPDX-License-Identifier: GPL-2.0-or-later
"""The disk of a VE that has a size: a file with an ext4 file system, `ve/NAME/disk.img`.

It is mounted for the VE alone: the daemon makes a mount that hangs nowhere, and the set-up process attaches it where
only the VE sees it. So mount and loop device go with the VE's last process, or with a daemon that is killed in between,
and there is nothing to be recorded, found or cleaned.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator

from vemgr.core.config import Settings
from vemgr.core.errors import BadValue, LimitNotReached, NotEnforceable, SystemFailure
from vemgr.core.resources import format_size
from vemgr.kernel import capabilities, ext4, loop, programs
from vemgr.kernel.durable import exchange_durably, rename_durably
from vemgr.kernel.syncfs import syncfs
from vemgr.runtime.store import DISK_IMAGE, DISK_PARTIAL, storage_errors

_PATIENCE = 60.0  # seconds for the kernel to write down and unmount what an ended VE had
_RESERVE, _SCARCE = 32, 128  # blocks and inodes
_COPY_PATIENCE = 24 * 3600.0


class OpenDisk:
    """A mounted disk. `source` is the path of the mount for another process of the host, while it is open here."""

    def __init__(self, device: int, mount: int) -> None:
        self._device, self._mount = device, mount
        self.source = f"/proc/{os.getpid()}/fd/{mount}"

    def handed_over(self) -> None:
        """The VE has it now; what its start needed of the reserve is kept back again."""
        _keep_reserve(self._mount)
        self.close()

    def close(self) -> None:
        os.close(self._mount)
        os.close(self._device)


class Images:
    """`directory`: that of the VEs. Methods that change something block, and raise `SystemFailure` or `NoSpace`."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def path(self, name: str) -> str:
        return f"{self._directory}/{name}/{DISK_IMAGE}"

    def exists(self, name: str) -> bool:
        return os.path.lexists(self.path(name))

    def check(self, name: str, before: Settings, after: Settings, *, running: bool) -> None:
        """Refuse what cannot be done: `NotEnforceable`, `BadValue`. For a VE that is new, `before` is the default."""
        if (before.disk, before.inodes) == (after.disk, after.inodes):
            return
        text = format_size(after.disk)
        if after.disk is not None:
            self._check_host()
        if self.exists(name):
            if after.disk is None:
                raise BadValue("disk", text, "the VE's files are on a disk with a size already")
            if after.inodes != before.inodes:
                raise BadValue("inodes", after.inodes, "settled when the disk is made, at the first start")
            if running:
                _check_growth(name, self.path(name), after.disk)
        elif os.path.lexists(f"{self._directory}/{name}/data"):
            raise BadValue("disk", text, "the VE's files are in a directory already, which has no size",
                           remedy="set it when a VE is created, or before its first start")

    def _check_host(self) -> None:
        if not loop.available():
            raise NotEnforceable("disk", "there are no loop devices", "modprobe loop")
        if missing := ext4.missing_tools():
            raise NotEnforceable("disk", f"{', '.join(missing)} is missing", "install e2fsprogs")

    def make(self, name: str, settings: Settings) -> bool:
        """Have the disk; returns whether it is new. It takes no space before it is written to."""
        if self.exists(name):
            return False
        if os.path.lexists(f"{self._directory}/{name}/data"):
            raise SystemFailure(f"VE {name} cannot start: its files are in a directory, which has no size",
                                remedy="take 'disk' out of its definition", ve=name)
        self._check_host()
        partial = f"{self._directory}/{name}/{DISK_PARTIAL}"
        with storage_errors(f"make the disk of VE {name}"), _removed_on_failure(partial):
            with _opened(partial, os.O_CREAT | os.O_TRUNC) as fd:
                os.ftruncate(fd, settings.disk or 0)
                ext4.make(partial, settings.inodes)
                os.fsync(fd)
            rename_durably(partial, self.path(name))
        return True

    def open(self, name: str, id_base: int, count: int) -> OpenDisk:
        """Mount it, with the directories for the VE's own writes: N/{upper,work} for each tree of its template."""
        with storage_errors(f"mount the disk of VE {name}"), contextlib.ExitStack() as undo:
            with _opened(self.path(name), os.O_NOFOLLOW) as image:
                _lock(name, image)
                path, device = loop.attach(image)
            undo.callback(os.close, device)
            mount = ext4.mount(path)
            undo.callback(os.close, mount)
            _make_trees(mount, id_base, count)
            found = os.statvfs(mount)
            if min(found.f_bavail, found.f_favail) < _SCARCE:
                _give_reserve(mount)
            else:
                _keep_reserve(mount)
            undo.pop_all()
        return OpenDisk(device, mount)

    def drop(self, name: str) -> None:
        """Undo `make` where it was new."""
        with contextlib.suppress(OSError):
            os.unlink(self.path(name))

    def grow(self, name: str, size: int) -> None:
        """Make the disk of a running VE larger. Until it is done the file has another size than any disk, by which the
        next start finds and completes what was interrupted."""
        path = self.path(name)
        with (storage_errors(f"make the disk of VE {name} larger"), contextlib.ExitStack() as undo,
              _opened(path, os.O_NOFOLLOW) as image):
            device, fd = loop.find(path)
            undo.callback(os.close, fd)
            os.ftruncate(image, max(size + ext4.BLOCK, os.fstat(image).st_size))
            loop.has_grown(fd)
            ext4.grow_mounted(device, size)
            os.fsync(image)
            os.ftruncate(image, size)
            loop.has_grown(fd)

    def resize(self, name: str, size: int) -> None:
        """Give the disk of a stopped VE another size. Raises `LimitNotReached` where more than that is in use.

        On a copy, since a resize2fs that is killed leaves a file system that cannot be used.
        """
        if not self.exists(name) or os.stat(self.path(name)).st_size == size:
            return
        partial = f"{self._directory}/{name}/{DISK_PARTIAL}"
        with (storage_errors(f"change the disk of VE {name}"), _removed_on_failure(partial),
              _opened(self.path(name), os.O_NOFOLLOW) as image):
            _lock(name, image)
            _copy(self.path(name), partial)
            try:
                ext4.resize(partial, size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                raise LimitNotReached(
                    f"the disk of VE {name} cannot be made as small as {format_size(size)}: {error.strerror}; it is as "
                    "it was", remedy="delete files in it first", field="disk", wanted=size) from None
            with _opened(partial) as fd:
                os.fsync(fd)
            exchange_durably(partial, self.path(name))
            with contextlib.suppress(OSError):  # it is done; the daemon deletes this when it starts
                os.unlink(partial)


def _check_growth(name: str, path: str, size: int) -> None:
    """Raises `BadValue` for what cannot be done to a disk that is mounted."""
    text = format_size(size)
    if size + ext4.BLOCK < os.stat(path).st_size:  # what an attempt to make it larger has left is a block more
        raise BadValue("disk", text, "a disk can be made smaller only while the VE is stopped", remedy="stop it first")
    if not capabilities.has("sys_resource"):
        raise BadValue("disk", text, f"the disk of VE {name} is mounted, and the daemon has not the capability that "
                       "the kernel wants for making it larger then (CAP_SYS_RESOURCE)", remedy="stop it first")


def _lock(name: str, image: int) -> None:
    """Never two loop devices on one file: two mounts of one file system destroy it. The lock belongs to the open file,
    which the loop device keeps, so it is free when the last mount is gone: a moment after the VE's end."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(image, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise SystemFailure(f"the disk of VE {name} is still mounted", ve=name,
                                    remedy="'losetup -a' and 'findmnt' show where") from None
            time.sleep(0.01)


def _make_trees(root: int, id_base: int, count: int) -> None:
    """As `Store.trees`; only `upper` is ever seen by the VE."""
    for number in range(count):
        for directory in (f"{number}", f"{number}/upper", f"{number}/work"):
            with contextlib.suppress(FileExistsError):
                os.mkdir(directory, 0o700, dir_fd=root)
        upper = f"{number}/upper"
        os.chmod(upper, 0o755, dir_fd=root)
        os.chown(upper, id_base, id_base, dir_fd=root)


def _keep_reserve(root: int) -> None:
    """Keep some blocks and inodes from the VE, as empty directories. An overlay makes files when it is mounted; where
    it cannot it is read-only, and a VE that has filled its disk could delete nothing after the next start."""
    with contextlib.suppress(OSError):  # that it is full is nobody's fault now
        for name in ("reserve", *(f"reserve/{number}" for number in range(_RESERVE))):
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=root)


def _give_reserve(root: int) -> None:
    for number in range(_RESERVE):
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(f"reserve/{number}", dir_fd=root)
    top = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)  # fsmount's is a path only
    try:
        syncfs(top)  # ext4 gives blocks to others only when the journal says that they are free
    finally:
        os.close(top)


def _copy(source: str, target: str) -> None:
    """With its holes; at once where the file system can share blocks."""
    command = [shutil.which("cp") or "/bin/cp", "--sparse=always", "--reflink=auto", "--", source, target]
    code, said = programs.run(command, _COPY_PATIENCE)
    if code:
        raise OSError(errno.ENOSPC if "No space left" in said else errno.EIO, said, target)


@contextlib.contextmanager
def _opened(path: str, flags: int = 0) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _removed_on_failure(path: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise
