# SPDX-License-Identifier: GPL-2.0-or-later
"""The upper layer of an overlay as a tar stream: with whiteouts, opaque and redirected directories, ACLs, and holes."""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, cast

from vemgr.files.packing import Packer
from vemgr.templates.archive import ArchiveLimits
from vemgr.templates.archive_entry import LAYER_NOTES, shown

# A VE that could be exported must be one that can be imported: these are what both sides keep to.
LAYER_LIMITS = ArchiveLimits(bytes=1 << 44, entries=50_000_000)
_MOST_HEADER = 12 << 10  # bytes of names and attributes; `archive` takes 16 KiB with what tar adds
_MOST_SEGMENTS = 10_000  # of a sparse file; where there are more, the rest is written with its holes
# Beyond it tar needs a header of its own for the size, which Python's reader takes for that of the file.
_MOST_SPARSE = 8 << 30
_BLOCK = 512


class LayerPacker(Packer):
    # So they keep their times, and what is made in them does not inherit their ACLs.
    directories_last = True

    def __init__(self, target: BinaryIO) -> None:
        super().__init__(target, keep_fifos=True, attributes=("user.", "security.capability", *LAYER_NOTES))

    def _other(self, info: os.stat_result, name: str) -> None:
        """A whiteout; or a socket, which nobody listens on any more. Without an entry in its place what the template
        has by that name would come to light again."""
        if stat.S_ISSOCK(info.st_mode) or (stat.S_ISCHR(info.st_mode) and info.st_rdev == 0):
            self._add(self._entry(info, name, tarfile.CHRTYPE))
        else:
            super()._other(info, name)

    def _attributes_of(self, fd: int) -> Iterator[tuple[str, str]]:
        for name, value in super()._attributes_of(fd):
            if not name.startswith("SCHILY.xattr.user.overlay."):  # a VE may note what it likes; nobody asks for these
                yield name, value

    def _add(self, entry: tarfile.TarInfo, content: BinaryIO | None = None) -> None:
        texts = (entry.name, entry.linkname, *entry.pax_headers, *entry.pax_headers.values())
        if sum(len(text.encode("utf-8", "surrogateescape")) for text in texts) > _MOST_HEADER:
            raise OSError(errno.E2BIG, "its names and attributes are too long for an archive", shown(entry.name))
        super()._add(entry, content)

    def _content(self, file: BinaryIO, entry: tarfile.TarInfo, info: os.stat_result) -> None:
        segments = _segments(file.fileno(), info.st_size) if info.st_blocks * _BLOCK < info.st_size else []
        stored = sum(size for _, size in segments)
        if not segments or stored >= min(info.st_size, _MOST_SPARSE):
            super()._content(file, entry, info)
            return
        lines = [len(segments), *(number for segment in segments for number in segment)]
        text = b"".join(b"%d\n" % number for number in lines)
        text += bytes(-len(text) % _BLOCK)
        # "GNU.sparse" 1.0: the map is the beginning of the content (GNU tar manual, "Storing Sparse Files").
        entry.pax_headers = {
            **entry.pax_headers, "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": entry.name,
            "GNU.sparse.realsize": str(info.st_size)}
        entry.size = len(text) + stored
        self._add(entry, cast(BinaryIO, _Segments(file, text, segments)))


def _segments(fd: int, size: int) -> list[tuple[int, int]]:
    """Offset and length of what is not a hole. The last one is empty if the file ends in a hole, as tar wants it."""
    found: list[tuple[int, int]] = []
    position = 0
    while position < size:
        try:
            begin = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break
        end = size if len(found) == _MOST_SEGMENTS else min(os.lseek(fd, begin, os.SEEK_HOLE), size)
        found.append((begin, end - begin))
        position = end
    if position < size or not found:
        found.append((size, 0))
    return found


class _Segments:
    """The map, then what the segments hold; zeros for what is not there any more."""

    def __init__(self, file: BinaryIO, text: bytes, segments: list[tuple[int, int]]) -> None:
        self._file, self._text, self._rest = file, text, list(reversed(segments))

    def read(self, size: int) -> bytes:
        data = bytearray(self._text[:size])
        self._text = self._text[size:]
        while len(data) < size and self._rest:
            offset, left = self._rest.pop()
            wanted = min(left, size - len(data))
            chunk = os.pread(self._file.fileno(), wanted, offset) or bytes(wanted)
            data += chunk
            if left > len(chunk):
                self._rest.append((offset + len(chunk), left - len(chunk)))
        return bytes(data) + bytes(size - len(data))
