# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads a tar stream that may be compressed, without seeking, without trusting it, in bounded memory.

Bounds matter because root's daemon does the reading: a compressed archive of some kilobytes can ask for any amount
of output, and the headers of xz and zstd can ask for gigabytes of dictionary.
"""

from __future__ import annotations

import contextlib
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol, cast

import zstandard

from vemgr.core.errors import TemplateUnusable

# What `xz -9` (65 MiB) and `zstd --long` (128 MiB) need; anything above is made to exhaust memory.
_DICTIONARY_BOUND = 128 << 20
_OUTPUT = 256 << 10

_GZIP = b"\x1f\x8b"
_XZ = b"\xfd7zXZ\x00"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"  # after one byte 0x50-0x5f; pzstd begins with such a frame


class Reader(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Decoder(Protocol):
    """What lzma and our zstd adapter have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    @property
    def needs_input(self) -> bool: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Zstd:
    needs_input = True

    def __init__(self) -> None:
        self._frame = zstandard.ZstdDecompressor(max_window_size=_DICTIONARY_BOUND).decompressobj()

    @property
    def eof(self) -> bool:
        return self._frame.eof

    @property
    def unused_data(self) -> bytes:
        return self._frame.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._frame.decompress(data)


class _Replay:
    """The stream, with its first bytes put back after a look at them."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.head = b""
        while len(self.head) < 6 and (more := stream.read(6 - len(self.head))):
            self.head += more
        self._pending = self.head

    def read(self, size: int = -1, /) -> bytes:
        if self._pending:
            taken, self._pending = self._pending[:size], self._pending[size:]
            return taken
        return self._stream.read(size)


class _Frames:
    """Frames of a compressed format one after the other. Ends in the midst of a frame are errors, not ends."""

    def __init__(self, raw: Reader, new: Callable[[], _Decoder], chunk: int) -> None:
        self._raw, self._new, self._chunk = raw, new, chunk
        self._decoder: _Decoder | None = None
        self._input = b""
        self._output = b""

    def read(self, size: int, /) -> bytes:
        while not self._output:
            if self._decoder is None and not self._next_frame():
                return b""
            self._decode()
        taken, self._output = self._output[:size], self._output[size:]
        return taken

    def _next_frame(self) -> bool:
        # xz may pad with zeros between and after its streams; no frame of either format begins with one.
        self._input = self._input.lstrip(b"\0")
        while not self._input:
            data = self._raw.read(self._chunk)
            if not data:
                return False
            self._input = data.lstrip(b"\0")
        self._decoder = self._new()
        return True

    def _decode(self) -> None:
        assert self._decoder is not None
        if self._decoder.needs_input and not self._input:
            self._input = self._raw.read(self._chunk)
            if not self._input:
                raise EOFError("the compressed data is cut off")
        self._output = self._decoder.decompress(self._input, _OUTPUT)
        self._input = b""
        if self._decoder.eof:
            self._input, self._decoder = self._decoder.unused_data, None


def _new_xz() -> _Decoder:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_DICTIONARY_BOUND)


def _decompressed(stream: BinaryIO) -> Reader:
    replay = _Replay(stream)
    if replay.head.startswith(_GZIP):
        return gzip.GzipFile(fileobj=cast(BinaryIO, replay), mode="rb")  # it only calls read()
    if replay.head.startswith(_XZ):
        return _Frames(replay, _new_xz, 64 << 10)
    if replay.head.startswith(_ZSTD) or (replay.head[1:4] == _ZSTD_SKIPPABLE and replay.head[0] >> 4 == 5):
        # zstandard's decoder that knows the end of a frame has no bound on its output. A block takes at least four
        # bytes and gives at most 128 KiB, so a KiB of input gives at most 32 MiB.
        return _Frames(replay, _Zstd, 1 << 10)
    return replay


class TarSource:
    """The decompressed stream, for tarfile: every failure to read is TemplateUnusable.

    `allowance`: bytes that may still be read, None for any number. The caller sets it before tarfile parses
    headers, because tarfile reads a header of any size into memory.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.allowance: int | None = None
        with _read_failures():
            self._reader = _decompressed(stream)

    def read(self, size: int, /) -> bytes:
        if self.allowance is not None:
            if self.allowance <= 0:
                raise TemplateUnusable("the archive is refused: a header in it is too large")
            self.allowance -= size
        with _read_failures():
            return self._reader.read(size)


@contextlib.contextmanager
def _read_failures() -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError) as why:
        raise TemplateUnusable(f"the archive cannot be read: {why}", remedy="fetch it again") from why
