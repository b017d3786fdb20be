# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from vemgr.core.errors import NoSpace, TemplateUnusable
from vemgr.templates.skeleton import SkeletonSummary, build_skeleton
from vemgr.templates.tree_writer import TreeWriter

Build = Callable[[], SkeletonSummary]


def write(path: Path, text: str = "x", mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A small merged-/usr host, without anything in /usr that would have to be hidden (that takes root)."""
    host = tmp_path / "host"
    write(host / "usr/bin/sh", "#!", 0o755)
    (host / "usr/lib").mkdir()
    (host / "bin").symlink_to("usr/bin")
    (host / "lib").symlink_to("usr/lib")
    write(host / "etc/passwd", "root:x:0:0:Boss:/root:/bin/bash\nsync:x:4:65534::/bin:/bin/sync\n"
          "alice:x:1000:1000:Alice,,,:/home/alice:/bin/sh\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n+::::::\nbad\n")
    write(host / "etc/group", "root:x:0:\nsudo:x:27:alice,bob\nalice:x:1000:\nnogroup:x:65534:\n")
    write(host / "etc/shadow", "root:$6$hash:1::::::\n", 0o600)
    return host


@pytest.fixture
def made(tmp_path: Path) -> Path:
    path = tmp_path / "made"
    path.mkdir()
    return path


@pytest.fixture
def build(host: Path, made: Path) -> Build:
    def run() -> SkeletonSummary:
        fd = os.open(made, os.O_RDONLY)
        try:
            return build_skeleton(fd, str(host))
        finally:
            os.close(fd)
    return run


def test_layout(build: Build, made: Path) -> None:
    old = os.umask(0o077)
    try:
        summary = build()
    finally:
        os.umask(old)
    assert sorted(os.listdir(made)) == ["root", "usr-mask"]
    assert summary.links == ["/usr"] and summary.masked == []
    assert os.readlink(made / "root/bin") == "usr/bin" and not (made / "root/sbin").exists()
    assert os.listdir(made / "root/usr") == []
    expected = {"": 0o755, "tmp": 0o1777, "var/tmp": 0o1777, "root": 0o700, "proc": 0o555}
    assert {name: stat.S_IMODE((made / "root" / name).stat().st_mode) for name in expected} == expected
    assert os.readlink(made / "root/var/run") == "/run"
    assert sorted(os.listdir(made / "usr-mask")) == ["local"] and "bin" in os.listdir(made / "usr-mask/local")


def test_accounts(build: Build, made: Path) -> None:
    build()
    etc = made / "root/etc"
    assert (etc / "passwd").read_text() == (
        "root:x:0:0::/root:/bin/bash\nsync:x:4:65534::/bin:/bin/sync\nnobody:x:65534:65534::/:/sbin/nologin\n"
    )
    assert (etc / "group").read_text() == "root:x:0:\nsudo:x:27:\nnogroup:x:65534:\n"
    assert (etc / "shadow").read_text() == "root:*:::::::\nsync:*:::::::\nnobody:*:::::::\n"
    assert (etc / "gshadow").read_text() == "root:*::\nsudo:*::\nnogroup:*::\n"
    assert stat.S_IMODE((etc / "shadow").stat().st_mode) == 0o640
    assert "files dns" in (etc / "nsswitch.conf").read_text()


def test_what_of_etc_is_copied(build: Build, host: Path, made: Path) -> None:
    write(host / "etc/profile", "umask 022\n")
    write(host / "etc/ssl/openssl.cnf")
    write(host / "etc/ssl/certs/ca.pem", "-----BEGIN CERTIFICATE-----")
    (host / "etc/alternatives").mkdir()
    (host / "etc/alternatives/vi").symlink_to("/usr/bin/vim")
    (host / "etc/localtime").symlink_to("/usr/share/zoneinfo/UTC")
    write(host / "etc/default/locale", "LANG=C.UTF-8\n")
    write(host / "etc/python3.11/sitecustomize.py", mode=0o4755)
    summary = build()
    etc = made / "root/etc"
    assert (etc / "profile").read_text() == "umask 022\n" and (etc / "ssl/openssl.cnf").exists()
    assert (etc / "ssl/certs/ca.pem").exists() and (etc / "default/locale").exists()
    assert os.readlink(etc / "alternatives/vi") == "/usr/bin/vim"
    assert os.readlink(etc / "localtime") == "/usr/share/zoneinfo/UTC"
    assert stat.S_IMODE((etc / "python3.11/sitecustomize.py").stat().st_mode) == 0o755
    assert summary.left_out == []


SECRETS = [
    "etc/ssh/ssh_host_ed25519_key", "etc/ssh/sshd_config", "etc/machine-id", "etc/ssl/private/key.pem",
    "etc/sudoers.d/x", "etc/apt/auth.conf", "etc/apt/auth.conf.d/x", "etc/apt/apt.conf.d/proxy", "etc/shadow-",
    "etc/passwd-", "etc/default/daemon", "etc/environment", "etc/resolv.conf", "etc/hostname",
    "etc/security/opasswd", "etc/wgetrc", "etc/pki/tls/private/x.key", "etc/cron.d/x", "etc/pip.conf",
    "etc/NetworkManager/wifi", "root/.bash_history", "home/alice/mail", "var/log/syslog", "var/lib/app/data",
    "etc/pam.d/x.dpkg-old",
]


@pytest.mark.parametrize("path", SECRETS)
def test_what_is_never_copied_even_if_readable(build: Build, host: Path, made: Path, path: str) -> None:
    write(host / path, "secret")
    build()
    found = made / "root" / path
    assert not found.exists() or "secret" not in found.read_text()


def test_what_is_left_out_of_allowed_directories(build: Build, host: Path, made: Path) -> None:
    write(host / "etc/pam.d/closed", mode=0o640)
    write(host / "etc/ssl/certs/both.pem", "cert\n-----BEGIN PRIVATE KEY-----\n")
    write(host / "etc/profile.d/deep/x").parent.chmod(0o711)
    write(host / "etc/apt/sources.list.d/a.list", "deb https://user:pass@example.org/ x main")
    write(host / "etc/apt/sources.list.d/b.list", "deb https://example.org/?token=1 x main")
    write(host / "etc/apt/sources.list.d/c.list", "# a@b\ndeb [arch=amd64] https://example.org/ x main")
    write(host / "etc/skel/.netrc").parent.chmod(0o750)
    os.mkfifo(host / "etc/pam.d/pipe", 0o666)
    summary = build()
    assert summary.left_out == [
        "/etc/apt/sources.list.d/a.list", "/etc/apt/sources.list.d/b.list", "/etc/pam.d/closed", "/etc/pam.d/pipe",
        "/etc/profile.d/deep", "/etc/skel", "/etc/ssl/certs/both.pem",
    ]
    etc = made / "root/etc"
    assert not [path for path in summary.left_out if (made / "root" / path[1:]).exists()]
    assert (etc / "apt/sources.list.d/c.list").exists()


def test_links_that_point_at_secrets_are_copied_as_links(build: Build, host: Path, made: Path) -> None:
    (host / "etc/pam.d").mkdir()
    (host / "etc/pam.d/x").symlink_to("../shadow")
    build()
    assert (made / "root/etc/pam.d/x").is_symlink()
    assert "hash" not in (made / "root/etc/pam.d/x").read_text()


def test_dpkg_is_linked_if_it_is_there(build: Build, host: Path, made: Path) -> None:
    write(host / "var/lib/dpkg/status")
    assert build().links == ["/usr", "/var/lib/dpkg"]
    assert os.listdir(made / "root/var/lib/dpkg") == [] and (made / "dpkg-mask").is_dir()
    assert (made / "root/var/lib/apt/lists/partial").is_dir()


def test_host_without_merged_usr(build: Build, host: Path, made: Path) -> None:
    (host / "bin").unlink()
    write(host / "bin/sh", "#!", 0o755)
    assert build().links == ["/usr", "/bin"]
    assert (made / "bin-mask").is_dir() and os.listdir(made / "root/bin") == []


def test_host_without_usr(build: Build, host: Path) -> None:
    (host / "usr").rename(host / "other")
    with pytest.raises(TemplateUnusable, match="/usr"):
        build()


def test_no_space(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TreeWriter, "file", fail)
    with pytest.raises(NoSpace):
        build()
