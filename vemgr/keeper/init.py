# SPDX-License-Identifier: GPL-2.0-or-later
"""Process 1 of a VE: waits for its set-up, enters its own mount namespace, and becomes the VE's init.

Where a template has no init, this process stays and is one: it reaps orphans and ends the VE in good order when it
is told to. It costs no exec, and it is out of the VE's reach: its memory belongs to the host's user namespace and it
is not dumpable, so /proc/1/exe, /proc/1/mem and ptrace(2) are closed to the VE's root (CVE-2016-9962, CVE-2019-5736).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import termios
import time
from typing import NoReturn

import prctl

from vemgr.core.plan import PAYLOAD_ENVIRONMENT, Plan
from vemgr.keeper import confine
from vemgr.keeper.protocol import failure
from vemgr.kernel import namespaces

GO = b"g"
FAILURE_BOUND = 4096  # bytes; a pipe takes as many at once
_GRACE = 5.0  # seconds between SIGTERM and SIGKILL to what is left when the built-in init ends the VE
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGPWR, signal.SIGRTMIN + 3)


def become_init(plan: Plan, filter_: bytes, go_fd: int, failure_fd: int) -> NoReturn:
    """Never returns. `go_fd` gives `GO` when the set-up is complete, anything else means give up. A failure is
    written as text to `failure_fd`, which exec closes: end of file without text is success."""
    try:
        # Before the VE's user namespace owns us in full; the set-up process has closed all but its own descriptors.
        confine.close_all_but({go_fd, failure_fd})
        if os.read(go_fd, 1) == GO:
            _enter_ve(plan, filter_)
            if plan.init:
                confine.exec_program(list(plan.init), dict(PAYLOAD_ENVIRONMENT))
            namespaces.close_from(3)
            _reap_for_ever()
    except Exception as error:  # whatever it is, the end of file alone would mean success
        told = failure("", error)
        with contextlib.suppress(OSError):
            text = f"{told['errno']} {told['error']} {told['path']}"
            os.write(failure_fd, text.encode(errors="replace")[:FAILURE_BOUND])
    finally:
        os._exit(1)


def _enter_ve(plan: Plan, filter_: bytes) -> None:
    # The copy belongs to the VE's user namespace, which locks every mount in it together.
    namespaces.unshare(namespaces.CLONE_NEWNS)
    os.chdir("/")
    os.setsid()
    console = os.open("/dev/console", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    fcntl.ioctl(console, termios.TIOCSCTTY, 0)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    confine.hide()
    confine.drop_privileges(plan.capabilities, filter_)
    # After the change of ids, which clears it: the VE ends with its keeper instead of running unwatched.
    prctl.set_pdeathsig(signal.SIGKILL)
    confine.reset_process()
    confine.take_stdio(console, console, console)


def _reap_for_ever() -> NoReturn:
    confine.hide()
    prctl.set_name("vemgr-init")
    prctl.set_proctitle("vemgr-init")
    watched = {signal.SIGCHLD, *_ENDING}
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    for signum in _ENDING:
        # Never called, as the signals are waited for; `handles_signal` of the stop verb sees that we are ready.
        signal.signal(signum, lambda *_: None)
    while True:
        if signal.sigwaitinfo(watched).si_signo in _ENDING:
            _end_everything()
        _reap()


def _reap() -> bool:
    """Collect dead children; whether any child is left."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        return True
    return False


def _end_everything() -> NoReturn:
    """SIGTERM to all, SIGKILL to what remains. Commands exec'd from outside are not our children but are in our
    process namespace, so kill(-1) reaches them and ESRCH tells when none is left."""
    deadline = time.monotonic() + _GRACE
    for signum in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(-1, signum)
            os.kill(-1, signal.SIGCONT)
            while time.monotonic() < deadline:
                _reap()
                os.kill(-1, 0)
                signal.sigtimedwait({signal.SIGCHLD}, 0.02)
        except ProcessLookupError:
            break
        deadline = time.monotonic() + 1.0
    os._exit(0)
