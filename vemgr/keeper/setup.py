# SPDX-License-Identifier: GPL-2.0-or-later
"""The set-up of a VE: a plan's operations as a program of system calls.

It runs as root of the host, in a mount namespace of its own, after the VE's first process has been cloned and *before*
that one copies the mount namespace. So it can enter the VE's network, ipc, uts and cgroup namespaces while it still is
root of the host, and every mount it makes ends up locked when the VE's init copies the mount namespace into its own
user namespace (mount_namespaces(7), "Restrictions"): a VE cannot lift the masks over its /proc, which runc and LXC
cannot say of theirs.

Paths inside the VE's tree are looked up by `Tree` alone.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from vemgr.core import plan as operations
from vemgr.core.plan import TTY_GROUP, Plan
from vemgr.keeper import covers, messages, mounting
from vemgr.keeper.program import Data, Program, Register, encoded, room_for
from vemgr.keeper.tree import DIRECTORY, IN_ROOT, NO_LINKS, PATH_ONLY, Managed, Tree
from vemgr.kernel import libc, namespaces
from vemgr.kernel.mounts import MOUNT_ATTR
from vemgr.kernel.openat2 import RESOLVE_NO_SYMLINKS

TIOCGPTN = 0x80045430
TIOCGPTPEER = 0x5441
TIOCSPTLCK = 0x40045431
_MANAGED = b"# written by vemgr at each start; remove this line to keep your own\n"
_AT_FDCWD = -100
_ONE = struct.pack("=i", 1)
_COUNT_ROOM = 8
_PR_SET_SECUREBITS, _NO_SETUID_FIXUP = 28, 1 << 2


class _Pending(NamedTuple):
    """A /proc that a child is mounting: the operation's number, where, by whom, descriptors of the place and for it."""

    number: int
    target: str
    child: Register
    place: Register
    into: Register


class Setup:
    """Appends the calls of `plan`, and of all that have its `shape`, to `program`. `init`: the VE's first process, as a
    pidfd. `userns`: descriptor of its user namespace. `network`: a pipe with one byte for each who waits for init's
    network namespace, of which there are three.

    `root` and the members of `mounted` are descriptors; `console`: master and slave, once there is one;
    `notify_socket` likewise.
    """

    def __init__(self, program: Program, plan: Plan, init: Register, userns: Register, network: Register) -> None:
        self.program = program
        self.plan = plan
        self.userns = userns
        self._init = init
        self._network = network
        self._in_network = False
        self.root = program.register()
        self._base = program.number(lambda plan: plan.id_base)
        self._tty = program.number(lambda plan: plan.id_base + TTY_GROUP)
        self.tree = Tree(program, self.root, self._base)
        self.mounted: dict[str, Register] = {}
        self._proc: _Pending | None = None
        self.console: tuple[Register, Register] | None = None
        self.notify_socket: Register | None = None
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
        covers.make_masks(program)

    def _tmpfs(self, path: str) -> None:
        with mounting.new_filesystem(self.program, "tmpfs", (("mode", b"700"), ("size", b"64k"))) as fd:
            mounting.attach_at(self.program, fd, _AT_FDCWD, path)

    def finish(self) -> None:
        self._await_proc()
        # A descriptor of the host's file system that lived on would lead out of the VE.
        self.program.step("pivot")
        mounting.pivot_into(self.program, self.root)

    def await_init(self) -> None:
        """Until it has its copy of the mounts, or has ended. Whoever leaves the old ones last takes them apart, and
        waits for an RCU grace period: that is not to be init."""
        if not self._in_network:
            self._await_network()
        self.program.call("read", self._network, self.program.room(8), 1)

    def layer(self, operation: operations.Layer) -> None:
        with mounting.open_tree(self.program, encoded(operation.source)) as fd:
            if not self.plan.nested:
                mounting.set_attributes(self.program, fd, userns=self.userns)
            self._attach_to_stage(fd, f"l{operation.index}")

    def disk(self, operation: operations.Disk) -> None:
        """Moved to where only this VE's mounts are: it is unmounted with the last of them."""
        with self.program.descriptor() as fd:
            self.program.call("openat", _AT_FDCWD, self._field("mount", operation.mount), PATH_ONLY, into=fd)
            self._attach_to_stage(fd, operations.DISK)

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
            # Without it rename(2) of a directory of the template fails with EXDEV. In a VE the kernel does not have it,
            # and keeps its notes under names that the VE may write.
            ("userxattr", b"") if self.plan.nested else ("redirect_dir", b"on"),
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
            self.tree.open_directory(target, target_fd, NO_LINKS)
            mounting.attach(self.program, fd, target_fd)
        self.mounted[target] = fd

    def filesystem(self, operation: operations.Filesystem) -> None:
        options = [(key, self._expanded(value)) for key, value in operation.options]
        attributes = sum(MOUNT_ATTR[flag] for flag in operation.flags)
        fd = self.program.register()
        if operation.fstype == "proc":
            self._mount_proc(operation.target, options, attributes, fd)
        else:
            if operation.fstype == "sysfs":  # it shows the links of who mounts it
                self._enter_network()
            mounting.make_filesystem(self.program, fd, operation.fstype, options, attributes)
            self._mount(fd, operation.target)

    def _mount_proc(self, target: str, options: mounting.Options, attributes: int, into: Register) -> None:
        """In a child: setns(2) puts only our *children* into the VE's pid namespace, and a proc file system shows the
        pid namespace of who makes it. The VE's own is covered by it as well, and nobody waits for that until something
        in it is needed."""
        program = self.program
        child, target_fd = program.register(), program.register()
        self.tree.open_directory(target, target_fd, NO_LINKS)
        with program.forked(child), mounting.new_filesystem(program, "proc", options, attributes) as fd:
            mounting.attach(program, fd, target_fd)
            if target == "proc":
                self._cover_proc(fd)
        self.mounted[target] = into
        self._proc = _Pending(self._number, target, child, target_fd, into)
        if target != "proc":
            self._await_proc()

    def _cover_proc(self, proc: Register) -> None:
        """In the VE's network namespace: /proc/sys/net has other entries in each, of which the same name is covered in
        one and not in the next."""
        program = self.program
        self._await_network()
        program.call("setns", self._init, namespaces.CLONE_NEWNET)
        with program.descriptor() as settings:  # a walk that begins below a cover does not meet it
            program.call("openat", proc, b"sys", DIRECTORY, into=settings)
            for number, operation in enumerate(self.plan.operations):
                if isinstance(operation, operations.Mask | operations.ReadOnly) and operation.under == "proc":
                    program.step(number)
                    covers.cover(program, proc, operation)
            program.step(self._number)
            self._bound_user_namespaces(settings)

    def _await_proc(self) -> None:
        if self._proc is None:
            return
        number, target, child, target_fd, into = self._proc
        self._proc = None
        program = self.program
        program.step(number)
        program.call("wait", child)
        program.call("close", target_fd)
        self.tree.open_directory(target, into, NO_LINKS)
        program.step(self._number)

    def _bound_user_namespaces(self, settings: Register) -> None:
        """namespaces(7), "The /proc/sys/user directory": of the namespace of who opens it. `settings`: "sys" of the
        VE's own /proc. In the host's each user namespace leaves an entry of the same name behind, and the kernel goes
        through all of them at each look-up (proc_sys_compare). At the end of the child, since there is no way back out
        of a user namespace."""
        program = self.program
        program.call("setns", self.userns, namespaces.CLONE_NEWUSER)
        program.call("prctl", libc.PR_SET_DUMPABLE, 0)  # of a VE's namespace from now on: see `confine.hide`
        count = program.parameter(_COUNT_ROOM, lambda plan: str(plan.user_namespaces).encode().ljust(_COUNT_ROOM))
        with program.descriptor() as fd:
            program.call("openat", settings, b"user/max_user_namespaces", os.O_WRONLY | os.O_CLOEXEC, into=fd)
            program.call("write", fd, count, _COUNT_ROOM)

    def directory(self, operation: operations.Directory) -> None:
        with self.program.descriptor() as fd:
            self.tree.open_directory(operation.path, fd, IN_ROOT, operation.mode)

    def device(self, operation: operations.Device) -> None:
        dev, name = self.mounted["dev"], encoded(operation.name)
        if self.plan.nested:
            self._passed_on(dev, name)
            return
        self.program.call("mknodat", dev, name, operation.mode | stat.S_IFCHR,
                          os.makedev(operation.major, operation.minor))
        self.tree.give_to_ve(dev, name)

    def _passed_on(self, dev: Register, name: bytes) -> None:
        """Nobody in a user namespace makes device nodes: the one around is seen. Read-only: its owner here is its owner
        there, and could close /dev/null to all around; what is written to a device is no change of the mount."""
        program = self.program
        with program.descriptor() as target, program.descriptor() as fd:
            program.call("openat", dev, name, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666, into=target)
            mounting.clone_tree(program, _AT_FDCWD, b"/dev/" + name, fd)
            mounting.set_attributes(program, fd, MOUNT_ATTR["ro"])
            mounting.attach(program, fd, target)

    def host_device(self, operation: operations.HostDevice) -> None:
        dev, name = self.mounted["dev"], encoded(operation.name)
        if self.plan.nested:
            self._passed_on(dev, name)
            return
        kind = stat.S_IFBLK if operation.block else stat.S_IFCHR
        self.program.call("mknodat", dev, name, operation.mode | kind, os.makedev(operation.major, operation.minor))
        self.tree.give_to_ve(dev, name)

    def symlink(self, operation: operations.Symlink) -> None:
        self.tree.symlink(operation.path, encoded(operation.points_to))

    def cover(self, operation: operations.Mask | operations.ReadOnly) -> None:
        if operation.under != "proc":  # which its child has covered
            covers.cover(self.program, self.mounted[operation.under], operation)

    def view(self, operation: operations.View) -> None:
        self._await_proc()
        covers.view(self.program, self.mounted, operation)

    def sysctl(self, operation: operations.Sysctl) -> None:
        text = operation.value
        self._enter_network()
        value = self._expanded(text)
        length = self.program.number(lambda plan: len(plan.expand(text)))
        self._await_proc()  # before the block, of which the first call alone may find nothing
        # The kernel may have been built without it.
        with self.program.optional_descriptor() as fd:
            self.tree.open(self.mounted["proc"], f"sys/{operation.key}", os.O_WRONLY | os.O_CLOEXEC, NO_LINKS, fd)
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

    def notify(self, operation: operations.Notify) -> None:
        """Bound by its name alone, in its directory: a longer path might lead elsewhere."""
        program = self.program
        directory, _, name = operation.path.rpartition("/")
        notify, here = program.register(), program.register()
        flags = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        program.call("socket", socket.AF_UNIX, flags, 0, into=notify)
        program.call("setsockopt", notify, socket.SOL_SOCKET, socket.SO_PASSCRED, program.constant(_ONE), len(_ONE))
        address = struct.pack("=H", socket.AF_UNIX) + encoded(name) + b"\0"
        program.call("openat", _AT_FDCWD, b".", PATH_ONLY, into=here)
        with program.descriptor() as parent:
            self.tree.open_directory(directory, parent, NO_LINKS)
            program.call("fchdir", parent)
            program.call("bind", notify, program.constant(address), len(address))
            program.call("fchdir", here)
            self.tree.give_to_ve(parent, encoded(name))
        program.call("close", here)
        program.release(here)
        self.notify_socket = notify

    def write_file(self, operation: operations.WriteFile) -> None:
        managed = operation.when == "managed"
        if not (managed or self.plan.first):
            return
        program, number, first_line = self.program, self._number, _MANAGED if managed else b""
        kept = managed and not self.plan.first  # there may be one that the VE's administrator has made his own

        def content_of(plan: Plan) -> bytes:
            operation = plan.operations[number]
            assert isinstance(operation, operations.WriteFile)
            return first_line + encoded(operation.content)

        room = room_for(operation.content) + len(_MANAGED)
        content = program.parameter(room, content_of)
        length = program.number(lambda plan: len(content_of(plan)))
        rest = program.number(lambda plan: len(content_of(plan)) - len(first_line))
        self.tree.write_file(operation.path, content, length, Managed(_MANAGED, rest, room) if kept else None)
        program.release(length, rest)

    def bind(self, operation: operations.Bind) -> None:
        """nosuid and nodev: what others of the host put there must give no rights in the VE."""
        program = self.program
        attributes = MOUNT_ATTR["nosuid"] | MOUNT_ATTR["nodev"] | (MOUNT_ATTR["ro"] if operation.read_only else 0)
        how = program.constant(struct.pack("=QQQ", DIRECTORY if operation.directory else PATH_ONLY, 0,
                                           RESOLVE_NO_SYMLINKS))
        with program.descriptor() as source, program.descriptor() as fd, program.descriptor() as target:
            program.call("openat2", _AT_FDCWD, self._field("source", operation.source), how, 24, into=source)
            mounting.clone_tree(program, source, b"", fd)
            mounting.set_attributes(program, fd, attributes, None if self.plan.nested else self.userns)
            self.tree.open_for_mount(operation.target, target, directory=operation.directory)
            mounting.attach(program, fd, target)

    def _await_network(self) -> None:
        """Its end without a byte is the end of init, which has told why."""
        program, count, byte = self.program, self.program.register(), self.program.room(8)
        program.call("read", self._network, byte, 1, into=count)
        program.call("same", count, 1)
        program.release(count)

    def _enter_network(self) -> None:
        """Where something depends on the network namespace for the first time."""
        if not self._in_network:
            self._await_network()
            self.program.call("setns", self._init, namespaces.CLONE_NEWNET)
            self._in_network = True

    def make_network(self, process: Register) -> None:
        """Make the VE's links, from the host's network namespace, and configure their other ends, from the VE's: all
        that the helper does. `process`: init's directory in /proc."""
        program, number = self.program, len(self.plan.operations) - 1
        assert isinstance(self.plan.operations[number], operations.Network)
        program.step(number)
        self._await_network()
        netns = program.register()
        program.call("openat", process, b"ns/net", os.O_RDONLY | os.O_CLOEXEC, into=netns)
        program.call("dup3", netns, operations.NETNS_FD, os.O_CLOEXEC)
        messages.receive_and_send(program, required=False)
        program.call("setns", netns, namespaces.CLONE_NEWNET)
        messages.receive_and_send(program, required=True)
        program.release(netns)

    def network(self, _operation: operations.Network) -> None:
        """Made by the helper, meanwhile."""


def shape(plan: Plan) -> tuple[Any, ...]:
    """What of a plan is in its program: all but the values that are parameters, of which the rough length is."""
    return (plan.nested, plan.init, plan.stage, plan.first, plan.capabilities, plan.id_count, room_for(plan.hostname),
            *(_operation_shape(operation) for operation in plan.operations))


def _operation_shape(operation: operations.Operation) -> Any:
    if isinstance(operation, operations.Overlay):
        return operation.target, operation.lowers, room_for(operation.data)
    if isinstance(operation, operations.WriteFile):
        return operation.path, operation.when, room_for(operation.content)
    if isinstance(operation, operations.Disk):
        return operation.kind, room_for(operation.mount)
    if isinstance(operation, operations.Bind):
        return operation.target, operation.directory, operation.read_only, room_for(operation.source)
    if isinstance(operation, operations.Network):
        return operation.kind  # its messages are no part of the program
    return operation


_EXECUTE: dict[type, Callable[[Setup, Any], None]] = {
    operations.Layer: Setup.layer,
    operations.Disk: Setup.disk,
    operations.Overlay: Setup.overlay,
    operations.Filesystem: Setup.filesystem,
    operations.Directory: Setup.directory,
    operations.Device: Setup.device,
    operations.HostDevice: Setup.host_device,
    operations.Symlink: Setup.symlink,
    operations.Mask: Setup.cover,
    operations.ReadOnly: Setup.cover,
    operations.View: Setup.view,
    operations.WriteFile: Setup.write_file,
    operations.Bind: Setup.bind,
    operations.Sysctl: Setup.sysctl,
    operations.Console: Setup.console_,
    operations.Notify: Setup.notify,
    operations.Network: Setup.network,
}
