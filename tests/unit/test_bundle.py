# SPDX-License-Identifier: GPL-2.0-or-later
"""The file of `vemgr export`: what is written is read, and what is damaged anywhere is refused."""

import os
import struct

import pytest

from vemgr.core.errors import ExportUnusable
from vemgr.files.bundle import Manifest, Reader, Writer, encode, framed

PARTS = {"the template": b"template" * 9000, "the VE's files": os.urandom(3000) + bytes(300_000)}
MANIFEST = Manifest(format=1, name="web", created="now", template="bb", template_digest="sha256:1",
                    template_inside=True, trees=1, settings={"description": "\N{SNOWMAN}"})


@pytest.fixture
def file(tmp_path):
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    writer = Writer(fd)
    writer.write(encode(MANIFEST))
    for content in PARTS.values():
        with writer.part() as stream:
            stream.write(content)
    writer.end()
    os.close(fd)
    return tmp_path / "file"


def read(path):
    """As two processes do it: one reads the manifest, another what follows."""
    fd = os.open(path, os.O_RDONLY)
    try:
        text = Reader(fd).manifest()
        assert os.lseek(fd, 0, os.SEEK_CUR) == len(framed(text.encode())), "no more than was asked for"
        reader, found = Reader(fd, framed(text.encode())), {}
        for what in PARTS:
            with reader.part(what) as stream:
                found[what] = b"".join(iter(lambda: stream.read(1000), b""))
        reader.end()
        return text, found
    finally:
        os.close(fd)


def test_round_trip(file):
    text, found = read(file)
    assert '"name": "web"' in text and found == PARTS


def test_cut_off_anywhere(file):
    whole = file.read_bytes()
    for size in {0, 1, 7, 8, 9, *range(50, len(whole), 97), len(whole) - 33, len(whole) - 1}:
        file.write_bytes(whole[:size])
        with pytest.raises(ExportUnusable, match="cut off"):
            read(file)


def test_damaged_anywhere(file):
    whole = file.read_bytes()
    for place in {*range(0, 60, 3), *range(60, len(whole), 61), len(whole) - 33, len(whole) - 1}:
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1:])
        with pytest.raises(ExportUnusable):
            read(file)
    file.write_bytes(whole + b"\0")
    with pytest.raises(ExportUnusable, match="something follows"):
        read(file)


@pytest.mark.parametrize(("text", "why"), [
    (b"{}", "format None"), (b'{"format": 2}', "format 2"), (b"[1]", "manifest"), (b'{"format": 1}', "manifest"),
    (b"\xff", "manifest"), (b"[" * 16000, "manifest")])
def test_manifests(file, text, why):
    file.write_bytes(framed(text))
    with pytest.raises(ExportUnusable, match=why):
        read(file)


def test_no_bundle(file):
    for content in (b"\x28\xb5\x2f\xfd" + bytes(100), struct.pack("<II", 0x184D2A50, 1 << 31) + bytes(99)):
        file.write_bytes(content)
        with pytest.raises(ExportUnusable, match="not a file of"):
            read(file)
