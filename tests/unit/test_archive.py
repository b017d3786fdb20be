# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import contextlib
import gzip
import io
import lzma
import os
import stat
import struct
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from vemgr.core.errors import NoSpace, SystemFailure, TemplateUnusable
from vemgr.templates import archive as archive_module
from vemgr.templates.archive import DEFAULT_LIMITS, ArchiveLimits, ArchiveSummary, unpack

UID, GID = os.getuid(), os.getgid()
if UID > 65535 or GID > 65535:
    pytest.skip("the ids of this user do not fit a VE", allow_module_level=True)

FILE, DIR, SYM, HARD, FIFO, CHR = b"0", b"5", b"2", b"1", b"6", b"3"


def entry(
    name: str, kind: bytes = FILE, data: bytes = b"", *, to: str = "", mode: int = 0o644, uid: int = UID,
    gid: int = GID, mtime: float = 1_600_000_000, pax: dict[str, str] | None = None,
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.uid, info.gid, info.mtime = kind, to, mode, uid, gid, mtime
    info.size, info.pax_headers = len(data), pax or {}
    return info, data


def tar(*entries: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as file:
        for info, data in entries:
            file.addfile(info, io.BytesIO(data))
    return out.getvalue()


class OneWay(io.RawIOBase):
    """A pipe: short reads, no seeking."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        part = self._data.read(min(len(buffer), 1000))
        buffer[: len(part)] = part
        return len(part)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


def into(root: Path, data: bytes, limits: ArchiveLimits = DEFAULT_LIMITS) -> ArchiveSummary:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return unpack(OneWay(data), fd, limits=limits)  # type: ignore[arg-type]
    finally:
        os.close(fd)


def refused(root: Path, data: bytes, why: str, limits: ArchiveLimits = DEFAULT_LIMITS) -> TemplateUnusable:
    with pytest.raises(TemplateUnusable, match=why) as caught:
        into(root, data, limits)
    return caught.value


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes, "gzip": gzip.compress, "xz": lzma.compress, "zstd": zstd,
    "two gzip members": lambda d: gzip.compress(d[:700]) + gzip.compress(d[700:]),
    "two xz streams": lambda d: lzma.compress(d[:700]) + bytes(8) + lzma.compress(d[700:]),
    "zstd frames": lambda d: struct.pack("<II", 0x184D2A50, 4) + b"abcd" + zstd(d[:700]) + zstd(d[700:]),
}


class TestKept:
    @pytest.mark.parametrize("how", COMPRESSIONS)
    def test_every_compression(self, root: Path, how: str) -> None:
        content = os.urandom(300_000)
        summary = into(root, COMPRESSIONS[how](tar(entry("usr/bin/x", data=content))))
        assert (root / "usr/bin/x").read_bytes() == content
        assert summary == ArchiveSummary(bytes=300_000, entries=3)

    @pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_every_format(self, root: Path, form: int) -> None:
        name = "d" * 90 + "/" + "f" * 90
        into(root, tar(entry(name, data=b"x"), form=form))
        assert (root / name).read_bytes() == b"x"

    def test_modes_times_and_links(self, root: Path) -> None:
        into(root, tar(
            entry("./", DIR, mode=0o751),
            entry("bin", DIR, mode=0o1777, mtime=1e9),
            entry("bin/su", data=b"#!", mode=0o4755, mtime=1_500_000_000),
            entry("bin/sg", HARD, to="/./bin/su"),
            entry("sbin", SYM, to="/bin"),
            entry("dangling", SYM, to="../../../outside"),
            entry("run/pipe", FIFO, mode=0o620),
        ))
        assert stat.S_IMODE(root.stat().st_mode) == 0o751
        assert stat.S_IMODE((root / "bin").stat().st_mode) == 0o1777
        su = (root / "bin/su").stat()
        assert stat.S_IMODE(su.st_mode) == 0o4755 and su.st_mtime == 1_500_000_000 and su.st_nlink == 2
        assert (root / "bin/sg").samefile(root / "bin/su")
        assert os.readlink(root / "sbin") == "/bin" and os.readlink(root / "dangling") == "../../../outside"
        pipe = (root / "run/pipe").lstat()
        assert stat.S_ISFIFO(pipe.st_mode) and stat.S_IMODE(pipe.st_mode) == 0o620
        assert stat.S_IMODE((root / "run").stat().st_mode) == 0o755, "implied directories whatever the umask"

    @pytest.mark.parametrize("name", ["/etc/x", "./etc/x", "//etc//x", "etc/./x"])
    def test_names_are_normalised(self, root: Path, name: str) -> None:
        into(root, tar(entry(name, data=b"x")))
        assert (root / "etc/x").read_bytes() == b"x"

    @pytest.mark.parametrize("name", ["größe", "new\nline", "\udcff\udcfe", " ", "-rf", "a\\b", "\x1b[31m"])
    def test_strange_names(self, root: Path, name: str) -> None:
        into(root, tar(entry(f"d/{name}", data=b"x")))
        assert os.listdir(os.fsencode(root / "d")) == [name.encode("utf-8", "surrogateescape")]

    def test_the_last_duplicate_wins(self, root: Path) -> None:
        into(root, tar(
            entry("a", data=b"first"), entry("b", HARD, to="a"), entry("a", data=b"second"),
            entry("c", FIFO), entry("c", data=b"no fifo"), entry("d", SYM, to="a"), entry("d", DIR),
            entry("e", DIR, mode=0o700), entry("e", DIR, mode=0o711), entry("f", data=b"f"), entry("f", HARD, to="f"),
        ))
        assert (root / "a").read_bytes() == b"second" and (root / "b").read_bytes() == b"first"
        assert (root / "c").read_bytes() == b"no fifo" and (root / "d").is_dir() and not (root / "d").is_symlink()
        assert stat.S_IMODE((root / "e").stat().st_mode) == 0o711 and (root / "f").read_bytes() == b"f"

    def test_sparse_files_keep_their_holes(self, root: Path) -> None:
        # GNU format 1.0, as `tar --sparse --format=posix` writes it: the map stands before the data.
        data = b"1\n8388608\n4\n".ljust(512, b"\0") + b"tail"
        summary = into(root, tar(entry("GNUSparseFile.1/big", data=data, pax={
            "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "big",
            "GNU.sparse.realsize": str(8388608 + 4)})))
        found = (root / "big").stat()
        assert found.st_size == 8388612 and found.st_blocks * 512 < 1 << 20
        assert (root / "big").read_bytes()[-5:] == b"\0tail"
        assert summary.bytes == 8388612, "counted at apparent size"

    def test_devices_are_skipped_and_counted(self, root: Path) -> None:
        summary = into(root, tar(
            entry("dev/null", CHR), entry("dev/sda", b"4"), entry("dev/zero", HARD, to="dev/null"),
            entry("x", data=b"1"),
        ))
        assert summary.devices_skipped == 3 and os.listdir(root) == ["x"]

    def test_odd_times(self, root: Path) -> None:
        into(root, tar(entry("nan", pax={"mtime": "nan"}), entry("inf", pax={"mtime": "1e300"}),
                       entry("past", pax={"mtime": "-5"}), entry("exact", pax={"mtime": "7.5"})))
        assert [(root / n).stat().st_mtime for n in ("nan", "past", "exact")] == [0, 0, 7.5]


class TestRefused:
    @pytest.mark.parametrize("name", ["../x", "a/../../x", "..", "/..", "a/.."])
    def test_dots(self, root: Path, name: str) -> None:
        assert "x" in refused(root, tar(entry(name)), r"'\.\.'").facts["entry"] or name.endswith("..")
        assert sorted(os.listdir(root.parent)) == ["root"]

    @pytest.mark.parametrize("target", ["/etc", "..", ".", "d", "/", "missing"])
    @pytest.mark.parametrize("kind", [FILE, DIR, SYM, FIFO])
    def test_symlinks_as_parents(self, root: Path, target: str, kind: bytes) -> None:
        error = refused(root, tar(entry("d", DIR), entry("x", SYM, to=target), entry("x/y", kind, to="z")), "symlink")
        assert error.facts["entry"] == "'x/y'"

    def test_symlink_deep_in_the_parents(self, root: Path) -> None:
        refused(root, tar(entry("a/b", SYM, to="/tmp"), entry("a/b/c/d", data=b"x")), "symlink stands")

    def test_directory_is_not_swapped_for_a_symlink(self, root: Path) -> None:
        """The classical attack: the directory is used (and its descriptor cached), then replaced."""
        swapped = tar(entry("d/1", data=b"x"), entry("d", SYM, to="/tmp"), entry("d/2", data=b"x"))
        refused(root, swapped, "directory stands")

    def test_symlink_is_not_written_through(self, root: Path) -> None:
        canary = root.parent / "canary"
        canary.write_bytes(b"safe")
        into(root, tar(entry("x", SYM, to=str(canary)), entry("x", data=b"evil")))
        assert canary.read_bytes() == b"safe" and (root / "x").read_bytes() == b"evil"

    @pytest.mark.parametrize(("target", "why"), [
        ("../../etc/passwd", "'..'"), ("/etc/passwd", "not in the archive"), ("missing", "not in the archive"),
        ("link", "not a regular file"), ("d", "not a regular file"), ("pipe", "not a regular file"),
        ("out/canary", "symlink stands"), ("", "directory"), ("link/x", "symlink stands"), ("file/x", "file stands"),
    ])
    def test_hard_links(self, root: Path, target: str, why: str) -> None:
        (root.parent / "canary").write_bytes(b"safe")
        refused(root, tar(
            entry("file"), entry("d", DIR), entry("pipe", FIFO), entry("link", SYM, to="/etc/passwd"),
            entry("out", SYM, to=".."), entry("hard", HARD, to=target)), why)
        assert (root.parent / "canary").stat().st_nlink == 1

    @pytest.mark.parametrize(("uid", "gid"), [(65536, 0), (0, 65536), (2**40, 0), (0, 4294967295)])
    def test_ids(self, root: Path, uid: int, gid: int) -> None:
        assert refused(root, tar(entry("x", uid=uid, gid=gid)), "id .* is not between").facts["entry"] == "'x'"

    @pytest.mark.parametrize("attribute", ["trusted.overlay.opaque", "trusted.x", "user.overlay.redirect"])
    def test_attributes_of_overlayfs(self, root: Path, attribute: str) -> None:
        refused(root, tar(entry("d", DIR, pax={f"SCHILY.xattr.{attribute}": "y"})), "attribute")

    def test_null_bytes(self, root: Path) -> None:
        refused(root, tar(entry("x", pax={"path": "a\0b"})), "null byte")
        refused(root, tar(entry("x", SYM, to="x", pax={"linkpath": "a\0b"})), "null byte")

    def test_root_that_is_no_directory(self, root: Path) -> None:
        refused(root, tar(entry("./", SYM, to="/etc")), "only a directory can be the root")

    def test_file_in_place_of_a_directory(self, root: Path) -> None:
        refused(root, tar(entry("d/x"), entry("d")), "directory stands in its place")

    def test_unknown_type(self, root: Path) -> None:
        refused(root, tar(entry("x", b"V"), form=tarfile.GNU_FORMAT), "unknown type")

    def test_messages_are_one_harmless_line(self, root: Path) -> None:
        error = refused(root, tar(entry("..\n\x1b[31m/../" + "x" * 1000)), "refused")
        assert error.message.isprintable() and len(error.message) < 400


class TestBounds:
    def test_bytes(self, root: Path) -> None:
        data = tar(entry("a", data=bytes(600)), entry("b", data=bytes(600)))
        assert refused(root, data, "more than 1000 bytes", ArchiveLimits(bytes=1000)).facts["entry"] == "'b'"
        assert not (root / "b").exists()

    def test_sparse_bomb(self, root: Path) -> None:
        data = tar(entry("x", data=b"0\n".ljust(512, b"\0"), pax={
            "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "big",
            "GNU.sparse.realsize": str(1 << 60)}))
        refused(root, data, "bytes of content")

    def test_entries_and_implied_directories(self, root: Path) -> None:
        refused(root, tar(*(entry(str(n)) for n in range(11))), "more than 10 entries", ArchiveLimits(entries=10))
        refused(root, tar(entry("/".join("abcdefghijk"))), "more than 10 entries", ArchiveLimits(entries=10))

    def test_depth_and_length(self, root: Path) -> None:
        into(root, tar(entry("d/" * 99 + "x")))
        refused(root, tar(entry("d/" * 100 + "x")), "100 directories deep")
        refused(root, tar(entry("x" * 256)), "longer than 255")
        refused(root, tar(entry("/".join(["y" * 200] * 21))), "longer than 4000")
        refused(root, tar(entry("x", SYM, to="t" * 4096)), "target")

    def test_header_bombs(self, root: Path) -> None:
        refused(root, tar(entry("x", pax={"comment": "c" * 20_000})), "bad size")
        refused(root, tar(entry("x", pax={"size": "-1"})), "negative|damaged")
        longname = tarfile.TarInfo("././@LongLink")
        longname.type, longname.size = tarfile.GNUTYPE_LONGNAME, 2
        chain = (longname.tobuf() + b"x\0".ljust(512, b"\0")) * 5000
        refused(root, chain + tar(entry("x")), "too large|damaged")

    def test_endless_map_of_a_sparse_file(self, root: Path) -> None:
        """tarfile keeps the whole map in memory: three megabytes of it here, any amount from a compressed archive."""
        header = bytearray(tar(entry("x", b"S"), form=tarfile.GNU_FORMAT)[:512])
        header[482] = 1  # the map goes on
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        more = (b"00000000001\0" * 42 + b"\x01").ljust(512, b"\0")
        refused(root, gzip.compress(bytes(header) + more * 6000), "too large")

    def test_negative_size_does_not_loop(self, root: Path) -> None:
        header = bytearray(tar(entry("x"), form=tarfile.GNU_FORMAT))
        header[124:136] = (-512).to_bytes(12, "big", signed=True)
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header[:512])
        refused(root, bytes(header), "bad size")

    def test_global_headers(self, root: Path) -> None:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", pax_headers={f"k{n}": "v" for n in range(100)}) as file:
            file.addfile(entry("x")[0])
        refused(root, out.getvalue(), "global headers")

    def test_dictionary_bombs(self, root: Path) -> None:
        filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 28}]
        refused(root, lzma.compress(tar(entry("x")), filters=filters), "cannot be read")
        compressor = zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters(window_log=29))
        with compressor.stream_writer(out := io.BytesIO(), closefd=False) as writer:
            writer.write(tar(entry("x")))
        refused(root, out.getvalue(), "cannot be read")


class TestDamaged:
    @pytest.mark.parametrize("how", COMPRESSIONS)
    def test_every_truncation(self, root: Path, how: str) -> None:
        whole = COMPRESSIONS[how](tar(entry("a", data=os.urandom(1500)), entry("b", SYM, to="a")))
        # Of a plain archive only the padding may be missing: one block of zeros is taken for the end, as GNU tar does.
        last = len(whole) if how != "plain" else 512 * 6
        for length in range(0, last, 61):
            refused(root, whole[:length], "cut off|cannot be read|damaged|ended before|end marker")
        if how != "plain":
            refused(root, whole[:-1], "cannot be read")

    @pytest.mark.parametrize("how", ["gzip", "xz", "zstd"])
    def test_flipped_bits(self, root: Path, how: str) -> None:
        whole = bytearray(COMPRESSIONS[how](tar(entry("a", data=os.urandom(5000)))))
        whole[len(whole) // 2] ^= 0x55
        refused(root, bytes(whole), "cannot be read|damaged")

    def test_damaged_header_is_not_the_end(self, root: Path) -> None:
        data = bytearray(tar(entry("a"), entry("b")))
        data[700] ^= 1
        refused(root, bytes(data), "damaged")

    @pytest.mark.parametrize("data", [b"", b"PK\x03\x04" + bytes(2000), b"<html>" * 400])
    def test_no_archive(self, root: Path, data: bytes) -> None:
        refused(root, data, "cut off|not tar")

    @pytest.mark.parametrize("data", [bytes(10240), gzip.compress(bytes(1024))])
    def test_empty_archive(self, root: Path, data: bytes) -> None:
        assert into(root, data) == ArchiveSummary()

    def test_stream_that_fails(self, root: Path) -> None:
        class Broken(io.RawIOBase):
            def read(self, size: int = -1) -> bytes:
                raise ConnectionResetError("the line went dead")

        with pytest.raises(TemplateUnusable, match="went dead"):
            unpack(Broken(), os.open(root, os.O_RDONLY))  # type: ignore[arg-type]


@pytest.mark.parametrize(("code", "kind"), [(28, NoSpace), (122, NoSpace), (5, SystemFailure)])
def test_failing_writes(root: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception]) -> None:
    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(kind) as caught:
        into(root, tar(entry("a", data=b"x")))
    assert caught.value.facts["entry"] == "'a'"  # type: ignore[attr-defined]
    monkeypatch.undo()
    monkeypatch.setattr(archive_module, "syncfs", fail)
    with pytest.raises(kind):
        into(root, tar(entry("a", data=b"x")))


def test_no_descriptor_leaks(root: Path) -> None:
    before = os.listdir("/proc/self/fd")
    into(root, tar(entry("a/b", data=b"x"), entry("p", FIFO), entry("h", HARD, to="a/b")))
    refused(root, tar(entry("a", SYM, to="b"), entry("a/c")), "directory")
    assert len(os.listdir("/proc/self/fd")) == len(before)


PARTS = st.sampled_from(["a", "b", "..", ".", "", "canary", "root", "\udcff"])
NAMES = st.lists(PARTS, min_size=1, max_size=4).map("/".join)
KINDS = st.sampled_from([FILE, DIR, SYM, HARD, FIFO, CHR, b"7", b"L"])


@pytest.fixture(scope="module")
def arena() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def snapshot(top: Path) -> list[tuple[object, ...]]:
    return [
        (path, info.st_mode, info.st_nlink, info.st_mtime_ns, info.st_ino, path.read_bytes() if path.is_file() else b"")
        for path in sorted([top, *top.rglob("*")]) for info in [path.lstat()]
    ]


@settings(max_examples=300)
@given(members=st.lists(st.tuples(NAMES, KINDS, NAMES), max_size=8))
def test_nothing_outside_is_ever_touched(arena: Path, members: list[tuple[str, bytes, str]]) -> None:
    with tempfile.TemporaryDirectory(dir=arena) as place:
        canary, root = Path(place) / "canary", Path(place) / "root"
        (canary / "a").mkdir(parents=True)
        (canary / "b").write_bytes(b"safe")
        root.mkdir()
        before = snapshot(canary)
        entries = [entry("b", SYM, to="../canary"), entry("canary", SYM, to=str(canary))]
        for name, kind, to in members:
            entries.append(entry(name, kind, b"evil" if kind == FILE else b"", to=to or "a", mode=0o777))
        with contextlib.suppress(TemplateUnusable):
            into(root, tar(*entries))
        assert snapshot(canary) == before
        assert sorted(os.listdir(place)) == ["canary", "root"]
