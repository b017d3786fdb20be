# SPDX-License-Identifier: GPL-2.0-or-later
"""The last steps of every process that becomes part of a VE, init and exec'd commands alike."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterable
from typing import NoReturn

import prctl

from vemgr.kernel import capabilities, namespaces, seccomp
from vemgr.kernel.libc import SYS_close_range, syscall

OPEN_FILES = (1024, 524288)  # systemd's defaults: what programs inside a distribution are tested with
_CORE_PATTERN = "/proc/sys/kernel/core_pattern"


def hide() -> None:
    """Let nobody but the host's root trace us or see our descriptors. To be repeated after each change of ids and of
    user namespace: the kernel then goes back to fs.suid_dumpable, which may be 1."""
    prctl.set_dumpable(0)


def core_limits() -> tuple[int, int]:
    """RLIMIT_CORE of a VE's processes, from the host's /proc. Where cores go to a program, the host would run that as
    its root, with what a VE's process has in its memory: a limit of 1 is the kernel's word for not to (do_coredump),
    and the VE cannot raise it."""
    with open(_CORE_PATTERN, "rb", buffering=0) as file:
        return (1, 1) if file.read(1) in (b"|", b"@") else resource.getrlimit(resource.RLIMIT_CORE)


def close_all_but(keep: Iterable[int]) -> None:
    """Close what was inherited of the keeper: other VEs' pidfds and consoles, the daemon's socket. 0, 1 and 2 become
    what the keeper's 0 is, /dev/null. To be done before anything of the VE could reach us."""
    os.dup2(0, 1)
    os.dup2(0, 2)
    first = 3
    for fd in sorted(fd for fd in keep if fd > 2):
        if fd > first:
            syscall("close_range", SYS_close_range, first, fd - 1, 0)
        first = fd + 1
    namespaces.close_from(first)


def drop_privileges(keep: tuple[str, ...], filter_: bytes) -> None:
    """Install the system call filter and bound the capabilities: in this order, as the filter needs CAP_SYS_ADMIN of
    the VE's user namespace, which may be among those that are dropped."""
    seccomp.install(filter_)
    capabilities.bound_to(set(keep))


def reset_process() -> None:
    """Undo what a Python program changes for itself and a new program would inherit over exec."""
    for signum in range(1, signal.NSIG):
        try:
            signal.signal(signum, signal.SIG_DFL)
        except (OSError, ValueError):
            continue  # SIGKILL, SIGSTOP and the two that the C library keeps to itself
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.umask(0o022)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES[0], hard), min(OPEN_FILES[1], hard)))


def take_stdio(stdin: int, stdout: int, stderr: int) -> None:
    """Make three descriptors 0, 1 and 2, whatever numbers they have, and let no other survive exec."""
    # Lift them out of 0..2 first, or the first dup2 could close the source of the second.
    lifted = [os.dup(fd) if fd > 2 else _dup_above(fd) for fd in (stdin, stdout, stderr)]
    for target, fd in enumerate(lifted):
        os.dup2(fd, target, inheritable=True)
    namespaces.close_on_exec_from(3)


def _dup_above(fd: int) -> int:
    import fcntl  # noqa: PLC0415

    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def exec_program(argv: list[str], env: dict[str, str]) -> NoReturn:
    """execve(2) along PATH of `env`. Raises the most telling `OSError`: EACCES rather than a later ENOENT.

    Text is UTF-8 whatever the keeper's locale is, and surrogates are the bytes that they stand for (PEP 383).
    """
    program = argv[0]
    arguments = [_bytes(argument) for argument in argv]
    variables = {_bytes(key): _bytes(value) for key, value in env.items()}
    if "/" in program:
        os.execve(_bytes(program), arguments, variables)
    failure: OSError = FileNotFoundError(2, os.strerror(2), program)
    for directory in env.get("PATH", "").split(":"):
        try:
            os.execve(_bytes(f"{directory}/{program}"), arguments, variables)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            failure = error
    raise failure


def check_environment(env: dict[str, str]) -> None:
    """Raises `OSError` EINVAL for what cannot be the name of a variable."""
    for key in env:
        if not key or "=" in key or "\0" in key:
            raise OSError(22, "not a name for a variable of the environment", repr(key))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
