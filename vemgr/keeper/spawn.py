# SPDX-License-Identifier: GPL-2.0-or-later
"""Forking the set-up process of a VE, and its conversation with the keeper.

    keeper --clone3--> set-up process --clone3(CLONE_PARENT)--> the VE's init (so a child of the keeper)

The set-up process reports over a socket pair: `cloned` with the descriptors of init and its network namespace, then
waits for `go` with the network messages, executes the plan, lets init go and reports `started` or `failed`.
"""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import socket
from typing import NoReturn

import prctl

from vemgr.core.plan import Plan
from vemgr.keeper import confine
from vemgr.keeper.init import FAILURE_BOUND, GO, become_init
from vemgr.keeper.protocol import channel_pair, receive, send
from vemgr.keeper.setup import Setup, SetupError
from vemgr.kernel import namespaces

_INIT_NAMESPACES = (
    namespaces.CLONE_NEWUSER | namespaces.CLONE_NEWPID | namespaces.CLONE_NEWNET | namespaces.CLONE_NEWUTS
    | namespaces.CLONE_NEWIPC | namespaces.CLONE_NEWCGROUP
)


def fork_setup(plan: Plan, cgroup_fd: int, filter_: bytes) -> tuple[int, int, socket.socket]:
    """Fork the set-up process into the VE's cgroup; returns its pid, its pidfd and our end of the conversation."""
    ours, theirs = channel_pair()
    pid, pidfd = namespaces.clone3(namespaces.CLONE_NEWNS, cgroup_fd=cgroup_fd)
    if pid == 0:
        _set_up(plan, filter_, theirs)
    theirs.close()
    return pid, pidfd, ours


def _set_up(plan: Plan, filter_: bytes, channel: socket.socket) -> NoReturn:
    """The life of the set-up process."""
    status = 1
    try:
        prctl.set_pdeathsig(signal.SIGKILL)
        confine.hide()
        forget_signals()
        # Its child that mounts /proc is in the VE's pid namespace, and init, which is born of it, in all of them.
        confine.close_all_but({channel.fileno()})
        _converse(plan, filter_, channel)
        status = 0
    except SetupError as error:
        send(channel, {"event": "failed", **error.facts()})
    except Exception as error:  # a defect of ours: the keeper must still learn what happened
        failure = error if isinstance(error, OSError) else OSError(0, f"{type(error).__name__}: {error}")
        send(channel, {"event": "failed", **SetupError("clone", failure).facts()})
    finally:
        os._exit(status)


def forget_signals() -> None:
    """The keeper's SIGCHLD handling writes to a pipe of the keeper: not ours to write to."""
    signal.set_wakeup_fd(-1)
    for signum in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_DFL)


def _converse(plan: Plan, filter_: bytes, channel: socket.socket) -> None:
    go_reader, go_writer = os.pipe2(os.O_CLOEXEC)
    failure_reader, failure_writer = os.pipe2(os.O_CLOEXEC)
    namespaces.start_clocks_at_zero()
    pid, pidfd = namespaces.clone3(_INIT_NAMESPACES | namespaces.CLONE_PARENT)
    if pid == 0:
        become_init(plan, filter_, go_reader, failure_writer)
    os.close(failure_writer)
    os.close(go_reader)
    try:
        _finish(plan, pid, pidfd, channel, go_writer)
        _await_exec(failure_reader)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        raise
    send(channel, {"event": "started"})


def _finish(plan: Plan, pid: int, pidfd: int, channel: socket.socket, go_writer: int) -> None:
    namespaces.write_id_maps(pid, plan.id_base, plan.id_count)
    netns = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    send(channel, {"event": "cloned", "pid": pid}, [pidfd, netns])
    os.close(netns)
    setup = Setup(plan, pid, pidfd)
    message, _ = receive(channel)
    if message is None:
        raise SetupError("wait for the network", InterruptedError(4, "the keeper gave up"))
    setup.netlink_messages = [base64.b64decode(text) for text in message["messages"]]
    setup.run()
    if setup.console is not None:
        send(channel, {"event": "console"}, list(setup.console))
    os.write(go_writer, GO)


def _await_exec(failure_reader: int) -> None:
    failure = os.read(failure_reader, FAILURE_BOUND).decode(errors="replace")
    if failure:
        errno, _, text = failure.partition(" ")
        raise SetupError("exec init", OSError(int(errno), text.strip()))
