# SPDX-License-Identifier: GPL-2.0-or-later
"""Giving VEs that run another lxcfs, or the kernel's own files where that has ended.

Each mount namespace of a VE is entered by a child of its own, as root of the host. The VE's root has shaped what is
looked up there: `proc` and `sys` are opened beneath the root without following a link, must be the file systems that
they are called, and what is covered must be a file of theirs or a cover of ours. What the VE can have mounted there to
hold us up holds up that child alone, which is given up after a while. A wrong place would cost the VE itself only: what
is mounted are files that it may read anyway, read-only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import prctl

from vemgr.core.ids import ID_COUNT
from vemgr.core.views import COVERED, FSTYPE, HIDDEN_OTHERWISE
from vemgr.kernel import mountinfo, mounts, namespaces
from vemgr.kernel.libc import check, libc
from vemgr.kernel.mountinfo import Mount
from vemgr.kernel.openat2 import open_beneath

_PATIENCE = 5.0  # seconds for one mount namespace
_AT_ONCE = 16
_MOST_NAMESPACES = 64  # of one VE: its services may have some of their own
_MOST_COVERS = 16  # that are taken away, one below the other
_READ_ONLY = sum(mounts.MOUNT_ATTR[flag] for flag in ("ro", "nosuid", "nodev", "noexec"))
_DIRECTORY = os.O_PATH | os.O_DIRECTORY
_OURS = {"proc": ("proc",), "sys": ("sysfs",)}  # by the first component: what is there without a cover


class Task(NamedTuple):
    ve: str
    deadline: float


def refresh(job: dict[str, Any]) -> dict[str, Any]:
    """`source`: directory of the lxcfs that serves, "" for none; `device` and `names` of its files; `ves`: name, cgroup
    and first id of each; `stage`: a directory to mount on. Returns the VEs of which a part has not got it, and why."""
    namespaces.unshare(namespaces.CLONE_NEWNS)
    mounts.make_private()
    _stage_mask(job["stage"])
    failed: dict[str, str] = {}
    running: dict[int, Task] = {}
    poll = select.poll()
    for name, cgroup, first in job["ves"]:
        for ns in _mount_namespaces(cgroup, first):
            pidfd = _begin(job, ns)
            os.close(ns)
            running[pidfd] = Task(name, time.monotonic() + _PATIENCE)
            poll.register(pidfd, select.POLLIN)
            while len(running) >= _AT_ONCE:
                _collect(poll, running, failed)
    while running:
        _collect(poll, running, failed)
    return {"failed": failed}


def _stage_mask(stage: str) -> None:
    """An empty file, for what is hidden where there is no lxcfs; and here we are in that directory."""
    target = os.open(stage, _DIRECTORY)
    fd = mounts.new_filesystem("tmpfs", (("mode", "700"), ("size", "64k")))
    mounts.attach(fd, target, stage)
    os.fchdir(fd)
    os.close(target)
    os.close(os.open("empty", os.O_CREAT | os.O_WRONLY, 0o444))


def _mount_namespaces(cgroup: str, first: int) -> Iterator[int]:
    """Those of the VE's processes, each once. Not those of the host: a process on its way in has one still."""
    seen: set[str] = set()
    for directory, _, files in os.walk(cgroup):
        if "cgroup.procs" not in files:
            continue
        for pid in _processes(directory):
            try:
                link = os.readlink(f"/proc/{pid}/ns/mnt")
                if link in seen or len(seen) >= _MOST_NAMESPACES:
                    continue
                fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
            except OSError:  # it has ended
                continue
            seen.add(link)
            if first <= namespaces.owner(fd) < first + ID_COUNT:
                yield fd
            else:
                os.close(fd)


def _processes(directory: str) -> list[str]:
    try:
        with open(f"{directory}/cgroup.procs", encoding="ascii") as file:
            return file.read().split()
    except OSError:
        return []


def _begin(job: dict[str, Any], ns: int) -> int:
    """Fork a child for one mount namespace; returns its pidfd."""
    parent = os.getpid()
    pid, pidfd = namespaces.clone3(0)
    if pid:
        return pidfd
    code = errno.EIO
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        prctl.set_pdeathsig(signal.SIGKILL)
        os.close(job["lock"])  # no later daemon waits for one that a VE holds up
        if os.getppid() == parent:
            _apply(job["source"], job["device"], job["names"] or COVERED, ns)
        code = 0
    except OSError as error:
        code = error.errno or code
    finally:
        os._exit(code)


def _collect(poll: select.poll, running: dict[int, Task], failed: dict[str, str]) -> None:
    """Wait for the end of one, or of its time."""
    for pidfd, _ in poll.poll(200):
        status = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        if status is not None and status.si_status:
            failed[running[pidfd].ve] = os.strerror(status.si_status)
        _forget(poll, running, pidfd)
    now = time.monotonic()
    for pidfd, task in list(running.items()):
        if now > task.deadline:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            failed[task.ve] = f"its file systems do not answer within {_PATIENCE:.0f} s"
            _forget(poll, running, pidfd)


def _forget(poll: select.poll, running: dict[int, Task], pidfd: int) -> None:
    poll.unregister(pidfd)
    os.close(pidfd)
    del running[pidfd]


def _apply(source: str, device: str, names: tuple[str, ...], ns: int) -> None:
    covers = {name: _cover(source, name) for name in names}
    host = os.open("/proc/self", _DIRECTORY)  # the VE's own does not know us
    descriptors = os.open("/proc/self/fd", _DIRECTORY)
    namespaces.setns(ns, namespaces.CLONE_NEWNS)
    root = os.open("/", _DIRECTORY)
    os.fchdir(descriptors)
    for name, cover in covers.items():
        with contextlib.suppress(FileNotFoundError):  # a service may see a part of /proc only
            _replace(host, root, name, cover, device if source else "")
        os.close(cover)


def _cover(source: str, name: str) -> int:
    kernels = "empty" if name in HIDDEN_OTHERWISE else f"/{name}"
    path = f"{source}/{name}" if source else kernels
    fd = mounts.open_tree(path)
    mounts.set_attributes(fd, attributes=_READ_ONLY, path=path)
    return fd


def _replace(host: int, root: int, name: str, cover: int, device: str) -> None:
    """Take away what was put there before, as far as it is not locked, and put the cover there if it is needed."""
    top, _, below = name.partition("/")
    for _ in range(_MOST_COVERS):
        with _opened(root, top) as directory:
            if _mount(host, directory).fstype not in _OURS[top]:
                return
            with _opened(directory, below) as target:
                there = _mount(host, target)
                if not _may_go(there, name, device):
                    return
                if there.point != f"/{name}" or not _unmounted(target):
                    mounts.attach(cover, target, name)
                    return


def _may_go(there: Mount, name: str, device: str) -> bool:
    """Whether `there` is not what should be seen, and not something that the VE has put there for itself."""
    if there.fstype == FSTYPE:
        return there.device != device
    native = there.fstype in _OURS[name.partition("/")[0]] and there.root in ("/", f"/{name.partition('/')[2]}")
    hidden = name in HIDDEN_OTHERWISE and there.fstype == "tmpfs"
    return bool(device) and (native or hidden)


@contextlib.contextmanager
def _opened(directory: int, path: str) -> Iterator[int]:
    fd = open_beneath(directory, path, os.O_PATH)
    try:
        yield fd
    finally:
        os.close(fd)


def _mount(host: int, fd: int) -> Mount:
    """What `fd` is in, without asking its file system, which may be dead."""
    number = next(int(line.split()[1]) for line in _read(host, f"fdinfo/{fd}").splitlines()
                  if line.startswith("mnt_id:"))
    return next(mount for mount in mountinfo.parse(_read(host, "mountinfo")) if mount.number == number)


def _read(directory: int, path: str) -> str:
    fd = os.open(path, os.O_RDONLY, dir_fd=directory)
    with open(fd, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def _unmounted(target: int) -> bool:
    """By the link in /proc/self/fd, in which we are. The covers of its start are locked (mount_namespaces(7))."""
    try:
        check(libc.umount2(str(target).encode(), mounts.MNT_DETACH), "umount2")
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True
