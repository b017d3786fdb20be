# SPDX-License-Identifier: GPL-2.0-or-later
"""What a disk may hold after a power cut: a model of a file system that promises no more than fsync(2) does.

`Recorder` notes what a piece of code does to the files below a directory. `crashes` then gives every state that the
disk may be in when the power goes after any of these calls: what was fsynced is there; each other write and each other
change of a name is there, or is not, whatever came before or after it; and a write may be torn.
"""

import contextlib
import dataclasses
import itertools
import os
import random
import shutil
import stat

from vemgr.kernel import syncfs

#: Above so many changes that may be lost, their subsets are drawn by chance.
_EXHAUSTIVE = 9
_DRAWN = 400


@dataclasses.dataclass(frozen=True)
class Names:
    """A change of names in directories: for each (directory, name) the inode it has from then on, or None."""

    changes: tuple


@dataclasses.dataclass(frozen=True)
class Data:
    """New content of a file: it grows by `text`, or with None it is emptied."""

    inode: int
    text: bytes | None


@dataclasses.dataclass(frozen=True)
class Sync:
    """fsync of a file or a directory; None: of all."""

    inode: int | None
    snapshot: dict | None = None


class Recorder:
    """Within its context, what os does below `root` is noted in `calls`. `first`: what was there before."""

    def __init__(self, root):
        self.root = str(root)
        self.calls = []
        self._alias, self._numbers = {}, itertools.count(1)
        self.first = self._snapshot()

    def _inode(self, path=None, fd=None):
        """Our own number for an inode: the kernel's is given again once the file is gone."""
        found = os.fstat(fd) if fd is not None else os.lstat(path)
        key = found.st_dev, found.st_ino
        if key not in self._alias:
            self._alias[key] = next(self._numbers)
        return self._alias[key]

    def _forget(self, found):
        self._alias.pop((found.st_dev, found.st_ino), None)

    def _snapshot(self):
        """{inode: {name: inode} or bytes}; 0 is the root."""
        self._alias[os.lstat(self.root).st_dev, os.lstat(self.root).st_ino] = 0
        found = {}
        for top, directories, files in os.walk(self.root):
            found[self._inode(top)] = {n: self._inode(f"{top}/{n}") for n in (*directories, *files)}
            for name in files:
                path = f"{top}/{name}"
                if stat.S_ISREG(os.lstat(path).st_mode):
                    with open(path, "rb") as file:
                        found[self._inode(path)] = file.read()
                else:
                    found[self._inode(path)] = b""
        return found

    @staticmethod
    def _path(name, dir_fd=None):
        name = os.fsdecode(name)
        return name if dir_fd is None else f"{os.readlink(f'/proc/self/fd/{dir_fd}')}/{name}"

    def _ours(self, path):
        return path.startswith(f"{self.root}/")

    @contextlib.contextmanager
    def recording(self, monkeypatch):
        real = {name: getattr(os, name) for name in ("open", "write", "fsync", "rename", "mkdir", "unlink", "rmdir")}

        def named(path):
            return self._inode(os.path.dirname(path)), os.path.basename(path)

        def open_(name, flags, mode=0o777, *, dir_fd=None):
            path = self._path(name, dir_fd)
            new = self._ours(path) and flags & os.O_CREAT and not os.path.lexists(path)
            fd = real["open"](name, flags, mode, dir_fd=dir_fd)
            if new:
                inode = self._inode(fd=fd)
                self.calls += [Data(inode, None), Names(((*named(path), inode),))]
            elif self._ours(path) and flags & os.O_TRUNC:
                self.calls.append(Data(self._inode(fd=fd), None))
            return fd

        def write(fd, data):
            count = real["write"](fd, data)
            if self._ours(os.readlink(f"/proc/self/fd/{fd}")):
                self.calls.append(Data(self._inode(fd=fd), bytes(data[:count])))
            return count

        def fsync(fd):
            real["fsync"](fd)
            self.calls.append(Sync(self._inode(fd=fd)))

        def rename(source, target, *, src_dir_fd=None, dst_dir_fd=None):
            before, after = self._path(source, src_dir_fd), self._path(target, dst_dir_fd)
            inode = self._inode(before)
            real["rename"](source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            self.calls.append(Names(((*named(before), None), (*named(after), inode))))

        def mkdir(name, mode=0o777, *, dir_fd=None):
            real["mkdir"](name, mode, dir_fd=dir_fd)
            path = self._path(name, dir_fd)
            if self._ours(path):
                self.calls.append(Names(((*named(path), self._inode(path)),)))

        def removing(call):
            def remove(name, *, dir_fd=None):
                path = self._path(name, dir_fd)
                found = os.lstat(path)
                real[call](name, dir_fd=dir_fd)
                if self._ours(path):
                    self.calls.append(Names(((*named(path), None),)))
                    self._forget(found)
            return remove

        def sync_all(_fd):
            self.calls.append(Sync(None, self._snapshot()))

        replaced = {"open": open_, "write": write, "fsync": fsync, "rename": rename, "mkdir": mkdir,
                    "unlink": removing("unlink"), "rmdir": removing("rmdir")}
        with monkeypatch.context() as patch:
            for name, call in replaced.items():
                patch.setattr(os, name, call)
            patch.setattr(syncfs, "_syncfs", lambda fd: sync_all(fd) or 0)
            yield


def crashes(recorder, seed=0):
    """(calls made, disk) for every state that a power cut after so many calls may leave: {inode: names or content}."""
    chance = random.Random(seed)
    for made in range(len(recorder.calls) + 1):
        base, open_ = _certain(recorder, made)
        seen = set()
        for kept in _subsets(open_, chance):
            for disk in _torn(base, kept):
                key = repr(sorted(disk.items(), key=lambda each: each[0]))
                if key not in seen:
                    seen.add(key)
                    yield made, disk


def _certain(recorder, made):
    """The disk as far as it is certain, as a list of changes upon what was there first, and what is not."""
    disk, calls = recorder.first, list(recorder.calls[:made])
    for position in reversed(range(made)):
        if isinstance(calls[position], Sync) and calls[position].inode is None:
            disk, calls = calls[position].snapshot, calls[position + 1:]
            break
    changes = []
    for position, call in enumerate(calls):
        if isinstance(call, Sync):
            continue
        synced = {later.inode for later in calls[position:] if isinstance(later, Sync)}
        touched = {inode for inode, _, _ in call.changes} if isinstance(call, Names) else {call.inode}
        changes.append((call, touched <= synced))
    return (disk, changes), [position for position, (_, certain) in enumerate(changes) if not certain]


def _subsets(uncertain, chance):
    if len(uncertain) <= _EXHAUSTIVE:
        for size in range(len(uncertain) + 1):
            yield from itertools.combinations(uncertain, size)
        return
    for end in range(len(uncertain) + 1):
        yield uncertain[:end]
        yield uncertain[:end] + uncertain[end + 1:]
        yield uncertain[end:]
    for _ in range(_DRAWN):
        yield [each for each in uncertain if chance.random() < 0.5]


def _torn(base, kept):
    """The disk with the changes that are certain and those that were `kept`, of which each write may be torn."""
    disk, changes = base
    written = [position for position in kept if isinstance(changes[position][0], Data) and changes[position][0].text]
    for cut in (None, *written):
        for share in ((1.0,) if cut is None else (0.0, 0.5)):
            result = {inode: dict(what) if isinstance(what, dict) else what for inode, what in disk.items()}
            for position, (call, certain) in enumerate(changes):
                if certain or position in kept:
                    _apply(result, call, share if position == cut else 1.0)
            yield result


def _apply(disk, call, share):
    if isinstance(call, Data):
        before = disk.get(call.inode, b"")
        # A torn write: the length is there, and of the content a part.
        text = b"" if call.text is None else call.text[:int(len(call.text) * share)].ljust(len(call.text), b"\0")
        disk[call.inode] = b"" if call.text is None else before + text
        return
    for directory, name, inode in call.changes:
        names = disk.setdefault(directory, {})
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode


def lay_out(disk, path, files):
    """Make the state `disk` in the directory `path`. `files`: inodes that are files, even where nothing was written."""
    shutil.rmtree(path, ignore_errors=True)

    def make(inode, target):
        what = disk.get(inode)
        if isinstance(what, bytes) or (what is None and inode in files):
            with open(target, "wb") as file:
                file.write(what or b"")
            return
        os.mkdir(target)
        for name, below in (what or {}).items():
            make(below, f"{target}/{name}")

    make(0, str(path))


def files_of(recorder):
    return {call.inode for call in recorder.calls if isinstance(call, Data)}
