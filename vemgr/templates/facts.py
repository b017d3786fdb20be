# SPDX-License-Identifier: GPL-2.0-or-later
"""What a tree that was unpacked says of itself: distribution, architecture, init.

The tree is untrusted and is read by root on the host: every path is resolved as if the tree were the root
directory, only regular files are read, and only their first bytes.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass

from vemgr.core.errors import SHORTAGES, BadValue, TemplateUnusable
from vemgr.core.layers import InitKind
from vemgr.kernel.openat2 import open_in_root

_OS_RELEASE_BOUND = 64 * 1024
# Words only: these end on an administrator's terminal, and the tree is not ours.
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,63}")
_ASSIGNMENT = re.compile(r"([A-Z_]+)=([\"']?)(.*)\2\s*")

# The order of the kernel's own search, with systemd's own path before it for trees without the link.
_INIT_CANDIDATES = ("/sbin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/etc/init", "/bin/init")
_ARCHITECTURE_PROBES = ("bin/sh", "usr/bin/env", "usr/bin/coreutils", "sbin/init")
_MACHINES = {3: "i686", 21: "ppc64le", 22: "s390x", 40: "armv7l", 62: "x86_64", 183: "aarch64", 243: "riscv64"}


@dataclass(frozen=True, slots=True)
class Facts:
    """See `core.layers.Template` for the fields."""

    distribution: str
    version: str
    architecture: str
    init: str
    init_kind: InitKind


def describe_tree(root_fd: int, init: str | None = None) -> Facts:
    """`init`: the path that process 1 is to have, None to look for one, "" for none.

    Raises TemplateUnusable if the tree is no operating system's, BadValue if `init` is not in it.
    """
    if not any(_is_directory(root_fd, name) for name in ("bin", "usr")):
        raise TemplateUnusable(
            "the archive holds no usable tree: it has neither /bin nor /usr",
            remedy="pack the tree itself, without a directory around it",
        )
    if init is None:
        init = next((path for path in _INIT_CANDIDATES if _program(root_fd, path)), "")
    elif init and not (init.startswith("/") and init.isprintable() and _program(root_fd, init)):
        raise BadValue("init", init, "it is no absolute path of an executable file in the template")
    release = read_os_release(root_fd)
    return Facts(
        distribution=release.get("ID", ""),
        version=release.get("VERSION_ID", ""),
        architecture=_architecture(root_fd),
        init=init,
        init_kind=_init_kind(root_fd, init) if init else "none",
    )


def read_os_release(root_fd: int) -> dict[str, str]:
    """The assignments of os-release(5) whose values are plain words; {} if there is none to read."""
    for path in ("etc/os-release", "usr/lib/os-release"):
        text = _head(root_fd, path, _OS_RELEASE_BOUND).decode("utf-8", "replace")
        found = {}
        for line in text.splitlines():
            match = _ASSIGNMENT.fullmatch(line)
            if match and _PLAIN.fullmatch(match[3]):
                found[match[1]] = match[3]
        if found:
            return found
    return {}


def _init_kind(root_fd: int, init: str) -> InitKind:
    """By the name that the links end at: the kinds differ in the signals that make them stop."""
    final = _program(root_fd, init)
    kinds: dict[str, InitKind] = {"systemd": "systemd", "busybox": "busybox", "openrc-init": "openrc"}
    name = final.rsplit("/", 1)[-1]
    if name in kinds:
        return kinds[name]
    has_inittab = bool(_head(root_fd, "etc/inittab", 1))
    return "sysvinit" if "/sysvinit/" in final or (name == "init" and has_inittab) else "other"


def _architecture(root_fd: int) -> str:
    for path in _ARCHITECTURE_PROBES:
        head = _head(root_fd, path, 20)
        if len(head) == 20 and head.startswith(b"\x7fELF"):
            return _MACHINES.get(int.from_bytes(head[18:20], "big" if head[5] == 2 else "little"), "")
    return ""


def _check_shortage(error: OSError) -> None:
    """Raise again what says nothing about the tree: an init that cannot be opened just now is not missing."""
    if error.errno in SHORTAGES:
        raise error


def _is_directory(root_fd: int, path: str) -> bool:
    try:
        os.close(open_in_root(root_fd, path, os.O_PATH | os.O_DIRECTORY))
    except OSError as error:
        _check_shortage(error)
        return False
    return True


def _program(root_fd: int, path: str) -> str:
    """The path that `path` leads to if it is an executable file, "" otherwise."""
    try:
        fd = open_in_root(root_fd, path, os.O_PATH)
    except OSError as error:
        _check_shortage(error)
        return ""
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode) or not mode & 0o111:
            return ""
        root = os.readlink(f"/proc/self/fd/{root_fd}")
        return os.readlink(f"/proc/self/fd/{fd}").removeprefix(root)
    finally:
        os.close(fd)


def _head(root_fd: int, path: str, size: int) -> bytes:
    """The first bytes of a regular file, b"" if there is none."""
    try:
        # O_NONBLOCK: a fifo planted here would hold us for ever otherwise.
        fd = open_in_root(root_fd, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        _check_shortage(error)
        return b""
    try:
        # Checked before any read: a directory can be opened too, and a device must not be read.
        return _read_up_to(fd, size) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)


def _read_up_to(fd: int, size: int) -> bytes:
    with open(fd, "rb", closefd=False) as file:
        return file.read(size)
