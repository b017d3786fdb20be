# SPDX-License-Identifier: GPL-2.0-or-later
"""Unpacks an untrusted tar archive, as root, into a directory descriptor and nowhere else.

tarfile parses, this module judges each entry, `tree_writer` puts it in place. What is kept: numeric owners, modes
with setuid bits, times, hard links, symlinks, fifos, `user.*` attributes and file capabilities. What is left out,
and counted: device nodes (a VE has its own /dev), ACLs and all other attributes.

A file that is sparse in the archive is written with holes, but counted at its apparent size: the holes cost nothing
here, yet the first program that copies the file would pay for them.
"""

from __future__ import annotations

import errno
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

from vemgr.core.errors import NoSpace, SystemFailure, TemplateUnusable, VemgrError
from vemgr.kernel.syncfs import syncfs
from vemgr.templates.archive_entry import checked_path, checked_target, metadata, shown
from vemgr.templates.compression import TarSource
from vemgr.templates.tree_writer import EntryError, EntryPath, Metadata, TreeWriter

# Owner, mode, time and attributes that an entry gets, and how many attributes were dropped.
Describe = Callable[[tarfile.TarInfo], tuple[Metadata, int]]

_CHUNK = 256 << 10
_BLOCK = 512
# tarfile of Python before 3.11.10 takes time that grows with the square of a pax header (CVE-2024-6232): 0.3 s here.
_LONG_HEADER_BOUND = 16 << 10
# All that one entry may bring before its content: its headers, the map of a sparse file, tarfile's reading ahead.
_HEADERS_BOUND = 2 << 20
_GLOBAL_HEADERS_BOUND = 64
# Archives end in zeros up to a multiple of the tape's record; what follows is read only to check the checksum.
_TRAILER_BOUND = 64 << 20

_LONG_HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME,
                 tarfile.GNUTYPE_LONGLINK)


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """Bounds for one archive: `bytes` of content (apparent size), `entries` (implied directories count),
    bytes in a path, directories in a path (removal holds one descriptor for each level)."""

    bytes: int = 64 << 30
    entries: int = 2_000_000
    path_bytes: int = 4000
    depth: int = 100


DEFAULT_LIMITS = ArchiveLimits()


@dataclass(slots=True)
class ArchiveSummary:
    """What was unpacked: `bytes` of content (apparent size), `entries`; and what was left out on purpose."""

    bytes: int = 0
    entries: int = 0
    devices_skipped: int = 0
    xattrs_dropped: int = 0


def unpack(
    stream: BinaryIO,
    root_fd: int,
    *,
    limits: ArchiveLimits = DEFAULT_LIMITS,
    progress: Callable[[int], None] | None = None,
    describe: Describe = metadata,
    whiteouts: bool = False,
) -> ArchiveSummary:
    """Unpacks `stream` (tar, or tar in gzip, xz or zstd; never sought) below `root_fd`, and syncs the file system.

    Directories that no entry describes belong to the caller and have mode 0755. `progress` is called with the bytes
    of content so far; `describe` tells what an entry gets of what it says of itself. `whiteouts`: make those of
    overlayfs, which are device nodes that are no device.

    Raises TemplateUnusable (the archive is damaged, too large or breaks a rule; the fact `entry`
    names the culprit), NoSpace, SystemFailure; what was unpacked until then is left to the caller to remove.
    """
    source = TarSource(stream)
    with TreeWriter(root_fd) as writer:
        unpacking = _Unpacking(source, writer, limits, progress or (lambda _: None), describe, whiteouts)
        unpacking.run()
    try:
        syncfs(root_fd)
    except OSError as error:
        raise _write_failure(error, "the whole tree") from error
    return unpacking.summary


class _Header(tarfile.TarInfo):
    """Makes tarfile strict: it takes a damaged header or a missing end for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        if len(buf) < _BLOCK:
            raise TemplateUnusable("the archive is cut off: its end marker is missing", remedy="fetch it again")
        if buf.count(0) == _BLOCK:
            return super().frombuf(buf, encoding, errors)  # raises what tarfile takes for the end
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as why:
            raise TemplateUnusable(f"the archive is damaged, or not tar, gzip, xz or zstd: {why}") from why
        bound = _LONG_HEADER_BOUND if header.type in _LONG_HEADERS else None
        # A negative size makes tarfile loop for ever (CVE-2025-8194).
        if header.size < 0 or (bound is not None and header.size > bound):
            raise TemplateUnusable(f"the archive is refused: a header for {shown(header.name)} has a bad size")
        return header


class _Unpacking:
    def __init__(
        self, source: TarSource, writer: TreeWriter, limits: ArchiveLimits, progress: Callable[[int], None],
        describe: Describe, whiteouts: bool,
    ) -> None:
        self.summary = ArchiveSummary()
        self._whiteouts = whiteouts
        self._describe = describe
        self._source, self._writer, self._limits, self._progress = source, writer, limits, progress
        self._devices: set[EntryPath] = set()

    def run(self) -> None:
        self._source.allowance = _HEADERS_BOUND
        with self._open() as self._tar:
            while (member := self._next()) is not None:
                try:
                    self._entry(member)
                except EntryError as why:
                    raise _refusal(member.name, why) from why
                except OSError as error:
                    raise _write_failure(error, shown(member.name)) from error
        self._source.allowance = _TRAILER_BOUND
        while self._source.read(_CHUNK):
            pass

    def _open(self) -> tarfile.TarFile:
        with _Parsing():
            return tarfile.open(
                fileobj=cast(BinaryIO, self._source), mode="r|", bufsize=_CHUNK, tarinfo=_Header, encoding="utf-8",
                errors="surrogateescape",
            )

    def _next(self) -> tarfile.TarInfo | None:
        self._source.allowance = _HEADERS_BOUND
        with _Parsing():
            member = self._tar.next()
        self._source.allowance = None
        self._tar.members = []  # type: ignore[attr-defined]  # or tarfile would remember every one
        # Global headers add up and are copied for every entry.
        if len(self._tar.pax_headers) > _GLOBAL_HEADERS_BOUND:
            raise TemplateUnusable("the archive is refused: it has too many global headers")
        return member

    def _entry(self, member: tarfile.TarInfo) -> None:
        path = checked_path(member.name, self._limits.path_bytes, self._limits.depth)
        if self._whiteouts and member.ischr() and (member.devmajor, member.devminor) == (0, 0):
            self._writer.whiteout(path)
            self._count()
            return
        if member.isblk() or member.ischr():
            self.summary.devices_skipped += 1
            self._devices.add(path)
            return
        meta, dropped = self._describe(member)
        self.summary.xattrs_dropped += dropped
        if member.isdir():
            self._writer.directory(path, meta)
        elif member.isreg():
            self._reserve(member)
            self._writer.file(path, meta, self._content(member), sparse=member.issparse())
        elif member.issym():
            self._writer.symlink(path, checked_target(member.linkname), meta)
        elif member.islnk():
            self._hard_link(path, member.linkname)
        elif member.isfifo():
            self._writer.fifo(path, meta)
        else:
            raise EntryError(f"it is of an unknown type {member.type!r}")
        self._count()

    def _count(self) -> None:
        self.summary.entries = self._writer.made
        if self.summary.entries > self._limits.entries:
            raise EntryError(f"the archive has more than {self._limits.entries} entries")

    def _hard_link(self, path: EntryPath, linkname: str) -> None:
        target = checked_path(linkname, self._limits.path_bytes, self._limits.depth)
        if target in self._devices and not self._writer.exists(target):
            self.summary.devices_skipped += 1
            self._devices.add(path)
        else:
            self._writer.hard_link(path, target)

    def _reserve(self, member: tarfile.TarInfo) -> None:
        if member.size < 0:  # a pax header may say so, after the header was checked
            raise EntryError("its size is negative")
        if self.summary.bytes + member.size > self._limits.bytes:
            raise EntryError(f"the archive has more than {self._limits.bytes} bytes of content")

    def _content(self, member: tarfile.TarInfo) -> Iterator[bytes]:
        with _Parsing():
            file = self._tar.extractfile(member)
        assert file is not None
        left = member.size
        while left > 0:
            with _Parsing():
                chunk = file.read(min(_CHUNK, left))
            if not chunk:
                raise EntryError("the archive is cut off in the midst of it")
            left -= len(chunk)
            self.summary.bytes += len(chunk)
            self._progress(self.summary.bytes)
            yield chunk


class _Parsing:
    """While tarfile reads untrusted bytes, any exception at all means that they are bad.

    It is known to leak ValueError, IndexError, RecursionError (chained headers) and OverflowError.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, VemgrError):
            raise TemplateUnusable(f"the archive is damaged: {error}", remedy="fetch it again") from error


def _refusal(name: str, why: EntryError) -> TemplateUnusable:
    return TemplateUnusable(f"the archive is refused at entry {shown(name)}: {why}", entry=shown(name))


def _write_failure(error: OSError, entry: str) -> VemgrError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"no space is left for {entry} of the archive", entry=entry, errno=error.errno)
    return SystemFailure(f"{entry} of the archive could not be written: {error}", entry=entry, errno=error.errno)
