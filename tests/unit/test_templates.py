# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import io
import os
import struct
import tarfile
from pathlib import Path

import pytest

from vemgr.core.errors import (
    BadValue,
    NoSpace,
    TemplateExists,
    TemplateInUse,
    TemplateNotFound,
    TemplateUnusable,
    VemgrError,
)
from vemgr.core.layers import Template, Tree
from vemgr.templates import store as module
from vemgr.templates.store import Templates, utc_now

NOW = "2024-05-01T12:00:00+00:00"
ELF = b"\x7fELF\x02\x01".ljust(18, b"\0") + struct.pack("<H", 183)


def tree(*entries: tuple[str, bytes | str]) -> io.BytesIO:
    """A tar stream: bytes make an executable file, a string a symlink, a name with a slash at its end a directory."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            info.mode, info.uid, info.gid = 0o755, os.getuid(), os.getgid()
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            else:
                info.size = len(content)
            file.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return io.BytesIO(out.getvalue())


DEBIAN = [
    ("bin", "usr/bin"), ("sbin", "usr/sbin"), ("usr/bin/sh", ELF), ("usr/sbin/init", "../lib/systemd/systemd"),
    ("usr/lib/systemd/systemd", b"x"), ("usr/lib/os-release", b'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="a b"\n'),
    ("etc/os-release", "../usr/lib/os-release"),
]


@pytest.fixture
def store(tmp_path: Path) -> Templates:
    host = tmp_path / "host"
    (host / "usr/lib").mkdir(parents=True)
    (host / "etc").mkdir()
    (host / "usr/lib/os-release").write_text("ID=testos\nVERSION_ID=1\n")
    (host / "etc/os-release").symlink_to("../usr/lib/os-release")
    return Templates(tmp_path / "lib/templates", now=lambda: NOW, host_root=str(host))


def leftovers(store: Templates) -> list[str]:
    return [name for name in os.listdir(store.directory) if name.startswith(".")]


def test_import(store: Templates) -> None:
    made = store.import_archive("debian-12", tree(*DEBIAN), description="Debian for all")
    where = store.directory / "debian-12"
    assert made == Template(
        name="debian-12", kind="archive", description="Debian for all", created=NOW, distribution="debian",
        version="12", architecture="aarch64", size=len(ELF) + 1 + len(DEBIAN[5][1]), files=13,
        init="/sbin/init", init_kind="systemd",
        trees=[Tree("/", [str(where / "rootfs")])],
    )
    assert store.show("debian-12") == made and store.list() == [made]
    assert where.stat().st_mode & 0o777 == 0o700 and store.directory.stat().st_mode & 0o777 == 0o700
    assert leftovers(store) == []


@pytest.mark.parametrize(("entries", "init", "kind"), [
    ([("sbin/init", "/bin/busybox"), ("bin/busybox", ELF)], "/sbin/init", "busybox"),
    ([("sbin/init", b"x"), ("etc/inittab", b"x"), ("bin/", "")], "/sbin/init", "sysvinit"),
    ([("sbin/init", "/sbin/openrc-init"), ("sbin/openrc-init", b"x"), ("bin/", "")], "/sbin/init", "openrc"),
    ([("usr/lib/systemd/systemd", b"x")], "/usr/lib/systemd/systemd", "systemd"),
    ([("bin/init", b"x")], "/bin/init", "other"),
    ([("bin/sh", b"x")], "", "none"),
    ([("bin/", ""), ("sbin/init", "/etc/passwd")], "", "none"),
    ([("bin/", ""), ("sbin/init", "init")], "", "none"),
    ([("bin/", ""), ("sbin/init/", "")], "", "none"),
])
def test_init(store: Templates, entries: list[tuple[str, bytes | str]], init: str, kind: str) -> None:
    made = store.import_archive("x", tree(*entries), description="")
    assert (made.init, made.init_kind) == (init, kind)


def test_init_that_is_named(store: Templates) -> None:
    entries = [*DEBIAN, ("opt/run", b"x")]
    assert store.import_archive("a", tree(*entries), description="", init="/opt/run").init == "/opt/run"
    assert store.import_archive("b", tree(*entries), description="", init="").init_kind == "none"
    for bad in ("opt/run", "/opt/missing", "/opt", "/opt/run\n", "/../opt"):
        with pytest.raises(BadValue):
            store.import_archive("c", tree(*entries), description="", init=bad)
    assert leftovers(store) == [] and len(store.list()) == 2


def test_links_of_the_tree_do_not_lead_to_the_host(store: Templates, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("ID=leaked\n")
    made = store.import_archive("x", tree(("bin/", ""), ("etc/os-release", str(secret))), description="")
    assert made.distribution == ""


@pytest.mark.parametrize("text", [b"ID=\x1b[31m\n", b"\xff\xfe", b"x" * 100_000, b"ID=" + b"a" * 65, b"ID='debian\n"])
def test_hostile_os_release(store: Templates, text: bytes) -> None:
    assert store.import_archive("x", tree(("bin/", ""), ("etc/os-release", text)), description="").distribution == ""


@pytest.mark.parametrize("entries", [[("rootfs/bin/sh", b"x")], [("etc/x", b"x")], []])
def test_no_usable_tree(store: Templates, entries: list[tuple[str, bytes | str]]) -> None:
    with pytest.raises(TemplateUnusable, match="neither /bin nor /usr"):
        store.import_archive("x", tree(*entries), description="")
    assert os.listdir(store.directory) == []


def test_refusals_change_nothing(store: Templates) -> None:
    for name in ("host", "A", "..", "a/b"):
        with pytest.raises(BadValue):
            store.import_archive(name, tree(*DEBIAN), description="")
    for description in ("two\nlines", "x" * 201, "\udcff", "\x1b"):
        with pytest.raises(BadValue):
            store.import_archive("x", tree(*DEBIAN), description=description)
    assert not store.directory.exists()
    store.import_archive("x", tree(*DEBIAN), description="")
    with pytest.raises(TemplateExists):
        store.import_archive("x", tree(*DEBIAN), description="")


def test_failures_leave_nothing(store: Templates, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TemplateUnusable):
        store.import_archive("x", io.BytesIO(tree(*DEBIAN).getvalue()[:2000]), description="")

    def interrupted(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.import_archive("x", tree(*DEBIAN), description="", progress=interrupted)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_record", full)
    with pytest.raises(NoSpace):
        store.import_archive("x", tree(*DEBIAN), description="")
    assert os.listdir(store.directory) == []


def test_the_slower_of_two_imports_loses(store: Templates) -> None:
    def overtake(done: int) -> None:
        if not (store.directory / "x").exists():
            store.import_archive("x", tree(*DEBIAN), description="first")

    with pytest.raises(TemplateExists):
        store.import_archive("x", tree(*DEBIAN), description="second", progress=overtake)
    assert store.show("x").description == "first" and leftovers(store) == []


def test_remove(store: Templates) -> None:
    store.import_archive("x", tree(*DEBIAN), description="")
    with pytest.raises(TemplateInUse, match="web1, web2"):
        store.remove("x", ["web1", "web2"])
    store.remove("x", [])
    assert os.listdir(store.directory) == []
    for missing in ("x", "never"):
        with pytest.raises(TemplateNotFound):
            store.remove(missing, [])


def test_damage(store: Templates, caplog: pytest.LogCaptureFixture) -> None:
    def damaged(name: str, kind: type[VemgrError], why: str) -> None:
        with pytest.raises(kind, match=why):
            store.show(name)

    good = store.import_archive("good", tree(*DEBIAN), description="")
    for name in ("no-tree", "no-record", "bad-toml", "bad-type", "future"):
        store.import_archive(name, tree(*DEBIAN), description="")
    (store.directory / "no-tree/rootfs").rename(store.directory / "no-tree/gone")
    (store.directory / "no-record/template.toml").unlink()
    (store.directory / "bad-toml/template.toml").write_text("= x")
    (store.directory / "bad-type/template.toml").write_text('format = 1\nkind = "archive"\nsize = "big"\n')
    (store.directory / "future/template.toml").write_text('format = 2\nkind = "archive"\n')
    (store.directory / "stray file").touch()
    damaged("no-tree", TemplateNotFound, "rootfs is missing")
    damaged("no-record", TemplateNotFound, "template.toml is missing")
    damaged("bad-toml", TemplateUnusable, "template.toml")
    damaged("bad-type", TemplateUnusable, "size")
    damaged("future", TemplateUnusable, "format")
    assert store.list() == [good] and "no-tree" in caplog.text
    store.remove("bad-toml", [])


def test_records_of_people_and_of_later_versions(store: Templates) -> None:
    store.import_archive("x", tree(*DEBIAN), description="")
    path = store.directory / "x/template.toml"
    text = path.read_text().replace('description = ""', 'description = "by hand"')
    path.write_text("# ours\nfuture_field = 3\n" + text)
    assert store.show("x").description == "by hand"


def test_host(store: Templates) -> None:
    made = store.host()
    where = store.directory / "host"
    assert (made.kind, made.distribution, made.version, made.init_kind) == ("host", "testos", "1", "none")
    assert made.architecture == os.uname().machine and made.files > 20
    usr = str(store.directory.parent.parent / "host/usr")
    assert made.trees == [Tree("/", [str(where / "root")]), Tree("/usr", [str(where / "usr-mask"), usr])]
    inode = where.stat().st_ino
    assert store.host() == made and where.stat().st_ino == inode, "made once"
    with pytest.raises(TemplateInUse):
        store.refresh_host(["web1"])
    assert store.refresh_host() == made and where.stat().st_ino != inode
    (where / "template.toml").unlink()
    assert store.host() == made and leftovers(store) == []


def test_sweep(store: Templates) -> None:
    assert store.sweep() == []
    store.import_archive("x", tree(*DEBIAN), description="")
    partial = store.directory / ".y.partial-0123abcd"
    (partial / "rootfs/bin").mkdir(parents=True)
    (partial / "rootfs/out").symlink_to(store.directory / "x")
    (store.directory / ".keep").touch()
    assert store.sweep() == [partial.name]
    assert sorted(os.listdir(store.directory)) == [".keep", "x"] and store.show("x").files == 13


def test_empty_store(store: Templates) -> None:
    assert store.list() == []
    with pytest.raises(TemplateNotFound):
        store.show("x")
    assert utc_now().endswith("+00:00")
