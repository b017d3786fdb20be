# SPDX-License-Identifier: GPL-2.0-or-later
"""The keeper's hold on its spawner (spawner.c): started with the first VE, and again should it ever end."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import struct

from vemgr.keeper.protocol import make_room

_BINARY = os.path.join(os.path.dirname(__file__), "vemgr-spawner")
_PATIENCE = 10.0  # seconds; it answers before the set-up begins
_NOT_SENT = (errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS)  # the host's shortage; the spawner has not noticed
_PID = struct.Struct("=i")


class Spawner:
    """`run` raises `OSError`. `pid`: 0 before the first."""

    def __init__(self) -> None:
        self._channel: socket.socket | None = None
        self.pid = 0

    def run(self, program: bytes | bytearray, channel_fd: int, cgroup_fd: int) -> tuple[int, int]:
        """Have a new child of ours, born in that cgroup, execute `program`; returns its pid and pidfd."""
        self.notice_end()
        if self._channel is None:
            self._channel, self.pid = _start()
        try:
            socket.send_fds(self._channel, [program], [channel_fd, cgroup_fd])
            data, fds, _, _ = socket.recv_fds(self._channel, 64, 1, socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            if error.errno not in _NOT_SENT:
                self.close()
            raise
        if not data:
            self.close()
            raise OSError(errno.EPIPE, "the spawner has ended")
        (pid,) = _PID.unpack(data)
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        if not fds:
            # We have no descriptor free for its pidfd. It is our child: until it is reaped nobody else has this pid.
            os.kill(pid, signal.SIGKILL)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return pid, fds[0]

    def notice_end(self) -> None:
        """Give up a spawner that has ended; the next start has another. It never speaks first, so what can be read
        while nothing is asked is its end."""
        if self._channel is None:
            return
        looking = select.poll()
        looking.register(self._channel, select.POLLIN)
        if looking.poll(0):
            self.close()

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()  # which ends it
            self._channel = None


def _start() -> tuple[socket.socket, int]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        for end in (ours, theirs):
            make_room(end)
        ours.settimeout(_PATIENCE)
        os.set_inheritable(theirs.fileno(), True)
        ignored = [signum for signum in signal.valid_signals() if signal.getsignal(signum) is not signal.SIG_DFL]
        pid = os.posix_spawn(_BINARY, ["vemgr-spawner", str(theirs.fileno())], {},
                             setsigdef=[signum for signum in ignored if signum not in (signal.SIGKILL, signal.SIGSTOP)],
                             setsigmask=[])
    except FileNotFoundError as error:
        ours.close()
        raise OSError(error.errno, "the spawner is not built; in a checkout: python3 setup.py build_ext --inplace",
                      _BINARY) from error
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return ours, pid
