# SPDX-License-Identifier: GPL-2.0-or-later
"""The system call filter of a VE: seccomp(2), compiled by libseccomp in the daemon, installed by who enters a VE.

An allow list: what libseccomp knows on this machine, less `DENIED`. A call that is in neither answers ENOSYS, so a
system call that a newer kernel adds is closed until somebody has thought about it, and programs fall back as on an
older kernel.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import tempfile

from vemgr.kernel.libc import number, syscall

SECCOMP_SET_MODE_FILTER = 1
_HIGHEST_SYSCALL = 600  # past the end of every architecture's table

# Why each is closed to a VE; generated into SECURITY.md's list by `denied_names`.
DENIED: dict[str, tuple[str, ...]] = {
    "loads code into the kernel": (
        "init_module", "finit_module", "delete_module", "create_module", "query_module", "get_kernel_syms",
        "kexec_load", "kexec_file_load", "bpf",
    ),
    "sets something that the whole host shares": (
        "settimeofday", "clock_settime", "clock_settime64", "clock_adjtime", "clock_adjtime64", "adjtimex", "stime",
        "swapon", "swapoff", "acct", "quotactl", "quotactl_fd", "nfsservctl", "set_mempolicy_home_node",
    ),
    "touches hardware": ("iopl", "ioperm", "pciconfig_iobase", "pciconfig_read", "pciconfig_write", "vm86", "vm86old"),
    "keyrings are not separated by namespaces": ("add_key", "request_key", "keyctl"),
    "shows the host's kernel log": ("syslog",),
    "large attack surface, or a favourite tool of exploits, that servers do not need": (
        "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register",
        "open_by_handle_at", "lookup_dcookie", "kcmp", "fanotify_init", "migrate_pages", "move_pages",
        "remap_file_pages", "modify_ldt", "memfd_secret",
    ),
    "obsolete": (
        "uselib", "ustat", "sysfs", "_sysctl", "afs_syscall", "getpmsg", "putpmsg", "tuxcall", "security", "vserver",
        "epoll_ctl_old", "epoll_wait_old", "idle", "bdflush", "get_thread_area_old",
    ),
}
# personality(2): only the values that ordinary programs ask for (Linux, 32-bit Linux, each without randomisation
# being off, and the query); others weaken the address space layout.
PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)


def denied_names() -> frozenset[str]:
    return frozenset(name for names in DENIED.values() for name in names)


def compile_filter() -> bytes:
    """The filter as classic BPF instructions, 8 bytes each. Raises `OSError` when libseccomp refuses."""
    import pyseccomp  # noqa: PLC0415  (only the daemon compiles; the keeper must stay small)

    filter_ = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.ENOSYS))
    filter_.set_attr(pyseccomp.Attr.CTL_NNP, 0)
    filter_.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.ERRNO(errno.ENOSYS))
    for arch in _arches()[1:]:
        filter_.add_arch(arch)
    denied = denied_names()
    for name in sorted(known_syscalls()):
        if name == "personality":
            for value in PERSONALITIES:
                filter_.add_rule(pyseccomp.ALLOW, name, pyseccomp.Arg(0, pyseccomp.EQ, value))
        elif name in denied:
            filter_.add_rule(pyseccomp.ERRNO(errno.EPERM), name)
        else:
            filter_.add_rule(pyseccomp.ALLOW, name)
    with tempfile.TemporaryFile() as file:
        filter_.export_bpf(file)
        file.seek(0)
        return file.read()


def digest() -> str:
    """Names this filter's policy: a compiled one is good as long as it does not change."""
    import hashlib  # noqa: PLC0415

    return hashlib.sha256(repr((DENIED, PERSONALITIES, platform.machine())).encode()).hexdigest()[:16]


def _arches() -> list[int]:
    """This machine's own first."""
    import pyseccomp  # noqa: PLC0415

    native: int = pyseccomp.system_arch()
    return [native, pyseccomp.Arch.X86] if native == pyseccomp.Arch.X86_64 else [native]  # 32-bit programs


def known_syscalls() -> set[str]:
    """What libseccomp knows on this machine."""
    import pyseccomp  # noqa: PLC0415

    names = set()
    for arch in _arches():
        for nr in range(_HIGHEST_SYSCALL):
            try:
                names.add(pyseccomp.resolve_syscall(arch, nr).decode())
            except ValueError:
                continue
    return names


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def install(filter_: bytes) -> None:
    """Put this process and all its descendants under `filter_`; needs CAP_SYS_ADMIN in its user namespace."""
    buffer = ctypes.create_string_buffer(filter_, len(filter_))
    program = _Program(len(filter_) // 8, ctypes.addressof(buffer))
    syscall("seccomp", number("seccomp"), SECCOMP_SET_MODE_FILTER, 0, ctypes.byref(program))
