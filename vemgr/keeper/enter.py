# SPDX-License-Identifier: GPL-2.0-or-later
"""Running a command inside a VE: into its cgroup, its namespaces, its capability bounds and its seccomp filter.

    keeper --clone3 into the cgroup--> entering process --setns, clone3(CLONE_PARENT)--> the command (child of keeper)

The entering process is not dumpable and its memory belongs to the host's user namespace, so the VE's root can
neither trace it nor read its descriptors while it is between the two worlds. If he could, he would find none but the
command's own and the channel: all others are closed before.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import signal
import socket
import stat
import struct
import termios
import time
from dataclasses import dataclass
from typing import NoReturn

from vemgr.core.ids import ID_COUNT
from vemgr.core.plan import PAYLOAD_ENVIRONMENT
from vemgr.core.privileges import CAPABILITIES
from vemgr.keeper import confine
from vemgr.keeper.protocol import channel_pair, failure, send
from vemgr.keeper.setup import TIOCGPTPEER, TIOCSPTLCK
from vemgr.kernel import namespaces

_ALL_NAMESPACES = (
    namespaces.CLONE_NEWUSER | namespaces.CLONE_NEWNS | namespaces.CLONE_NEWPID | namespaces.CLONE_NEWNET
    | namespaces.CLONE_NEWUTS | namespaces.CLONE_NEWIPC | namespaces.CLONE_NEWCGROUP | namespaces.CLONE_NEWTIME
)
_PASSWD_BOUND = 1 << 20
_NAP = 0.05  # seconds
_WINSIZE = 8  # bytes of a struct winsize


@dataclass(frozen=True)
class Command:
    """`argv` empty means the user's login shell. `user`: name or "uid" or "uid:gid". `tty`: give it a terminal."""

    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    user: str
    tty: bool
    capabilities: tuple[str, ...] = CAPABILITIES


@dataclass(frozen=True)
class Account:
    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str
    home: str
    shell: str


def fork_command(command: Command, init_pidfd: int, cgroup_fd: int, filter_: bytes,
                 stdio: list[int]) -> tuple[int, int, socket.socket]:
    """Fork the entering process. `stdio`: three descriptors, or with `tty` one socket that gets the terminal's
    master. Returns its pid and pidfd, and the channel on which it reports `entered` with pid and pidfd of the
    command, or `failed`. Raises `OSError`."""
    confine.check_environment(command.env)
    ours, theirs = channel_pair()
    pid, pidfd = namespaces.clone3(0, cgroup_fd=cgroup_fd)
    if pid == 0:
        _enter(command, init_pidfd, filter_, stdio, theirs)
    theirs.close()
    return pid, pidfd, ours


def _enter(command: Command, init_pidfd: int, filter_: bytes, stdio: list[int], channel: socket.socket) -> NoReturn:
    try:
        confine.hide()
        _forget_signals()
        resource.setrlimit(resource.RLIMIT_CORE, confine.core_limits())
        confine.close_all_but({init_pidfd, channel.fileno(), *stdio})
        # VEs in a VE have its clocks, which are its host's to give.
        namespaces.setns(init_pidfd, _ALL_NAMESPACES & ~(namespaces.CLONE_NEWTIME if namespaces.nested() else 0))
        confine.hide()
        os.close(init_pidfd)
        pid, pidfd = namespaces.clone3(namespaces.CLONE_PARENT)
        if pid == 0:
            _become_command(command, filter_, stdio, channel)
        send(channel, {"event": "entered", "pid": pid}, [pidfd])
    except Exception as error:  # whatever it is, somebody waits to be told
        _report(channel, "enter", error)
    finally:
        os._exit(0)


def _forget_signals() -> None:
    """The keeper's SIGCHLD handling writes to a pipe of the keeper: not ours to write to."""
    signal.set_wakeup_fd(-1)
    for signum in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_DFL)


def _report(channel: socket.socket, operation: str, error: Exception) -> None:
    """For as long as it takes: without a word, the end of the conversation would count as success. The keeper ends us
    after a while."""
    told = False
    while not told:
        try:
            send(channel, {"event": "failed", **failure(operation, error)})
            told = True
        except OSError as obstacle:
            told = obstacle.errno not in (errno.ENOBUFS, errno.ENOMEM)
            time.sleep(0 if told else _NAP)


def _become_command(command: Command, filter_: bytes, stdio: list[int], channel: socket.socket) -> NoReturn:
    operation = "enter"
    try:
        # A session of its own: the administrator's terminal must not be the command's controlling terminal, or it
        # could push characters into it (TIOCSTI).
        os.setsid()
        # Until now we have the host root's ids, which do not exist in the VE: what we made would belong to nobody.
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        confine.hide()
        account = find_account(command.user)
        if command.tty:
            operation = "open a terminal"
            stdio = _open_terminal(stdio[0], account)
        operation = "drop privileges"
        confine.drop_privileges(command.capabilities, filter_)
        os.setgroups(account.groups)
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
        confine.hide()
        confine.reset_process()
        env = _environment(command, account)
        operation = f"change to directory {command.cwd or account.home}"
        _change_directory(command.cwd, account.home)
        operation = "pass on its input and output"
        confine.take_stdio(*stdio)
        operation = "exec"
        confine.exec_program(list(command.argv) or [account.shell], env)
    except Exception as error:
        _report(channel, operation, error)
    finally:
        os._exit(127)


def _change_directory(cwd: str, home: str) -> None:
    if cwd:
        os.chdir(cwd)
        return
    try:
        os.chdir(home)
    except OSError:
        os.chdir("/")  # a home that does not exist must not keep an administrator out


def _environment(command: Command, account: Account) -> dict[str, str]:
    return {**PAYLOAD_ENVIRONMENT, "HOME": account.home, "USER": account.name, "LOGNAME": account.name,
            "SHELL": account.shell, **command.env}


def _open_terminal(control_fd: int, account: Account) -> list[int]:
    """A pseudo-terminal of the VE, its master sent to the caller over `control_fd`, where a struct winsize may wait.

    The VE's root decides what /dev/pts is, so nothing is believed: a fifo cannot hold us (O_NONBLOCK), a symlink is
    not followed, and what was opened must be the multiplexer of a devpts.
    """
    flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
    master = os.open("/dev/pts/ptmx", flags | os.O_NOFOLLOW | os.O_NONBLOCK)
    found = os.fstat(master)
    if not stat.S_ISCHR(found.st_mode) or found.st_rdev != os.makedev(5, 2):
        raise OSError(25, "not a pseudo-terminal multiplexer", "/dev/pts/ptmx")
    os.set_blocking(master, True)
    fcntl.ioctl(master, TIOCSPTLCK, struct.pack("i", 0))
    slave = fcntl.ioctl(master, TIOCGPTPEER, flags)
    os.fchown(slave, account.uid, -1)
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    with socket.socket(fileno=os.dup(control_fd)) as control:
        # Before the command runs, or it would find a terminal without a size.
        with contextlib.suppress(BlockingIOError):
            size = control.recv(_WINSIZE, socket.MSG_DONTWAIT)
            if len(size) == _WINSIZE:
                fcntl.ioctl(slave, termios.TIOCSWINSZ, size)
        socket.send_fds(control, [b"m"], [master])
    os.close(master)
    return [slave, slave, slave]


def find_account(user: str) -> Account:
    """Look `user` up in the VE's own files; we are inside it. Root needs no entry. Raises `OSError` ENOENT."""
    name, _, group = user.partition(":")
    for line in _database("/etc/passwd"):
        fields = line.split(":")
        if len(fields) == 7 and name in (fields[0], fields[2]) and _is_id(fields[2]) and _is_id(fields[3]):
            gid = _group_id(group) if group else int(fields[3])
            return Account(int(fields[2]), gid, _groups_of(fields[0]), fields[0], fields[5] or "/",
                           fields[6] or "/bin/sh")
    if name == "root":
        return Account(0, _group_id(group) if group else 0, (), "root", "/root", "/bin/sh")
    if _is_id(name):
        return Account(int(name), _group_id(group or name), (), name, "/", "/bin/sh")
    raise FileNotFoundError(2, f"no such user in the VE: {name}")


def _is_id(text: str) -> bool:
    """An id that the VE has; others would mean "leave as it is" (-1) or fail in the C library."""
    return text.isascii() and text.isdigit() and len(text) < 10 and int(text) < ID_COUNT


def _group_id(group: str) -> int:
    if _is_id(group):
        return int(group)
    for fields in (line.split(":") for line in _database("/etc/group")):
        if len(fields) == 4 and fields[0] == group and _is_id(fields[2]):
            return int(fields[2])
    raise FileNotFoundError(2, f"no such group in the VE: {group}")


def _groups_of(name: str) -> tuple[int, ...]:
    entries = (line.split(":") for line in _database("/etc/group"))
    return tuple(int(f[2]) for f in entries if len(f) == 4 and _is_id(f[2]) and name in f[3].split(","))


def _database(path: str) -> list[str]:
    """The lines of a file that the VE controls: bounded, and never waiting (a fifo, an endless device). Without those
    that have a zero byte, which no path or variable can have: the command would fail."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise  # not as if the VE had no such file: the command would lack its groups
        return []
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return []
        lines = os.read(fd, _PASSWD_BOUND).decode(errors="replace").split("\n")  # splitlines knows ten more ends
        return [line for line in lines if "\0" not in line]
    finally:
        os.close(fd)
