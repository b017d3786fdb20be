# SPDX-License-Identifier: GPL-2.0-or-later
"""Archives: whatever the bytes are, nothing lands outside, the limits hold, and an error is one of ours."""

import gzip
import io
import lzma
import os
import shutil
import struct
import tarfile
import tempfile
from pathlib import Path

import zstandard

from tests.fuzz.engine import mutated
from vemgr.core.errors import NoSpace, SystemFailure, TemplateUnusable
from vemgr.kernel.removal import remove_tree
from vemgr.templates.archive import ArchiveLimits, unpack
from vemgr.templates.facts import describe_tree

LIMITS = ArchiveLimits(bytes=1 << 20, entries=200, path_bytes=500, depth=20)
_NAMES = [
    "a",
    "b",
    "a/b",
    "../x",
    "/etc/passwd",
    "./",
    "..",
    "a/../b",
    "canary",
    "../canary/kept",
    "link",
    "link/x",
    "d",
    "d/e",
    "x" * 100,
    "x" * 256,
    "\udcff",
    "a\nb",
    "usr/bin",
    "bin/sh",
    "etc/os-release",
    "sbin/init",
    "",
    ".wh.a",
]
_TYPES = b"0123456 7LKxgSDMNVX\x00"
_PAX = [
    "path",
    "linkpath",
    "size",
    "uid",
    "gid",
    "mtime",
    "uname",
    "hdrcharset",
    "GNU.sparse.major",
    "GNU.sparse.minor",
    "GNU.sparse.name",
    "GNU.sparse.realsize",
    "GNU.sparse.map",
    "GNU.sparse.numblocks",
    "GNU.sparse.size",
    "GNU.sparse.offset",
    "SCHILY.xattr.user.x",
    "SCHILY.xattr.security.capability",
    "SCHILY.xattr.trusted.overlay.opaque",
    "SCHILY.xattr.user.overlay.redirect",
    "SCHILY.acl.access",
    "comment",
]
_VALUES = [
    "",
    "0",
    "-1",
    "1",
    "100",
    "4096",
    str(1 << 40),
    str(1 << 70),
    "1e9",
    "nan",
    "x",
    "../canary/kept",
    "/etc",
    "BINARY",
    "0,1,2,3",
    "1,0" * 50,
    "\udcff",
    "a" * 300,
    "9" * 5000,
    "1",
    "a/b",
]
# offset, length of the fields of a header
_FIELDS = (
    (0, 100),
    (100, 8),
    (108, 8),
    (116, 8),
    (124, 12),
    (136, 12),
    (156, 1),
    (157, 100),
    (257, 8),
    (345, 155),
    (386, 24),
    (482, 1),
    (483, 12),
)
_WORDS = [
    b"\0" * 512,
    b"\0" * 1024,
    b"ustar\x0000",
    b"ustar  \0",
    b"\x80" + bytes(11),
    b"\xff" * 12,
    b"7777777\0",
    b"-1\0",
    b"../",
    b"/",
    b"20 path=../x\n",
    b"30 mtime=1e400\n",
    b"9999999999 a=b\n",
    b"0 x=y\n",
    b"x",
]


def entry(name, kind=b"0", data=b"", to="", pax=None):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.pax_headers = kind, to, len(data), pax or {}
    info.uid, info.gid, info.mode = os.getuid(), os.getgid(), 0o755
    return info, data


def pack(entries, form):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as file:
        for info, data in entries:
            file.addfile(info, io.BytesIO(data))
    return out.getvalue()


class Archives:
    name = "archive"

    def __init__(self):
        # In memory, as every input makes and removes some files.
        self._top = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
        (self._top / "canary").mkdir()
        (self._top / "canary/kept").write_text("safe")
        self._before = self._outside()

    def corpus(self):
        sparse = b"1\n8192\n4\n".ljust(512, b"\0") + b"tail"
        entries = [
            entry("./", b"5"),
            entry("bin", b"5"),
            entry("bin/sh", data=b"\x7fELF" + bytes(60)),
            entry("usr", b"2", to="bin"),
            entry("hard", b"1", to="bin/sh"),
            entry("pipe", b"6"),
            entry("dev/null", b"3"),
            entry("n" * 90 + "/" + "n" * 90, data=b"long"),
            entry("etc/os-release", data=b"ID=debian\nVERSION_ID=12\n"),
            entry("sbin/init", b"2", to="../bin/sh"),
        ]
        special = [
            *entries,
            entry("x", pax={"SCHILY.xattr.user.a": "b", "mtime": "1.5", "comment": "c" * 600}),
            entry(
                "GNUSparseFile.1/big",
                data=sparse,
                pax={
                    "GNU.sparse.major": "1",
                    "GNU.sparse.minor": "0",
                    "GNU.sparse.name": "big",
                    "GNU.sparse.realsize": "8196",
                },
            ),
        ]
        plain = [pack(entries, form) for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT)]
        plain.append(pack(special, tarfile.PAX_FORMAT))
        return [*plain, *(compress(plain[2]) for compress in (gzip.compress, lzma.compress, _zstd))]

    def mutate(self, rng, corpus):
        plain = [data for data in corpus if data[257:262] == b"ustar"]
        kind = rng.randrange(10)
        if kind == 0:
            return mutated(rng, corpus, _WORDS)
        if kind < 4:
            data = pack(
                [self._entry(rng) for _ in range(rng.randrange(1, 9))],
                rng.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)),
            )
        else:
            data = self._blocks(rng, plain)
        if kind in (3, 9):
            data = rng.choice((gzip.compress, lzma.compress, _zstd))(data)
            if rng.random() < 0.3:
                data = mutated(rng, [data], _WORDS)
        return data

    def _entry(self, rng):
        kind = bytes([rng.choice(_TYPES)])
        data = rng.randbytes(rng.choice((0, 1, 600))) if kind in b"07LKxgS" else b""
        pax = {rng.choice(_PAX): rng.choice(_VALUES) for _ in range(rng.choice((0, 0, 1, 4)))}
        return entry(rng.choice(_NAMES), kind, data, to=rng.choice(_NAMES), pax=pax)

    def _blocks(self, rng, plain):
        data = rng.choice(plain)
        blocks = [data[at : at + 512] for at in range(0, len(data), 512)]
        for _ in range(rng.choice((1, 2, 4))):
            at = rng.randrange(len(blocks))
            change = rng.randrange(6)
            if change < 3:
                blocks[at] = self._header(rng, blocks[at])
            elif change == 3:
                blocks.insert(rng.randrange(len(blocks)), blocks[at])
            elif change == 4 and len(blocks) > 1:
                del blocks[at]
            else:
                other = rng.choice(plain)
                start = rng.randrange(max(1, len(other) // 512)) * 512
                blocks[at:at] = [other[start : start + 512]]
        return b"".join(blocks)[: None if rng.random() < 0.9 else rng.randrange(5000)]

    def _header(self, rng, block):
        """A header with another value in one of its fields, and its checksum."""
        block = bytearray(block.ljust(512, b"\0"))
        at, length = rng.choice(_FIELDS)
        value = rng.choice(
            (
                rng.choice(_NAMES).encode("utf-8", "surrogateescape"),
                bytes([rng.choice(_TYPES)]),
                b"%o\0" % rng.getrandbits(33),
                b"\x80" + rng.randbytes(11),
                b"\xff" * 12,
                b"",
                b" ",
                b"-1",
                b"9",
                b"\0",
            )
        )
        block[at : at + length] = value[:length].ljust(length, b"\0")
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        return bytes(block)

    def check(self, data):
        root = self._top / "root"
        root.mkdir()
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            summary = unpack(io.BytesIO(data), fd, limits=LIMITS)
            outcome = f"good {summary.devices_skipped > 0} {summary.xattrs_dropped > 0} {describe_tree(fd)}"
        except (TemplateUnusable, NoSpace, SystemFailure) as error:
            assert error.message.isprintable() and len(error.message) < 1000, "a message of one line"
            assert not isinstance(error, SystemFailure) or "entry" in error.facts
            outcome = str(error)
        finally:
            os.close(fd)
        self._within_limits(root)
        remove_tree(str(root))
        assert self._outside() == self._before, "something outside has changed"
        return outcome

    def _within_limits(self, root):
        count, size = 0, 0
        for directory, names, files in os.walk(os.fsencode(root)):
            count += len(names) + len(files)
            for name in files:
                info = os.lstat(os.path.join(directory, name))
                size += info.st_size // info.st_nlink if not os.path.islink(os.path.join(directory, name)) else 0
        assert count <= LIMITS.entries + LIMITS.depth, count  # one entry may imply directories
        assert size <= LIMITS.bytes, size

    def _outside(self):
        return [
            (path, *os.lstat(path)[:9])
            for path in (
                os.path.join(directory, name)
                for directory, names, files in os.walk(self._top)
                if "/root" not in directory
                for name in (*names, *files)
                if name != "root"
            )
        ]

    def finish(self):
        """Every input was checked whole."""

    def close(self):
        shutil.rmtree(self._top)


def _zstd(data):
    frame = zstandard.ZstdCompressor(write_checksum=True).compress(data)
    return struct.pack("<II", 0x184D2A50, 4) + b"skip" + frame
