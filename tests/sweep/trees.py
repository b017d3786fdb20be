# SPDX-License-Identifier: GPL-2.0-or-later
"""What templates are made of: small trees, since each file of them is some ten system calls more to be killed at."""

from __future__ import annotations

import io
import os
import shutil
import tarfile

BUSYBOX = "/bin/busybox"
_PASSWD = b"root:x:0:0:root:/root:/bin/sh\n"


def busybox() -> bytes:
    """An archive of a tree that can run commands and has no init of its own."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name in ("bin", "dev", "etc", "proc", "run", "sys", "tmp", "root"):
            _add(archive, name, tarfile.DIRTYPE)
        archive.add(os.path.realpath(BUSYBOX), "bin/busybox")
        for applet in ("sh", "true"):
            _add(archive, f"bin/{applet}", tarfile.SYMTYPE, "busybox")
        _add(archive, "etc/passwd", text=_PASSWD)
    return data.getvalue()


def small() -> bytes:
    """One of each kind of entry."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name in ("bin", "etc"):
            _add(archive, name, tarfile.DIRTYPE)
        _add(archive, "etc/passwd", text=_PASSWD)
        _add(archive, "bin/link", tarfile.SYMTYPE, "../etc/passwd")
        _add(archive, "bin/hard", tarfile.LNKTYPE, "etc/passwd")
    return data.getvalue()


def _add(archive: tarfile.TarFile, name: str, kind: bytes = tarfile.REGTYPE, target: str = "",
         text: bytes = b"") -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.mode, entry.size = kind, target, 0o755, len(text)
    archive.addfile(entry, io.BytesIO(text))


def host(root: str) -> None:
    """The root of a host with few files, for the template `host`: of a real one it takes 100,000 system calls."""
    for directory in ("usr/bin", "usr/lib", "etc", "var/lib/dpkg"):
        os.makedirs(f"{root}/{directory}")
    shutil.copy(BUSYBOX, f"{root}/usr/bin/busybox")
    os.symlink("usr/bin", f"{root}/bin")
    for name, mode in (("usr/lib/secret", 0o600), ("etc/profile", 0o644), ("var/lib/dpkg/lock", 0o640)):
        with open(f"{root}/{name}", "w", encoding="ascii") as file:
            file.write("x\n")
        os.chmod(f"{root}/{name}", mode)
