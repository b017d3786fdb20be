# SPDX-License-Identifier: GPL-2.0-or-later
"""The file of `vemgr export`: a VE as one stream, written and read without seeking.

    skippable frame  the manifest, JSON: who it is, and which parts follow
    zstd frame       one for each part, a tar archive: the template's tree if it is in the file, then the VE's writes
                     to each tree of its template, as the layer of an overlay
    skippable frame  SHA-256 of all bytes before it

`zstd -dc FILE | tar -tvi -f -` lists it: zstd passes over skippable frames (RFC 8878, 3.1.2).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import struct
from collections.abc import Iterator
from typing import BinaryIO, cast

import msgspec
import zstandard

from vemgr.core.errors import ExportUnusable

FORMAT = 1
_MANIFEST, _SUM = 0x184D2A50, 0x184D2A51  # two of the sixteen magic numbers of skippable frames
_HEAD = struct.Struct("<II")
_MOST_MANIFEST = 16 << 10  # it goes through a pipe at once, perhaps three times as long: see `runtime.file_jobs`
_CHUNK = 256 << 10
_BITE = 1 << 10  # of compressed data: a block takes four bytes and gives 128 KiB at most, so at most 32 MiB at once
_WINDOW = 128 << 20


class Manifest(msgspec.Struct, kw_only=True, frozen=True, rename="kebab"):
    """`settings`: texts, as in a definition. `trees`: how many parts have the VE's own files. `template_inside`:
    whether the first part is the template."""

    format: int
    name: str
    created: str
    template: str
    template_digest: str
    template_inside: bool
    trees: int
    settings: dict[str, str]
    links: str = ""


def encode(manifest: Manifest) -> bytes:
    return framed(msgspec.json.format(msgspec.json.encode(manifest), indent=1))


def framed(content: bytes) -> bytes:
    if len(content) > _MOST_MANIFEST:
        raise OSError(errno.E2BIG, "its definition is too long")
    return _HEAD.pack(_MANIFEST, len(content)) + content


class Writer:
    """To a descriptor that stays open. Raises `OSError`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._sum = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._sum.update(data)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._fd, rest):]
        return len(data)

    @contextlib.contextmanager
    def part(self) -> Iterator[BinaryIO]:
        compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
        with compressor.stream_writer(cast(BinaryIO, self), closefd=False) as stream:
            yield cast(BinaryIO, stream)

    def flush(self) -> None:
        """Nothing is kept back; zstandard asks."""

    def end(self) -> None:
        digest = self._sum.digest()
        self.write(_HEAD.pack(_SUM, len(digest)) + digest)


class Reader:
    """From a descriptor, of which not more is read than what has been asked for, until the first part. Raises
    `ExportUnusable`."""

    def __init__(self, fd: int, sum_so_far: bytes = b"") -> None:
        self._fd = fd
        self._ahead = b""
        self._sum = hashlib.sha256(sum_so_far)

    def manifest(self) -> str:
        """Its text, which is one."""
        head = self._exactly(_HEAD.size)
        magic, size = _HEAD.unpack(head)
        if magic != _MANIFEST or not 0 < size <= _MOST_MANIFEST:
            raise ExportUnusable("this is not a file of 'vemgr export'",
                                 remedy="'vemgr template import' takes archives of a tree of files")
        try:
            text = self._exactly(size)
            number = msgspec.json.decode(text).get("format")
            if number != FORMAT:
                raise ExportUnusable(f"the file has format {number!r}, this vemgr reads {FORMAT}",
                                     remedy="import it with the vemgr that has written it, or a later one")
            msgspec.json.decode(text, type=Manifest)
            return text.decode()
        except (msgspec.MsgspecError, AttributeError, UnicodeDecodeError, RecursionError) as error:
            raise ExportUnusable(f"the file is damaged: its manifest cannot be read: {error}") from None

    @contextlib.contextmanager
    def part(self, what: str) -> Iterator[BinaryIO]:
        """A part's content, which is to be read to its end."""
        frame = _Frame(self, what)
        yield cast(BinaryIO, frame)
        while frame.read(_CHUNK):
            pass

    def end(self) -> None:
        """Compare the sum, and see that nothing follows."""
        wanted = self._sum.digest()
        magic, size = _HEAD.unpack(self._exactly(_HEAD.size))
        if magic != _SUM or size != len(wanted) or self._exactly(size) != wanted:
            raise ExportUnusable("the file is damaged: its checksum does not fit", remedy="fetch it again")
        if self.bite():
            raise ExportUnusable("the file is damaged: something follows after its end", remedy="fetch it again")

    def bite(self) -> bytes:
        """Some compressed bytes, b"" at the end."""
        if not self._ahead:
            self._ahead = os.read(self._fd, _CHUNK)
        taken, self._ahead = self._ahead[:_BITE], self._ahead[_BITE:]
        return taken

    def used(self, data: bytes, unused: bytes) -> None:
        self._sum.update(data[:len(data) - len(unused)])
        self._ahead = unused + self._ahead

    def _exactly(self, size: int) -> bytes:
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        while len(data) < size:
            more = os.read(self._fd, size - len(data))
            if not more:
                raise ExportUnusable("the file is cut off", remedy="fetch it again")
            data += more
        self._sum.update(data)
        return data


class _Frame:
    """One zstd frame as a stream."""

    def __init__(self, reader: Reader, what: str) -> None:
        self._reader, self._what = reader, what
        self._decoder = zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompressobj()
        self._output = memoryview(b"")

    def read(self, size: int, /) -> bytes:
        while not self._output and not self._decoder.eof:
            data = self._reader.bite()
            if not data:
                raise ExportUnusable(f"the file is cut off in {self._what}", remedy="fetch it again", part=self._what)
            try:
                self._output = memoryview(self._decoder.decompress(data))
            except zstandard.ZstdError as error:
                raise ExportUnusable(f"the file is damaged in {self._what}: {error}", remedy="fetch it again",
                                     part=self._what) from None
            self._reader.used(data, self._decoder.unused_data if self._decoder.eof else b"")
        taken, self._output = self._output[:size], self._output[size:]
        return bytes(taken)
