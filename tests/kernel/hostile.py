# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VE or a template may have put where the host's side looks, and a picture of what it must not reach."""

import array
import contextlib
import ctypes
import fcntl
import os
import re
import select
import struct
import threading
from pathlib import Path

# The host's side of it lies in a directory of the test's own: `canary`, a file, and `etc`, a directory.
CANARY = "safe\n"


def outside(top):
    """Make the directory that nothing may reach."""
    top = Path(top)
    (top / "etc").mkdir(parents=True)
    for name in ("canary", "etc/passwd", "etc/group", "etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/inittab",
                 "etc/os-release", "etc/ptmx"):
        (top / name).write_text(CANARY)
    return top


def link(to):
    return lambda path, out: path.symlink_to(to.format(out=out, name=path.name))


def chain(path, out):
    """One more than the kernel follows (MAXSYMLINKS)."""
    for number in range(41):
        path.with_name(f"{path.name}.{number}").symlink_to(f"{path.name}.{number + 1}")
    path.with_name(f"{path.name}.41").symlink_to(out / "etc")
    path.symlink_to(f"{path.name}.0")


def circle(path, _out):
    path.symlink_to(f"{path.name}.other")
    path.with_name(f"{path.name}.other").symlink_to(path.name)


def huge(path, _out):
    with open(path, "wb") as file:
        file.truncate(1 << 40)


def lines(path, _out):
    """Of what the host's side may take for a database: long, of no form, with numbers that are none."""
    path.write_bytes(b"root:x:" + b"9" * 5000 + b":0::/:/bin/sh\n" + "user:x:\u0661:\u0662::/:/bin/sh\n".encode()
                     + b"\xff\xfe:x:1:1:::\n" + b"a" * 300_000 + b"\n" + b":" * 10_000 + b"\n" + b"\0" * 100)


def deep(path, _out):
    fd = os.open(path.parent, os.O_RDONLY)
    for name in (path.name, *["d"] * 1500):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def full(path, _out):
    path.mkdir()
    for number in range(300):
        (path / f"{number}").touch()


def closed_directory(path, _out):
    path.mkdir(0o000)
    path.chmod(0o000)


def closed_file(path, _out):
    path.write_text("?")
    path.chmod(0o000)


TRICKS = {
    "file": lambda path, out: path.write_text("not a directory"),
    "empty file": lambda path, out: path.touch(),
    "directory": lambda path, out: path.mkdir(),
    "link to the root": link("/"),
    "link to its own directory": link("."),
    "link to the host": link("{out}/etc"),
    "link to a file of the host": link("{out}/canary"),
    "link to the same name of the host": link("{out}/etc/{name}"),
    "link upwards": link("../../../../../../../../../../../../../../../..{out}/etc"),
    "link by process 1": link("/proc/1/root{out}/etc"),
    "link by itself": link("/proc/self/root{out}/etc"),
    "link by a thread": link("/proc/thread-self/cwd"),
    "link by a descriptor": link("/proc/self/fd/3"),
    "link by a descriptor of the stage": link("/proc/self/cwd/../../.."),
    "link into proc": link("/proc/sys/kernel"),
    "link to itself": link("{name}"),
    "links in a circle": circle,
    "links in a chain": chain,
    "link to nowhere": link("/nowhere/at/all"),
    "link with a long name": link("/".join(["x" * 250] * 16)),
    "fifo": lambda path, out: os.mkfifo(path),
    "socket": lambda path, out: os.mknod(path, 0o140644),
    "character device": lambda path, out: os.mknod(path, 0o20666, os.makedev(1, 3)),
    "terminal": lambda path, out: os.mknod(path, 0o20666, os.makedev(5, 2)),
    "block device": lambda path, out: os.mknod(path, 0o60666, os.makedev(7, 0)),
    "whiteout": lambda path, out: os.mknod(path, 0o20000, 0),
    "huge file": huge,
    "lines of no form": lines,
    "deep tree": deep,
    "full directory": full,
    "unreadable directory": closed_directory,
    "unreadable file": closed_file,
}


_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS, _FS_IMMUTABLE_FL = 0x80086601, 0x40086602, 0x10


@contextlib.contextmanager
def immutable(path):
    """chattr +i while it lasts."""
    fd = os.open(path, os.O_RDONLY)
    flags = array.array("l", [0])
    try:
        fcntl.ioctl(fd, _FS_IOC_GETFLAGS, flags)
        fcntl.ioctl(fd, _FS_IOC_SETFLAGS, array.array("l", [flags[0] | _FS_IMMUTABLE_FL]))
        try:
            yield
        finally:
            fcntl.ioctl(fd, _FS_IOC_SETFLAGS, flags)
    finally:
        os.close(fd)


class Watch:
    """inotify(7) on a tree: whether anything in it was opened, read, changed or listed."""

    _MASK = 0xFFF & ~0x18  # all but closing

    def __init__(self, top):
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self._fd >= 0
        for directory in [directory for directory, _, _ in os.walk(top)]:
            assert libc.inotify_add_watch(self._fd, os.fsencode(directory), self._MASK) >= 0

    def seen(self):
        found = []
        while select.select([self._fd], [], [], 0)[0]:
            data = os.read(self._fd, 65536)
            while data:
                _, mask, _, length = struct.unpack_from("iIII", data)
                found.append((hex(mask), data[16:16 + length].rstrip(b"\0")))
                data = data[16 + length:]
        return found

    def close(self):
        os.close(self._fd)


@contextlib.contextmanager
def untouched(top):
    """Nothing in `top` is opened, read or changed meanwhile."""
    before = picture(top)
    watch = Watch(top)
    try:
        yield
        seen = watch.seen()
        assert not seen, seen
    finally:
        watch.close()
    assert picture(top) == before


def picture(top):
    found = {}
    for directory, names, files in os.walk(top):
        for path in [directory, *(os.path.join(directory, name) for name in (*names, *files))]:
            info = os.lstat(path)
            found[path] = (info.st_mode, info.st_uid, info.st_nlink, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
    return found


def mounts_of(pid, name):
    """The mounts that a process sees, without what differs from one VE to the next: numbers, ids, sizes, its name, and
    whether overlayfs met an empty upper layer (uuid). Sorted, since /proc is mounted while /dev is."""
    with open(f"/proc/{pid}/mountinfo") as file:
        text = file.read()
    found = []
    for line in text.splitlines():
        shown = " ".join(re.sub(r"\d{4,}k?", "N", field) for field in line.split()[3:])
        found.append(shown.replace(f"/{name} ", "/NAME ").removesuffix(",uuid=on"))
    return sorted(found)


@contextlib.contextmanager
def in_time(seconds, what):
    """The body ends within `seconds`; for calls that have no time-out of their own."""
    late = threading.Event()
    timer = threading.Timer(seconds, late.set)
    timer.start()
    try:
        yield
        assert not late.is_set(), f"{what} took more than {seconds} s"
    finally:
        timer.cancel()
