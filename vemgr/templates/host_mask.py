# SPDX-License-Identifier: GPL-2.0-or-later
"""The mask: an overlay layer over a directory of the host that hides what ordinary users of the host cannot read.

The layers of a VE are id-mapped, so a file of the host's root appears as the VE's root's own. Without the mask, a
VE would read, say, a key that a package keeps below /usr with mode 0600.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from vemgr.kernel.namespaces import nested
from vemgr.kernel.openat2 import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, openat2

# "trusted": the overlay is mounted by the host's root, and no VE can write such an attribute. In a VE there are others.
_OPAQUE = "user.overlay.opaque" if nested() else "trusted.overlay.opaque"
_LOCAL = b"local"
_LOCAL_DIRECTORIES = (b"bin", b"etc", b"games", b"include", b"lib", b"sbin", b"share", b"src")
_PLAIN = 0o755
_WITHIN = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def build_mask(mask_fd: int, host_fd: int, *, own_local: bool) -> list[bytes]:
    """Fills the empty directory `mask_fd` for the host's directory `host_fd`; returns the paths that it hides.

    `own_local`: the VE gets an empty `local` of its own, since /usr/local belongs to the administrator of a system.
    Raises OSError.
    """
    hidden = unreadable(host_fd, skip=_LOCAL if own_local else b"")
    mask = _Mask(mask_fd, host_fd)
    for path in hidden:
        mask.hide(path)
    if own_local:
        mask.make_local()
    mask.finish()
    return hidden


def unmasked(mask_fd: int, host_fd: int, *, own_local: bool) -> list[bytes]:
    """What the mask should hide but does not, because it came to the host after the mask was made. Raises OSError."""
    return [
        path for path in unreadable(host_fd, skip=_LOCAL if own_local else b"") if not _is_whiteout(mask_fd, path)
    ]


def _is_whiteout(mask_fd: int, path: bytes) -> bool:
    try:
        found = os.stat(path, dir_fd=mask_fd, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def unreadable(host_fd: int, *, skip: bytes = b"") -> list[bytes]:
    """Paths below the host's directory that not every user can read, sorted; nothing below a path that is listed.

    Mount points are among them: an overlay shows what lies under the mount, which we cannot see and must not trust.
    `skip`: a name at the top that is not looked at. Raises OSError.
    """
    found: list[bytes] = []
    pending = [b""]
    while pending:
        directory = pending.pop()
        try:
            fd = openat2(host_fd, directory or b".", _DIRECTORY, resolve=_WITHIN)
        except FileNotFoundError:  # a package manager is at work
            continue
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            found.append(directory)
            continue
        try:
            for name, mode in _children(fd):
                path = directory + b"/" + name if directory else name
                if path == skip:
                    continue
                if not _readable(mode):
                    found.append(path)
                elif stat.S_ISDIR(mode):
                    pending.append(path)
        finally:
            os.close(fd)
    return sorted(found)


def _children(fd: int) -> Iterator[tuple[bytes, int]]:
    with os.scandir(fd) as entries:
        for entry in entries:
            try:
                yield os.fsencode(entry.name), entry.stat(follow_symlinks=False).st_mode
            except FileNotFoundError:
                continue


def _readable(mode: int) -> bool:
    if stat.S_ISLNK(mode):
        return True
    if stat.S_ISDIR(mode):
        return mode & 0o005 == 0o005
    return stat.S_ISREG(mode) and bool(mode & 0o004)


class _Mask:
    def __init__(self, mask_fd: int, host_fd: int) -> None:
        self._mask_fd, self._host_fd = mask_fd, host_fd
        self._mirrored: set[bytes] = {b""}

    def hide(self, path: bytes) -> None:
        """Puts a whiteout at `path`: a character device 0:0, overlayfs's word for "nothing here, nor below"."""
        directory, _, name = path.rpartition(b"/")
        self._mirror(directory)
        fd = openat2(self._mask_fd, directory or b".", _DIRECTORY, resolve=_WITHIN)
        try:
            os.mknod(name, stat.S_IFCHR | 0o600, os.makedev(0, 0), dir_fd=fd)
        finally:
            os.close(fd)

    def make_local(self) -> None:
        os.mkdir(_LOCAL, dir_fd=self._mask_fd)
        fd = openat2(self._mask_fd, _LOCAL, _DIRECTORY, resolve=_WITHIN)
        try:
            os.fchmod(fd, _PLAIN)
            for name in _LOCAL_DIRECTORIES:
                os.mkdir(name, dir_fd=fd)
                os.chmod(name, _PLAIN, dir_fd=fd)  # whatever the umask
            if _exists(self._host_fd, _LOCAL):
                os.setxattr(fd, _OPAQUE, b"y")
        finally:
            os.close(fd)

    def finish(self) -> None:
        """A directory of several layers has the metadata of the topmost: ours must look like the host's.

        Done last since each whiteout changed a time, and programs (fontconfig, ldconfig) compare these times.
        """
        for path in self._mirrored:
            found = os.stat(path or b".", dir_fd=self._host_fd, follow_symlinks=False)
            fd = openat2(self._mask_fd, path or b".", _DIRECTORY, resolve=_WITHIN)
            try:
                os.fchown(fd, found.st_uid, found.st_gid)
                os.fchmod(fd, stat.S_IMODE(found.st_mode))
                os.utime(fd, ns=(found.st_mtime_ns, found.st_mtime_ns))
            finally:
                os.close(fd)

    def _mirror(self, directory: bytes) -> None:
        if directory in self._mirrored:
            return
        self._mirror(directory.rpartition(b"/")[0])
        os.mkdir(directory, 0o700, dir_fd=self._mask_fd)
        self._mirrored.add(directory)


def _exists(dir_fd: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
