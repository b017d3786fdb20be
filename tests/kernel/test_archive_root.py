# SPDX-License-Identifier: GPL-2.0-or-later
"""What unpacking needs root for: foreign owners, and attributes that only root may set."""

from __future__ import annotations

import io
import os
import shutil
import stat
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest

from vemgr.templates.archive import unpack

CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)  # cap_net_raw=ep, revision 2


@pytest.fixture(autouse=True)
def can_chown(tmp_path: Path) -> None:
    probe = tmp_path / "probe"
    probe.touch()
    try:
        os.chown(probe, 1, 1)
        os.setxattr(probe, "security.capability", CAPABILITY)
    except OSError as error:
        if os.environ.get("VEMGR_MUST_WORK"):
            raise
        pytest.skip(f"needs to give files away and capabilities to them: {error}")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


def into(root: Path, data: bytes) -> object:
    fd = os.open(root, os.O_RDONLY)
    try:
        return unpack(io.BytesIO(data), fd)
    finally:
        os.close(fd)


def tar(*infos: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as file:
        for info in infos:
            file.addfile(info, io.BytesIO(bytes(info.size)))
    return out.getvalue()


def info(name: str, kind: bytes = b"0", **fields: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type = kind
    for key, value in fields.items():
        setattr(made, key, value)
    return made


@pytest.mark.parametrize(("kind", "mode"), [(b"0", 0o6755), (b"5", 0o2775), (b"6", 0o640)])
def test_setuid_bits_survive_the_change_of_owner(root: Path, kind: bytes, mode: int) -> None:
    into(root, tar(info("x", kind, uid=65535, gid=42, mode=mode)))
    found = (root / "x").lstat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (65535, 42, mode)


def test_symlinks_are_owned_and_not_followed(root: Path) -> None:
    canary = root.parent / "canary"
    canary.touch(0o600)
    into(root, tar(info("x", b"2", linkname=str(canary), uid=7, gid=8, mode=0o777)))
    assert ((root / "x").lstat().st_uid, (root / "x").lstat().st_gid) == (7, 8)
    found = canary.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (os.getuid(), os.getgid(), 0o600)


def test_attributes(root: Path) -> None:
    pax = {
        "SCHILY.xattr.security.capability": CAPABILITY.decode("utf-8", "surrogateescape"),
        "SCHILY.xattr.user.note": "\udcff\nbinary=\0",
        "SCHILY.xattr.system.posix_acl_access": "?",
        "SCHILY.acl.default": "user::rwx",
        "SCHILY.xattr.security.ima": "?",
    }
    summary = into(root, tar(info("ping", uid=5, gid=5, mode=0o4755, pax_headers=pax)))
    assert os.getxattr(root / "ping", "security.capability") == CAPABILITY
    assert os.getxattr(root / "ping", "user.note") == b"\xff\nbinary=\0"
    assert sorted(os.listxattr(root / "ping")) == ["security.capability", "user.note"]
    assert summary.xattrs_dropped == 3  # type: ignore[attr-defined]


def test_an_archive_of_gnu_tar_comes_back_the_same(root: Path) -> None:
    """Against a foreign implementation: GNU tar packs, we unpack, GNU tar compares."""
    if not shutil.which("tar"):
        pytest.skip("no tar")
    source = root.parent / "source"
    (source / "etc/deep/er").mkdir(parents=True)
    (source / "etc/a").write_bytes(os.urandom(100_000))
    os.link(source / "etc/a", source / "etc/b")
    (source / "etc/deep/link").symlink_to("../a")
    os.chown(source / "etc/deep", 1000, 2000)
    os.setxattr(source / "etc/a", "security.capability", CAPABILITY)
    with open(source / "hole", "wb") as file:
        file.seek(5_000_000)
        file.write(b"end")
    (source / ("long" * 60)).write_bytes(b"x")
    for form in ("gnu", "posix"):
        options = ["--sparse", "--xattrs", "--xattrs-include=*"] if form == "posix" else ["--sparse"]
        pack = ["tar", "-C", source, f"--format={form}", *options, "-c", "."]
        made = subprocess.run(pack, capture_output=True, check=True)
        target = root / form
        target.mkdir()
        into(target, made.stdout)
        compared = subprocess.run(["tar", "-C", target, "-d", *options], input=made.stdout, capture_output=True)
        assert compared.returncode == 0, compared.stdout + compared.stderr
    assert os.getxattr(root / "posix/etc/b", "security.capability") == CAPABILITY
