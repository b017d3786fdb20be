# SPDX-License-Identifier: GPL-2.0-or-later
"""The mask over the host's directories: whiteouts and opaque directories, as overlayfs itself sees them."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from vemgr.templates.skeleton import build_skeleton
from vemgr.templates.store import Templates


@pytest.fixture(autouse=True)
def can_mask(tmp_path: Path) -> None:
    try:
        os.mknod(tmp_path / "probe", stat.S_IFCHR, os.makedev(0, 0))
        os.setxattr(tmp_path, "trusted.probe", b"y")
    except OSError as error:
        if os.environ.get("VEMGR_MUST_WORK"):
            raise
        pytest.skip(f"needs to make whiteouts: {error}")


@pytest.fixture
def host(tmp_path: Path) -> Path:
    usr = tmp_path / "host/usr"
    modes = {
        "bin/sh": 0o755, "bin/helper": 0o4750, "bin/execute-only": 0o711, "lib/app/key": 0o600, "lib/app/open": 0o644,
        "lib/closed/x": 0o644, "lib/listless/x": 0o644, "local/bin/x": 0o755,
    }
    for path, mode in modes.items():
        (usr / path).parent.mkdir(parents=True, exist_ok=True)
        (usr / path).write_text(path)
        (usr / path).chmod(mode)
    (usr / "lib/closed").chmod(0o750)
    (usr / "lib/listless").chmod(0o711)
    os.chown(usr / "lib/app", 7, 8)
    os.utime(usr / "lib/app", (1e9, 1e9))
    os.mknod(usr / "lib/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (usr / "lib/link").symlink_to("app/key")
    (tmp_path / "host/etc").mkdir()
    return tmp_path / "host"


HIDDEN = ["/usr/bin/execute-only", "/usr/bin/helper", "/usr/lib/app/key", "/usr/lib/closed", "/usr/lib/listless",
          "/usr/lib/null"]


def test_whiteouts(tmp_path: Path, host: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    fd = os.open(made, os.O_RDONLY)
    assert build_skeleton(fd, str(host)).masked == HIDDEN
    os.close(fd)
    for path in HIDDEN:
        found = (made / "usr-mask" / path.removeprefix("/usr/")).lstat()
        assert stat.S_ISCHR(found.st_mode) and found.st_rdev == 0
    assert os.getxattr(made / "usr-mask/local", "trusted.overlay.opaque") == b"y"
    mirrored = (made / "usr-mask/lib/app").stat()
    assert (mirrored.st_uid, mirrored.st_gid, mirrored.st_mtime) == (7, 8, 1e9)


def test_the_overlay_hides_them(tmp_path: Path, host: Path) -> None:
    template = Templates(tmp_path / "store", host_root=str(host)).host()
    usr = template.trees[1]
    script = 'mount -t overlay vemgr-test -o ro,lowerdir="$1" "$2" && cd "$2" && find . | sort && stat -c %u:%g lib/app'
    (tmp_path / "seen").mkdir()
    seen = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", ":".join(usr.lowers), tmp_path / "seen"],
        capture_output=True, text=True,
    )
    if seen.returncode and not os.environ.get("VEMGR_MUST_WORK"):
        pytest.skip(f"needs to mount an overlay: {seen.stderr}")
    lines = seen.stdout.splitlines()
    assert lines[-1] == "7:8"
    assert [line for line in lines if "local" not in line][:-1] == [
        ".", "./bin", "./bin/sh", "./lib", "./lib/app", "./lib/app/open", "./lib/link"]
    assert "./local/sbin" in lines and "./local/bin/x" not in lines


def test_leaks_that_come_later(tmp_path: Path, host: Path) -> None:
    templates = Templates(tmp_path / "store", host_root=str(host))
    templates.host()
    assert templates.host_leaks() == []
    new = host / "usr/lib/app/open"
    new.chmod(0o600)
    (host / "usr/local/secret").touch(0o600)
    assert templates.host_leaks() == [str(new)]
    templates.refresh_host()
    assert templates.host_leaks() == []
