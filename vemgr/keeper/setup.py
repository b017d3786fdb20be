# SPDX-License-Identifier: GPL-2.0-or-later
"""The set-up of a VE: a plan's operations as a program of system calls.

It runs as root of the host, in a mount namespace of its own, after the VE's first process has been cloned and *before*
that one copies the mount namespace. So it can enter the VE's network, ipc, uts and cgroup namespaces while it still is
root of the host, and every mount it makes ends up locked when the VE's init copies the mount namespace into its own
user namespace (mount_namespaces(7), "Restrictions"): a VE cannot lift the masks over its /proc, which runc and LXC
cannot say of theirs.

Nothing here looks up a path inside the VE's tree except through openat2: with RESOLVE_IN_ROOT, and what is mounted on
without following any symlink.
"""

from __future__ import annotations

import base64
import errno
import os
import secrets
import socket
import stat
import struct
from collections.abc import Callable
from typing import Any

from vemgr.core import plan as operations
from vemgr.core.plan import TTY_GROUP, Plan
from vemgr.keeper import mounting
from vemgr.keeper.program import ANY_ERROR, Data, Program, Register, encoded
from vemgr.kernel import netlink
from vemgr.kernel.mounts import MOUNT_ATTR
from vemgr.kernel.openat2 import RESOLVE_BENEATH, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS

TIOCGPTN = 0x80045430
TIOCGPTPEER = 0x5441
TIOCSPTLCK = 0x40045431
_ANSWER_ROOM = 4096
_MANAGED = b"# written by vemgr at each start; remove this line to keep your own\n"
_AT_FDCWD = -100
_PR_SET_SECUREBITS, _NO_SETUID_FIXUP = 28, 1 << 2
_AT_SYMLINK_NOFOLLOW = 0x100
_PATH_ONLY = os.O_PATH | os.O_CLOEXEC
_DIRECTORY = _PATH_ONLY | os.O_DIRECTORY
_IN_ROOT = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
# For what is mounted on. A symlink there is refused (ELOOP), though it could not lead out: with "proc -> /" the next
# steps would find the VE's own files, and links, where they expect those of proc (CVE-2019-19921, CVE-2023-27561).
_NO_LINKS = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS


class Setup:
    """Appends the calls of `plan`, and of all that have its `shape`, to `program`. `userns`: descriptor of the VE's
    user namespace.

    `root` and the members of `mounted` are descriptors; `console`: master and slave, once there is one.
    """

    def __init__(self, program: Program, plan: Plan, userns: Register) -> None:
        self.program = program
        self.plan = plan
        self.userns = userns
        self.root = program.register()
        self._base = program.number(lambda plan: plan.id_base)
        self._tty = program.number(lambda plan: plan.id_base + TTY_GROUP)
        self.mounted: dict[str, Register] = {}
        self.console: tuple[Register, Register] | None = None
        self._data_count = 0
        self._number = -1  # of the operation in the plan

    def operation(self, operation: operations.Operation) -> None:
        self._number += 1
        self.program.step(self._number)
        _EXECUTE[type(operation)](self, operation)

    def _field(self, name: str, text: str) -> Data:
        """A field of the operation, which has this value in our plan and may have another in others."""
        number = self._number
        return self.program.parameter(room_for(text), lambda plan: encoded(getattr(plan.operations[number], name)))

    def _expanded(self, text: str) -> bytes | Data:
        """A text that may have ids in it."""
        if "{" not in text:
            return encoded(text)
        return self.program.parameter(room_for(text), lambda plan: plan.expand(text).encode())

    def stage(self) -> None:
        """A tmpfs that only we see: the layers hang there while the overlay is put together, and the masks."""
        program = self.program
        program.step("stage")
        mounting.make_private(program)
        self._tmpfs(self.plan.stage)
        program.call("chdir", encoded(self.plan.stage))
        for name in (b"root", b"mask"):
            program.call("mkdirat", _AT_FDCWD, name, 0o700)
        self._tmpfs("mask")
        program.call("mkdirat", _AT_FDCWD, b"mask/directory", 0o555)
        with program.descriptor() as fd:
            # Readable: programs take an empty /proc/cmdline better than one that they may not open.
            program.call("openat", _AT_FDCWD, b"mask/file", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o444, into=fd)
        # Every mask is a clone of a mount of this one, and inherits that it is read-only.
        with program.descriptor() as fd:
            program.call("openat", _AT_FDCWD, b"mask", _DIRECTORY, into=fd)
            mounting.set_attributes(program, fd, MOUNT_ATTR["ro"] | MOUNT_ATTR["noexec"])

    def _tmpfs(self, path: str) -> None:
        with mounting.new_filesystem(self.program, "tmpfs", (("mode", b"700"), ("size", b"64k"))) as fd:
            mounting.attach_at(self.program, fd, _AT_FDCWD, path)

    def finish(self) -> None:
        # A descriptor of the host's file system that lived on would lead out of the VE.
        self.program.step("pivot")
        mounting.pivot_into(self.program, self.root)

    def layer(self, operation: operations.Layer) -> None:
        with mounting.open_tree(self.program, encoded(operation.source)) as fd:
            mounting.set_attributes(self.program, fd, userns=self.userns)
            self._attach_to_stage(fd, f"l{operation.index}")

    def _attach_to_stage(self, fd: Register, name: str) -> None:
        self.program.call("mkdirat", _AT_FDCWD, name.encode(), 0o700)
        mounting.attach_at(self.program, fd, _AT_FDCWD, name)

    def overlay(self, operation: operations.Overlay) -> None:
        data = f"d{self._data_count}"
        self._data_count += 1
        with mounting.open_tree(self.program, self._field("data", operation.data)) as fd:
            self._attach_to_stage(fd, data)
        options = (
            ("lowerdir", ":".join(f"l{index}" for index in operation.lowers).encode()),
            ("upperdir", f"{data}/upper".encode()), ("workdir", f"{data}/work".encode()),
            # Without it rename(2) of a directory of the template fails with EXDEV.
            ("redirect_dir", b"on"),
        )
        target = operation.target.lstrip("/")
        fd = self.root if not target else self.program.register()
        # What a VE writes the kernel writes with the ids of who mounts. Root's may use the blocks that ext4 keeps back
        # for root, and a VE would fill the disk to the last. SECBIT_NO_SETUID_FIXUP: the capabilities stay.
        self.program.call("prctl", _PR_SET_SECUREBITS, _NO_SETUID_FIXUP)
        self.program.call("setfsuid", self._base)
        mounting.make_filesystem(self.program, fd, "overlay", options, MOUNT_ATTR["nodev"], source="vemgr")
        self.program.call("setfsuid", 0)
        if target:
            self._mount(fd, target)
        else:
            mounting.attach_at(self.program, fd, _AT_FDCWD, "root")

    def _mount(self, fd: Register, target: str) -> None:
        with self.program.descriptor() as target_fd:
            self._open_directory(target, target_fd, _NO_LINKS)
            mounting.attach(self.program, fd, target_fd)
        self.mounted[target] = fd

    def _open(self, directory: Register, path: str, flags: int, resolve: int, into: Register) -> int:
        how = self.program.constant(struct.pack("=QQQ", flags, 0, resolve))
        return self.program.call("openat2", directory, encoded(path), how, 24, into=into)

    def _open_directory(self, path: str, into: Register, resolve: int, mode: int = 0o755) -> None:
        """Open a directory of the VE's tree, made (owned by the VE's root) where it is missing."""
        there = self._open(self.root, path, _DIRECTORY, resolve, into)
        self.program.expect(there, errno.ENOENT)
        with self.program.descriptor() as parent:
            name = self._open_parent(path, parent)
            self.program.call("mkdirat", parent, name, mode)
            self._give_to_ve(parent, name)
        self._open(self.root, path, _DIRECTORY, resolve, into)
        self.program.else_(there)

    def _open_parent(self, path: str, into: Register) -> bytes:
        directory, _, name = path.strip("/").rpartition("/")
        self._open(self.root, directory or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, _IN_ROOT, into)
        return encoded(name)

    def _give_to_ve(self, parent: Register, name: bytes) -> None:
        self.program.call("fchownat", parent, name, self._base, self._base, _AT_SYMLINK_NOFOLLOW)

    def filesystem(self, operation: operations.Filesystem) -> None:
        options = [(key, self._expanded(value)) for key, value in operation.options]
        attributes = sum(MOUNT_ATTR[flag] for flag in operation.flags)
        fd = self.program.register()
        if operation.fstype == "proc":
            self._mount_proc(operation.target, options, attributes, fd)
            self.mounted[operation.target] = fd
        else:
            mounting.make_filesystem(self.program, fd, operation.fstype, options, attributes)
            self._mount(fd, operation.target)

    def _mount_proc(self, target: str, options: mounting.Options, attributes: int, into: Register) -> None:
        """In a child: setns(2) puts only our *children* into the VE's pid namespace, and a proc file system shows the
        pid namespace of who makes it."""
        program = self.program
        child, target_fd = program.register(), program.register()
        self._open_directory(target, target_fd, _NO_LINKS)
        with program.forked(child):
            program.call("report_to", -1)  # its exit status is the errno
            with mounting.new_filesystem(program, "proc", options, attributes) as fd:
                mounting.attach(program, fd, target_fd)
        program.call("wait", child)
        program.call("close", target_fd)
        self._open_directory(target, into, _NO_LINKS)

    def directory(self, operation: operations.Directory) -> None:
        with self.program.descriptor() as fd:
            self._open_directory(operation.path, fd, _IN_ROOT, operation.mode)

    def device(self, operation: operations.Device) -> None:
        dev, name = self.mounted["dev"], encoded(operation.name)
        self.program.call("mknodat", dev, name, operation.mode | stat.S_IFCHR,
                          os.makedev(operation.major, operation.minor))
        self._give_to_ve(dev, name)

    def symlink(self, operation: operations.Symlink) -> None:
        with self.program.descriptor() as parent:
            name = self._open_parent(operation.path, parent)
            self.program.call("symlinkat", encoded(operation.points_to), parent, name)
            self._give_to_ve(parent, name)

    def mask(self, operation: operations.Mask) -> None:
        """Cover with the empty file or directory of the stage's tmpfs, read-only. Targets are found below the
        descriptor of the mount itself, never by a path the VE could have swapped (CVE-2025-31133)."""
        under = self.mounted[operation.under]
        for name in operation.names:
            self._cover(under, encoded(name))

    def _cover(self, under: Register, name: bytes) -> None:
        program = self.program
        target, cover = program.register(), program.register()
        flags = _PATH_ONLY | os.O_NOFOLLOW
        opened = program.call("openat", under, name, flags | os.O_DIRECTORY, into=target)
        mounting.clone_tree(program, _AT_FDCWD, b"mask/directory", cover)
        attached = mounting.attach(program, cover, target)
        program.expect(opened, errno.ENOTDIR)
        opened_file = program.call("openat", under, name, flags, into=target)
        mounting.clone_tree(program, _AT_FDCWD, b"mask/file", cover)
        mounting.attach(program, cover, target)
        program.else_(attached)
        program.call("close", cover)
        program.call("close", target)
        program.expect(opened, errno.ENOENT)
        program.expect(opened_file, errno.ENOENT)
        program.release(target, cover)

    def read_only(self, operation: operations.ReadOnly) -> None:
        program, under = self.program, self.mounted[operation.under]
        kept = [(encoded(name), program.register()) for name in operation.writable]
        for name, fd in kept:
            mounting.clone_tree(program, under, name, fd)
        for text in operation.names:
            name = encoded(text)
            with program.optional_descriptor() as fd:
                mounting.clone_tree(program, under, name, fd)
                mounting.set_attributes(program, fd, MOUNT_ATTR["ro"])
                mounting.attach_at(program, fd, under, text)
        for name, fd in kept:
            mounting.attach_at(program, fd, under, name.decode())
            program.call("close", fd)
            program.release(fd)

    def sysctl(self, operation: operations.Sysctl) -> None:
        text = operation.value
        value = self._expanded(text)
        length = self.program.number(lambda plan: len(plan.expand(text)))
        # The kernel may have been built without it.
        with self.program.optional_descriptor() as fd:
            self._open(self.mounted["proc"], f"sys/{operation.key}", os.O_WRONLY | os.O_CLOEXEC, _NO_LINKS, fd)
            self.program.call("write", fd, value, length)
        self.program.release(length)

    def console_(self, _operation: operations.Console) -> None:
        program, devpts, dev = self.program, self.mounted["dev/pts"], self.mounted["dev"]
        flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
        master, slave, index = program.register(), program.register(), program.register()
        number, name = program.room(4), program.room(24)
        program.call("openat", devpts, b"ptmx", flags, into=master)
        program.call("ioctl", master, TIOCSPTLCK, program.constant(bytes(4)))
        program.call("ioctl", master, TIOCGPTN, number)
        program.call("load32", number, into=index)
        program.call("decimal", name, index)
        program.call("ioctl", master, TIOCGPTPEER, flags, into=slave)
        program.call("fchown", slave, self._base, self._tty)
        with program.descriptor() as target:
            program.call("openat", dev, b"console", os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600,
                         into=target)
            with program.descriptor() as fd:
                mounting.clone_tree(program, devpts, name, fd)
                mounting.attach(program, fd, target)
        self.console = master, slave

    def write_file(self, operation: operations.WriteFile) -> None:
        """Write to a new file and rename it into place: what stands there is never opened for writing, so it may be
        a symlink, a fifo or a device without any effect on us."""
        managed = operation.when == "managed"
        if not (managed or self.plan.first):
            return
        program, number, first_line = self.program, self._number, _MANAGED if managed else b""

        def content_of(plan: Plan) -> bytes:
            operation = plan.operations[number]
            assert isinstance(operation, operations.WriteFile)
            return first_line + encoded(operation.content)

        content = program.parameter(room_for(operation.content) + len(_MANAGED), content_of)
        length = program.number(lambda plan: len(content_of(plan)))
        # A VE that knew the name could put something there.
        temporary = program.parameter(32, lambda _: f".vemgr-{secrets.token_hex(6)}".encode())
        with program.descriptor() as parent:
            name = self._open_parent(operation.path, parent)
            skipped = self._unless_ours(parent, name) if managed and not self.plan.first else []
            with program.descriptor() as fd:
                program.call("openat", parent, temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644,
                             into=fd)
                program.call("write", fd, content, length)
                program.call("fchown", fd, self._base, self._base)
            renamed = program.call("renameat2", parent, temporary, parent, name, 0)
            program.expect(renamed, ANY_ERROR)
            program.call("unlinkat", parent, temporary, 0)
            program.call("unlinkat", parent, name, 0)  # fails for the same reason: a directory, most likely
            program.else_(renamed)
            for call in skipped:
                program.expect(call, ANY_ERROR)
        program.release(length)

    def _unless_ours(self, parent: Register, name: bytes) -> list[int]:
        """What is absent or bears our first line is ours; returns the calls whose failure says that it is not."""
        program, found = self.program, self.program.room(len(_MANAGED))
        fd = program.register()
        # O_NONBLOCK: opening a fifo would wait for a writer for ever, and reading one too.
        opened = program.call("openat", parent, name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
                              into=fd)
        count = program.register()
        read = program.call("read", fd, found, len(_MANAGED), into=count)
        program.call("close", fd)
        whole = program.call("same", count, len(_MANAGED))
        equal = program.call("equal", found, program.constant(_MANAGED), len(_MANAGED))
        program.expect(opened, errno.ENOENT)
        program.release(fd, count)
        return [opened, read, whole, equal]

    def links(self, netns: Register) -> None:
        """Make the VE's links: done first, as the only part that happens in the host's network namespace."""
        number = len(self.plan.operations) - 1
        network = self.plan.operations[number]
        assert isinstance(network, operations.Network)
        self.program.step(number)
        if network.links:
            self.program.call("dup3", netns, operations.NETNS_FD, os.O_CLOEXEC)
            self._send_netlink(number, "links", network.links)
            self.program.call("close", operations.NETNS_FD)
        self.program.call("close", netns)

    def network(self, operation: operations.Network) -> None:
        self._send_netlink(self._number, "inside", operation.inside)

    def _send_netlink(self, number: int, name: str, encoded_messages: str) -> None:
        program = self.program

        def content_of(plan: Plan) -> bytes:
            return base64.b64decode(getattr(plan.operations[number], name))

        messages, answer = program.parameter(room_for(encoded_messages), content_of), program.room(_ANSWER_ROOM)
        length = program.number(lambda plan: len(content_of(plan)))
        with program.descriptor() as rtnl:
            program.call("socket", socket.AF_NETLINK, socket.SOCK_RAW | os.O_CLOEXEC, socket.NETLINK_ROUTE, into=rtnl)
            for option in (netlink.NETLINK_CAP_ACK, netlink.NETLINK_EXT_ACK):
                program.call("setsockopt", rtnl, netlink.SOL_NETLINK, option, program.constant(struct.pack("=i", 1)), 4)
            program.call("netlink", rtnl, messages, length, answer, _ANSWER_ROOM)
        program.release(length)


def shape(plan: Plan) -> tuple[Any, ...]:
    """What of a plan is in its program: all but the values that are parameters, of which the rough length is."""
    return (plan.init, plan.stage, plan.first, plan.capabilities, plan.id_count, room_for(plan.hostname),
            *(_operation_shape(operation) for operation in plan.operations))


def _operation_shape(operation: operations.Operation) -> Any:
    if isinstance(operation, operations.Overlay):
        return operation.target, operation.lowers, room_for(operation.data)
    if isinstance(operation, operations.WriteFile):
        return operation.path, operation.when, room_for(operation.content)
    if isinstance(operation, operations.Network):
        return room_for(operation.links) if operation.links else 0, room_for(operation.inside)
    return operation


def room_for(text: str) -> int:
    """Bytes for a parameter whose value is now `text`, and in other VEs about as long."""
    return max(64, 1 << len(encoded(text)).bit_length())


_EXECUTE: dict[type, Callable[[Setup, Any], None]] = {
    operations.Layer: Setup.layer,
    operations.Overlay: Setup.overlay,
    operations.Filesystem: Setup.filesystem,
    operations.Directory: Setup.directory,
    operations.Device: Setup.device,
    operations.Symlink: Setup.symlink,
    operations.Mask: Setup.mask,
    operations.ReadOnly: Setup.read_only,
    operations.WriteFile: Setup.write_file,
    operations.Sysctl: Setup.sysctl,
    operations.Console: Setup.console_,
    operations.Network: Setup.network,
}
