# SPDX-License-Identifier: GPL-2.0-or-later
"""The built-in template `host`: a tree that links to the host's own operating system.

Made in an empty directory: `root/`, the VE's "/", which holds empty directories and a chosen part of /etc, and for
each linked directory of the host a mask (`usr-mask/`, see `host_mask`). With id-mapped layers the VE's root reads
whatever the host's root may read, so only what every user of the host can read goes in or stays visible.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from vemgr.core.errors import NoSpace, SystemFailure, TemplateUnusable
from vemgr.core.layers import Tree
from vemgr.kernel.openat2 import open_beneath
from vemgr.kernel.syncfs import syncfs
from vemgr.templates.host_accounts import account_files
from vemgr.templates.host_etc import EtcCopy
from vemgr.templates.host_mask import build_mask, unmasked
from vemgr.templates.record import mask_name
from vemgr.templates.tree_writer import EntryError, Metadata, TreeWriter

# On a merged-/usr host all but the first are symlinks and are copied as such; elsewhere each gets an overlay.
_SYSTEM = ("usr", "bin", "sbin", "lib", "lib64", "lib32", "libx32")
# So that `dpkg -l` and apt in the VE know what /usr holds. Its lock files (mode 0640) are what the mask is for.
_DPKG = "var/lib/dpkg"

_DIRECTORIES = {
    "": 0o755, "boot": 0o755, "dev": 0o755, "etc": 0o755, "home": 0o755, "media": 0o755, "mnt": 0o755, "opt": 0o755,
    "proc": 0o555, "root": 0o700, "run": 0o755, "srv": 0o755, "sys": 0o555, "tmp": 0o1777, "var": 0o755,
    "var/cache": 0o755, "var/lib": 0o755, "var/lib/misc": 0o755, "var/local": 0o755, "var/log": 0o755,
    "var/mail": 0o755, "var/opt": 0o755, "var/spool": 0o755, "var/spool/cron": 0o755, "var/tmp": 0o1777,
}
_SYMLINKS = {
    "etc/mtab": "/proc/self/mounts", "var/lock": "/run/lock", "var/run": "/run", "var/spool/mail": "../mail",
}
_FILES = {
    "etc/fstab": "# a VE's file systems are mounted by vemgr\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
    # Not the host's: its users may come from a directory service that the VE neither reaches nor should ask.
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\ngshadow: files\nhosts: files dns\n"
    "networks: files\nprotocols: files\nservices: files\nethers: files\nrpc: files\nnetgroup: files\n",
}
# apt complains of missing ones. What the host has in them is not copied: proxies and logins are kept there.
_APT_DIRECTORIES = (
    "etc/apt/apt.conf.d", "etc/apt/auth.conf.d", "etc/apt/preferences.d", "var/cache/apt/archives/partial",
    "var/lib/apt/lists/partial", "var/log/apt",
)


@dataclass(slots=True)
class SkeletonSummary:
    """`links`: directories of the host that a VE sees as its own, as absolute paths, each below a mask.
    `masked`: paths of the host that the masks hide. `left_out`: paths of the allowlist for /etc that were not
    copied, because not every user may read them or because they hold a secret."""

    files: int = 0
    bytes: int = 0
    links: list[str] = field(default_factory=list)
    masked: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def build_skeleton(root_fd: int, host_root: str = "/") -> SkeletonSummary:
    """Fills the empty directory `root_fd`. Raises TemplateUnusable, NoSpace, SystemFailure."""
    try:
        with _opened(host_root) as host_fd:
            return _Skeleton(root_fd, host_fd).build()
    except (EntryError, OSError) as error:
        code = getattr(error, "errno", None)
        kind = NoSpace if code in (errno.ENOSPC, errno.EDQUOT) else SystemFailure
        raise kind(f"the template of the host could not be made: {error}", errno=code) from error


def newly_unreadable(tree: Tree) -> list[str]:
    """Paths of the host that a linked tree shows although its mask should hide them: the host has changed since.

    Looks at every file of the linked directory (seconds for a large /usr). Raises OSError.
    """
    mask, host = tree.lowers
    with _opened(mask) as mask_fd, _opened(host) as host_fd:
        found = unmasked(mask_fd, host_fd, own_local=tree.mountpoint == "/usr")
    return [f"{host}/{os.fsdecode(path)}" for path in found]


class _Skeleton:
    def __init__(self, top_fd: int, host_fd: int) -> None:
        self._top_fd, self._host_fd = top_fd, host_fd
        self._summary = SkeletonSummary()

    def build(self) -> SkeletonSummary:
        with _made(self._top_fd, "root") as root_fd, TreeWriter(root_fd) as writer:
            self._writer = writer
            for path, mode in _DIRECTORIES.items():
                self._directory(path, mode)
            self._links()
            for path, target in _SYMLINKS.items():
                writer.symlink(_split(path), target.encode(), _metadata(0o777))
            copied = EtcCopy(self._host_fd, writer)
            copied.run()
            for path, text in _FILES.items():
                self._file(path, text, 0o644)
            self._accounts()
            self._summary.files = writer.made
            self._summary.bytes += copied.bytes
            self._summary.left_out = copied.left_out
        syncfs(self._top_fd)
        return self._summary

    def _links(self) -> None:
        for name in _SYSTEM:
            found = self._host_stat(name)
            if found is not None and stat.S_ISLNK(found.st_mode):
                target = os.readlink(name, dir_fd=self._host_fd)
                self._writer.symlink((name.encode(),), os.fsencode(target), _metadata(0o777))
            elif _is_open_directory(found):
                self._directory(name, 0o755)
                self._link(name)
        if "/usr" not in self._summary.links:
            raise TemplateUnusable("the host cannot be a template: it has no /usr directory that everybody may read")
        if _is_open_directory(self._host_stat(_DPKG)):
            for path in (_DPKG, *_APT_DIRECTORIES):
                self._directory(path, 0o755)
            self._link(_DPKG)

    def _link(self, path: str) -> None:
        host_fd = open_beneath(self._host_fd, path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with _made(self._top_fd, mask_name(f"/{path}")) as mask_fd:
                hidden = build_mask(mask_fd, host_fd, own_local=path == "usr")
        finally:
            os.close(host_fd)
        self._summary.masked += [f"/{path}/{os.fsdecode(name)}" for name in hidden]
        self._summary.links.append(f"/{path}")

    def _accounts(self) -> None:
        with _opened("etc", self._host_fd) as etc_fd:
            files, shadow_gid = account_files(etc_fd)
        for name, text in files.items():
            if name in ("shadow", "gshadow"):
                self._file(f"etc/{name}", text, 0o640, shadow_gid)
            else:
                self._file(f"etc/{name}", text, 0o644)

    def _host_stat(self, path: str) -> os.stat_result | None:
        try:
            return os.stat(path, dir_fd=self._host_fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def _directory(self, path: str, mode: int) -> None:
        self._writer.directory(_split(path), _metadata(mode))

    def _file(self, path: str, text: str, mode: int, gid: int | None = None) -> None:
        content = text.encode("utf-8", "surrogateescape")
        self._writer.file(_split(path), _metadata(mode, gid), [content])
        self._summary.bytes += len(content)


def _split(path: str) -> tuple[bytes, ...]:
    return tuple(part.encode() for part in path.split("/") if part)


def _metadata(mode: int, gid: int | None = None) -> Metadata:
    # Whoever builds owns it: root, except in tests. A constant time, so that two builds give equal trees.
    return Metadata(mode, os.geteuid(), os.getegid() if gid is None else gid, 0)


def _is_open_directory(found: os.stat_result | None) -> bool:
    """Whether it is a directory that every user may enter and list."""
    return found is not None and stat.S_ISDIR(found.st_mode) and found.st_mode & 0o005 == 0o005


@contextmanager
def _opened(path: str, dir_fd: int | None = None) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _made(parent_fd: int, name: str) -> Iterator[int]:
    os.mkdir(name, 0o755, dir_fd=parent_fd)
    with _opened(name, parent_fd) as fd:
        os.fchmod(fd, 0o755)  # whatever the umask
        yield fd
