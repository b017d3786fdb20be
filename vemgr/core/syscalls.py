# SPDX-License-Identifier: GPL-2.0-or-later
"""Which system calls a VE may make: values only; `kernel.seccomp` makes a filter of them.

What is not named here, and is not newer than `NEWEST`, is allowed. A refused call answers EPERM where that is what
the kernel itself says to a program without the privilege, and ENOSYS where programs then take an older way, as on a
kernel that was built without it.
"""

from __future__ import annotations

from dataclasses import dataclass

# The same on all architectures we know.
EPERM, EINVAL, ENOSYS, EPROTONOSUPPORT, ESOCKTNOSUPPORT, EAFNOSUPPORT = 1, 22, 38, 93, 94, 97

# fchmodat2 of Linux 6.6. From 424 on a number means the same call everywhere (asm-generic/unistd.h). A call that
# a newer kernel adds is closed until somebody has thought about it.
NEWEST = 452


@dataclass(frozen=True)
class Refusal:
    """`allow`: the word of the setting `allow` that opens these calls, "" if nothing does."""

    reason: str
    errno: int
    names: tuple[str, ...]
    allow: str = ""


REFUSED: tuple[Refusal, ...] = (
    Refusal("load code into the kernel", EPERM, (
        "init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "bpf")),
    Refusal("set something that the whole host shares", EPERM, (
        "settimeofday", "clock_settime", "clock_settime64", "clock_adjtime", "clock_adjtime64", "adjtimex", "stime",
        "swapon", "swapoff", "acct", "quotactl", "quotactl_fd", "syslog", "vhangup")),
    Refusal("touch hardware", EPERM, (
        "iopl", "ioperm", "pciconfig_iobase", "pciconfig_read", "pciconfig_write", "vm86", "vm86old")),
    Refusal("look at more than the VE, or lead around its file system's root", EPERM, (
        "perf_event_open", "open_by_handle_at", "fanotify_init", "fanotify_mark", "userfaultfd", "lookup_dcookie")),
    Refusal("keyrings: namespaces do not separate them", ENOSYS, ("add_key", "request_key", "keyctl"), "keyrings"),
    Refusal("io_uring: a second way to make system calls, past this filter", ENOSYS, (
        "io_uring_setup", "io_uring_enter", "io_uring_register"), "io-uring"),
    Refusal("second ways to mount and to fork; programs fall back to the first", ENOSYS, (
        "fsopen", "fsconfig", "fsmount", "fspick", "open_tree", "move_mount", "mount_setattr", "clone3"), "nesting"),
    Refusal("reach into another process; ptrace is there for debuggers", ENOSYS, (
        "process_vm_readv", "process_vm_writev", "process_madvise", "process_mrelease", "pidfd_getfd", "kcmp",
        "get_robust_list")),
    Refusal("place memory on nodes of the host", ENOSYS, (
        "get_mempolicy", "set_mempolicy", "set_mempolicy_home_node", "mbind", "migrate_pages", "move_pages"), "numa"),
    Refusal("POSIX message queues: seldom used, and the kernel's bounds on them are small", ENOSYS, (
        "mq_open", "mq_unlink", "mq_timedsend", "mq_timedsend_time64", "mq_timedreceive", "mq_timedreceive_time64",
        "mq_notify", "mq_getsetattr"), "mqueue"),
    Refusal("favourite tools of exploits that servers do not need", ENOSYS, (
        "vmsplice", "tee", "remap_file_pages", "modify_ldt", "memfd_secret", "name_to_handle_at", "cachestat",
        "futex_waitv", "pkey_alloc", "pkey_free", "pkey_mprotect")),
    Refusal("obsolete", ENOSYS, (
        "create_module", "query_module", "get_kernel_syms", "uselib", "ustat", "sysfs", "_sysctl", "afs_syscall",
        "getpmsg", "putpmsg", "tuxcall", "security", "vserver", "nfsservctl", "epoll_ctl_old", "epoll_wait_old",
        "idle", "bdflush")),
)
I386 = "i386"  # the word that opens the second table of system calls of x86-64
ALLOWABLE = (I386, *sorted({refusal.allow for refusal in REFUSED} - {""}))


@dataclass(frozen=True)
class Condition:
    """Argument `position`, its lower 32 bits, must be one of `values`; else the call fails with `errno`. With
    `inverted` it must be none of them; with `bits` they are bits, of which any counts. `only_if`: the condition holds
    where an earlier argument (position, value) is so. `allow`: the word that lifts it."""

    position: int
    values: tuple[int, ...]
    errno: int
    inverted: bool = False
    bits: bool = False
    only_if: tuple[int, int] | None = None
    allow: str = ""


AF_NETLINK = 16
_FAMILIES = (1, 2, 10, AF_NETLINK, 17)  # Unix, IPv4, IPv6, netlink, packet: what DHCP clients and tcpdump need
_NETLINK = (0, 4, 6, 12, 15, 16)  # route, sock_diag, xfrm, netfilter, uevent, generic; not audit, which is the host's
# Not DCCP, L2TP and SCTP of IPv4 and IPv6: the host would load them for anybody who asks (inet_create), and they have
# been ways into the kernel. Types above raw sockets are theirs; no other family has these numbers for a protocol.
_RARE_TYPES, _RARE_PROTOCOLS = 0x4 | 0x8, (33, 115, 132)
_SOCKET = (
    Condition(0, _FAMILIES, EAFNOSUPPORT),
    Condition(2, _NETLINK, EPROTONOSUPPORT, only_if=(0, AF_NETLINK)),
    Condition(2, _RARE_PROTOCOLS, EPROTONOSUPPORT, inverted=True),
    *(Condition(1, (_RARE_TYPES,), ESOCKTNOSUPPORT, inverted=True, bits=True, only_if=(0, family))
      for family in (2, 10)),
)
CONDITIONS: dict[str, tuple[Condition, ...]] = {
    "socket": _SOCKET,
    "socketpair": (Condition(0, (1,), EAFNOSUPPORT),),  # no other family has pairs
    # Linux, 32-bit Linux, each without memory below a stack, and the query; others weaken the address space layout.
    "personality": (Condition(0, (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF), EPERM),),
    # TIOCSTI and TIOCLINUX type into a terminal what its owner did not. TIOCSETD has the host load a driver to read it
    # with: several of those (n_gsm, n_hdlc) have been ways into the kernel.
    "ioctl": (Condition(1, (0x5412, 0x541C, 0x5423), EPERM, inverted=True),),
    # CLONE_PARENT: the children of a command would be children of the keeper, which no limit of the VE pays for. The
    # kernel says the same to the init of a process namespace. runc cannot do without, and clone3 is not looked into.
    "clone": (Condition(0, (0x8000,), EINVAL, inverted=True, bits=True, allow="nesting"),),
    # PR_SET_MM: a process may not tell the host that it runs another program than it does.
    "prctl": (Condition(0, (35,), EPERM, inverted=True),),
}


def refusals(allow: frozenset[str]) -> dict[str, int]:
    """Name to errno of every call that is refused where `allow` opens some."""
    return {name: refusal.errno for refusal in REFUSED if refusal.allow not in allow for name in refusal.names}
