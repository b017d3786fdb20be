# SPDX-License-Identifier: GPL-2.0-or-later
"""The set-up process of a VE: executes a plan as root of the host, in a mount namespace of its own, and ends.

It is forked by the keeper and clones the VE's first process *before* any mount is made. So it can enter the VE's
network, ipc, uts and cgroup namespaces while it still is root of the host, and every mount it makes ends up locked
when the VE's init copies the mount namespace into its own user namespace (mount_namespaces(7), "Restrictions"):
a VE cannot lift the masks over its /proc, which runc and LXC cannot say of theirs.

Nothing here looks up a path inside the VE's tree except through openat2 with RESOLVE_IN_ROOT.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

from vemgr.core import plan as operations
from vemgr.core.plan import TTY_GROUP, Plan
from vemgr.keeper.protocol import failure
from vemgr.kernel import mounts, namespaces, netlink
from vemgr.kernel.openat2 import open_in_root

TIOCGPTN = 0x80045430
TIOCGPTPEER = 0x5441
TIOCSPTLCK = 0x40045431
_MANAGED = "# written by vemgr at each start; remove this line to keep your own\n"


class SetupError(Exception):
    """An operation of the plan failed."""

    def __init__(self, operation: str, error: OSError) -> None:
        super().__init__(f"{operation}: {error}")
        self.operation = operation
        self.error = error

    def facts(self) -> dict[str, Any]:
        error = self.error
        return {"operation": self.operation, "errno": error.errno or 0, "error": error.strerror or str(error),
                "path": str(error.filename or "")}


class Setup:
    """Executes one plan for the VE whose first process is `pid`."""

    def __init__(self, plan: Plan, pid: int, pidfd: int) -> None:
        self.plan = plan
        self.netlink_messages: list[bytes] = []
        self.console: tuple[int, int] | None = None
        self._pid = pid
        self._pidfd = pidfd
        self._userns_fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        self._root_fd = -1
        self._mounted: dict[str, int] = {}
        self._data_count = 0

    def run(self) -> None:
        """Execute all operations in order. Raises `SetupError` naming the one that failed."""
        self._step("stage", self._stage)
        self._step("enter namespaces", self._enter)
        for operation in self.plan.operations:
            self._step(self.plan.expand(operation.describe()), partial(_EXECUTE[type(operation)], self, operation))
        # A descriptor of the host's file system that lived on would lead out of the VE.
        self._step("pivot", lambda: mounts.pivot_into(self._root_fd))

    def _step(self, description: str, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            raise SetupError(description, error) from error

    def _stage(self) -> None:
        """A tmpfs that only we see: the layers hang there while the overlay is put together, and the masks."""
        mounts.make_private()
        stage = mounts.new_filesystem("tmpfs", (("mode", "700"), ("size", "64k")))
        target = os.open(self.plan.stage, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        mounts.attach(stage, target, self.plan.stage)
        os.close(target)
        os.chdir(self.plan.stage)
        for name in ("root", "mask", "mask/directory"):
            os.mkdir(name, 0o700)
        os.close(os.open("mask/file", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o000))
        os.chmod("mask/directory", 0o555)

    def _enter(self) -> None:
        namespaces.setns(self._pidfd, namespaces.CLONE_NEWPID | namespaces.CLONE_NEWNET | namespaces.CLONE_NEWUTS
                         | namespaces.CLONE_NEWIPC | namespaces.CLONE_NEWCGROUP)
        namespaces.sethostname(self.plan.hostname)

    def _layer(self, operation: operations.Layer) -> None:
        fd = mounts.open_tree(operation.source)
        mounts.set_attributes(fd, userns_fd=self._userns_fd, path=operation.source)
        self._attach_to_stage(fd, f"l{operation.index}")

    def _attach_to_stage(self, fd: int, name: str) -> None:
        os.mkdir(name, 0o700)
        target = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        mounts.attach(fd, target, name)
        os.close(target)
        os.close(fd)

    def _overlay(self, operation: operations.Overlay) -> None:
        data = f"d{self._data_count}"
        self._data_count += 1
        self._attach_to_stage(mounts.open_tree(operation.data), data)
        options = (
            ("lowerdir", ":".join(f"l{index}" for index in operation.lowers)),
            ("upperdir", f"{data}/upper"), ("workdir", f"{data}/work"),
            # Without it rename(2) of a directory of the template fails with EXDEV.
            ("redirect_dir", "on"),
        )
        fd = mounts.new_filesystem("overlay", options, mounts.MOUNT_ATTR["nodev"], source="vemgr")
        if operation.target == "/":
            target = os.open("root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            mounts.attach(fd, target, "/")
            self._root_fd = fd
        else:
            self._mount(fd, operation.target.lstrip("/"))

    def _mount(self, fd: int, target: str) -> None:
        target_fd = self._directory_fd(target)
        mounts.attach(fd, target_fd, f"/{target}")
        os.close(target_fd)
        self._mounted[target] = fd

    def _directory_fd(self, path: str, mode: int = 0o755) -> int:
        """Open a directory of the VE's tree, made (owned by the VE's root) where it is missing."""
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            return open_in_root(self._root_fd, path, flags)
        except FileNotFoundError:
            parent, name = self._parent(path)
            os.mkdir(name, mode, dir_fd=parent)
            os.chown(name, self.plan.id_base, self.plan.id_base, dir_fd=parent, follow_symlinks=False)
            os.chmod(name, mode, dir_fd=parent)
            os.close(parent)
            return open_in_root(self._root_fd, path, flags)

    def _parent(self, path: str) -> tuple[int, str]:
        directory, _, name = path.strip("/").rpartition("/")
        return open_in_root(self._root_fd, directory or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), name

    def _filesystem(self, operation: operations.Filesystem) -> None:
        options = tuple((key, self.plan.expand(value)) for key, value in operation.options)
        attributes = sum(mounts.MOUNT_ATTR[flag] for flag in operation.flags)
        if operation.fstype != "proc":
            self._mount(mounts.new_filesystem(operation.fstype, options, attributes), operation.target)
            return
        target = self._directory_fd(operation.target)
        self._in_pid_namespace(lambda: mounts.attach(mounts.new_filesystem("proc", options, attributes), target))
        os.close(target)
        self._mounted[operation.target] = self._directory_fd(operation.target)

    def _in_pid_namespace(self, action: Callable[[], None]) -> None:
        """Run `action` in a child: setns(2) puts only our *children* into the VE's pid namespace, and a proc file
        system shows the pid namespace of who mounts it."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        child = os.fork()
        if child == 0:
            try:
                action()
            except Exception as error:
                facts = failure("", error)
                os.write(writer, json.dumps([facts["errno"], facts["error"]]).encode())
            finally:
                os._exit(0)
        os.close(writer)
        told = os.read(reader, 4096)
        os.close(reader)
        os.waitpid(child, 0)
        if told:
            raise OSError(*json.loads(told))

    def _directory(self, operation: operations.Directory) -> None:
        os.close(self._directory_fd(operation.path, operation.mode))

    def _device(self, operation: operations.Device) -> None:
        dev = self._mounted["dev"]
        os.mknod(operation.name, operation.mode | stat.S_IFCHR, os.makedev(operation.major, operation.minor),
                 dir_fd=dev)
        os.chmod(operation.name, operation.mode, dir_fd=dev)
        os.chown(operation.name, self.plan.id_base, self.plan.id_base, dir_fd=dev)

    def _symlink(self, operation: operations.Symlink) -> None:
        parent, name = self._parent(operation.path)
        os.symlink(operation.points_to, name, dir_fd=parent)
        os.chown(name, self.plan.id_base, self.plan.id_base, dir_fd=parent, follow_symlinks=False)
        os.close(parent)

    def _mask(self, operation: operations.Mask) -> None:
        """Cover with the empty file or directory of the stage's tmpfs, read-only. Targets are found below the
        descriptor of the mount itself, never by a path the VE could have swapped (CVE-2025-31133)."""
        under = self._mounted[operation.under]
        for name in operation.names:
            try:
                target = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=under)
            except FileNotFoundError:
                continue
            kind = "directory" if stat.S_ISDIR(os.fstat(target).st_mode) else "file"
            cover = mounts.open_tree(f"mask/{kind}")
            mounts.set_attributes(cover, attributes=mounts.MOUNT_ATTR["ro"] | mounts.MOUNT_ATTR["noexec"])
            mounts.attach(cover, target, f"/{operation.under}/{name}")
            os.close(cover)
            os.close(target)

    def _read_only(self, operation: operations.ReadOnly) -> None:
        under = self._mounted[operation.under]
        kept = [(name, mounts.open_tree(name, dir_fd=under)) for name in operation.writable]
        for name in operation.names:
            self._cover_with_itself(under, name, mounts.MOUNT_ATTR["ro"])
        for name, fd in kept:
            target = os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=under)
            mounts.attach(fd, target, name)
            os.close(target)
            os.close(fd)

    def _cover_with_itself(self, under: int, name: str, attributes: int) -> None:
        try:
            fd = mounts.open_tree(name, dir_fd=under)
        except FileNotFoundError:
            return
        mounts.set_attributes(fd, attributes=attributes)
        target = os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=under)
        mounts.attach(fd, target, name)
        os.close(target)
        os.close(fd)

    def _sysctl(self, operation: operations.Sysctl) -> None:
        try:
            fd = os.open(f"sys/{operation.key}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=self._mounted["proc"])
        except FileNotFoundError:
            return  # the kernel was built without it
        try:
            os.write(fd, self.plan.expand(operation.value).encode())
        finally:
            os.close(fd)

    def _console(self, _operation: operations.Console) -> None:
        devpts, dev = self._mounted["dev/pts"], self._mounted["dev"]
        flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
        master = os.open("ptmx", flags, dir_fd=devpts)
        fcntl.ioctl(master, TIOCSPTLCK, struct.pack("i", 0))
        (number,) = struct.unpack("i", fcntl.ioctl(master, TIOCGPTN, struct.pack("i", 0)))
        slave = fcntl.ioctl(master, TIOCGPTPEER, flags)
        os.fchown(slave, self.plan.id_base, self.plan.id_base + TTY_GROUP)
        target = os.open("console", os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=dev)
        mounts.attach(mounts.open_tree(str(number), dir_fd=devpts), target, "/dev/console")
        os.close(target)
        self.console = master, slave

    def _write_file(self, operation: operations.WriteFile) -> None:
        """Write to a new file and rename it into place: what stands there is never opened for writing, so it may be
        a symlink, a fifo or a device without any effect on us."""
        managed = operation.when == "managed"
        parent, name = self._parent(operation.path)
        if (managed and not self._is_ours(parent, name)) or not (managed or self.plan.first):
            os.close(parent)
            return
        temporary = f".vemgr-{os.getpid()}"
        fd = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=parent)
        try:
            os.write(fd, ((_MANAGED if managed else "") + operation.content).encode())
            os.fchown(fd, self.plan.id_base, self.plan.id_base)
            os.fchmod(fd, 0o644)
        finally:
            os.close(fd)
        os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        os.close(parent)

    def _is_ours(self, parent: int, name: str) -> bool:
        """At the first start everything is; afterwards what is absent or bears our first line."""
        if self.plan.first:
            return True
        try:
            # O_NONBLOCK: opening a fifo would wait for a writer for ever.
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        try:
            return stat.S_ISREG(os.fstat(fd).st_mode) and os.read(fd, len(_MANAGED)) == _MANAGED.encode()
        finally:
            os.close(fd)

    def _network(self, _operation: operations.Network) -> None:
        netlink.send_batch(self.netlink_messages)


_EXECUTE: dict[type, Callable[[Setup, Any], None]] = {
    operations.Layer: Setup._layer,
    operations.Overlay: Setup._overlay,
    operations.Filesystem: Setup._filesystem,
    operations.Directory: Setup._directory,
    operations.Device: Setup._device,
    operations.Symlink: Setup._symlink,
    operations.Mask: Setup._mask,
    operations.ReadOnly: Setup._read_only,
    operations.WriteFile: Setup._write_file,
    operations.Sysctl: Setup._sysctl,
    operations.Console: Setup._console,
    operations.Network: Setup._network,
}
