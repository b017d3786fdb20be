# SPDX-License-Identifier: GPL-2.0-or-later
"""What outlives a power cut: a file's content once the file was fsynced, its name once its directory was (fsync(2)).

What was not may be there or not, in any order ("All File Systems Are Not Created Equal", OSDI 2014).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from vemgr.kernel.renaming import exchange


def replace_file(path: str, text: str) -> None:
    """Replace a small file as a whole, durably. Raises `OSError`; then the old file is as it was."""
    with _opened_directory(os.path.dirname(path)) as directory, _previous(path) as previous:
        temporary = unfinished(path)
        try:
            _write(temporary, text.encode())
            os.rename(temporary, path)
        except OSError:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        try:
            os.fsync(directory)
        except OSError:
            _put_back(path, previous)
            raise


@contextmanager
def replaced_file(path: str, text: str) -> Iterator[None]:
    """As `replace_file`, of a file that is there. It comes back where what is done meanwhile fails, and needs neither
    space nor a descriptor for that: it may be for want of them that it has failed."""
    temporary = unfinished(path)
    with _opened_directory(os.path.dirname(path)) as directory:
        try:
            _write(temporary, text.encode())
            _exchange(directory, temporary, path)
        except OSError:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        try:
            yield
        except BaseException:
            with suppress(OSError):
                _exchange(directory, temporary, path)
            raise
        finally:
            with suppress(OSError):
                os.unlink(temporary)


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        while data:
            data = data[os.write(fd, data):]
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _previous(path: str) -> Iterator[int]:
    """What stands there now, open beyond its replacement; -1 if nothing does."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield -1
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _put_back(path: str, previous: int) -> None:
    """After a rename that may not last: what a reader finds must be what the error says."""
    with suppress(OSError):
        if previous < 0:
            os.unlink(path)
        else:
            _write(unfinished(path), os.pread(previous, os.fstat(previous).st_size, 0))
            os.rename(unfinished(path), path)


def remove_file(path: str) -> None:
    """Delete a small file, durably. Raises `OSError`; then it is there as it was."""
    with _opened_directory(os.path.dirname(path)) as directory, _previous(path) as previous:
        os.unlink(path)
        try:
            os.fsync(directory)
        except OSError:
            _put_back(path, previous)
            raise


def rename_durably(source: str, target: str) -> None:
    """Rename within a directory, to a name that nothing has, and sync it. Raises `OSError`; then nothing is renamed."""
    with _opened_directory(os.path.dirname(target)) as directory:
        os.rename(source, target)
        try:
            os.fsync(directory)
        except OSError:
            with suppress(OSError):
                os.rename(target, source)
            raise


def exchange_durably(one: str, other: str) -> None:
    """Exchange two names within a directory, and sync it. Raises `OSError`; then each is what it was.

    The way to replace what must not be lost: a rename over it that may not last could not be taken back.
    """
    with _opened_directory(os.path.dirname(other)) as directory:
        _exchange(directory, one, other)


def _exchange(directory: int, one: str, other: str) -> None:
    names = os.path.basename(one), os.path.basename(other)
    exchange(directory, *names)
    try:
        os.fsync(directory)
    except OSError:
        with suppress(OSError):
            exchange(directory, *names)
        raise


def unfinished(path: str) -> str:
    """Where `replace_file` writes; there after it has returned only if it was killed."""
    return f"{path}.new"


def remove_unfinished(directory: str) -> None:
    """Delete what a `replace_file` that was killed has left in a directory that is all ours; only while none is at
    work. Raises `OSError`."""
    for entry in os.scandir(directory):
        if entry.name.endswith(unfinished("")) and entry.is_file(follow_symlinks=False):
            os.unlink(entry.path)


def make_directories(path: str, mode: int = 0o700) -> None:
    """Like os.makedirs, and what was made is there to stay. Raises `OSError`."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    make_directories(parent, mode)
    with suppress(FileExistsError):
        os.mkdir(path, mode)
    sync_directory(parent)


def sync_directory(path: str) -> None:
    """Make durable which names a directory has. Raises `OSError`."""
    with _opened_directory(path) as directory:
        os.fsync(directory)


@contextmanager
def _opened_directory(path: str) -> Iterator[int]:
    """Before anything in it is changed: who has no descriptor left changes nothing."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
