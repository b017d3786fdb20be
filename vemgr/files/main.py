# SPDX-License-Identifier: GPL-2.0-or-later
"""The process that works on files for the daemon: one job as JSON, descriptors inherited, outcome on standard output.

It ends with the daemon, and with the client that has asked; what it has begun is taken back then.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

import prctl

from vemgr.core.errors import NoSpace, SystemFailure, TransferFailed, VemgrError
from vemgr.files import carrying, transfer, views, whole

_FULL = (28, 122)  # ENOSPC, EDQUOT
_JOBS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "push": transfer.push, "pull": transfer.pull, "clone": whole.clone, "template": whole.template,
    "view": views.refresh, "export": carrying.export, "manifest": carrying.manifest, "digest": carrying.digest,
    "import": carrying.restore, "clone-disk": carrying.clone_disk,
}


def main() -> None:
    job = json.loads(sys.argv[1])
    _end_with(job["daemon"], job.get("hold", -1))
    fcntl.flock(job["lock"], fcntl.LOCK_SH)
    try:
        outcome = {"done": _JOBS[job["do"]](job)}
    except VemgrError as error:
        outcome = _failed(error)
    except OSError as error:
        outcome = _failed(_explained(error, job["what"]))
    except SystemExit:
        outcome = _failed(SystemFailure(f"cannot {job['what']}: given up"))
    os.write(1, json.dumps(outcome).encode())


def _end_with(daemon: int, hold: int) -> None:
    """By a signal that lets us take back what we have begun."""
    for signum in (signal.SIGTERM, signal.SIGIO):
        signal.signal(signum, _give_up)
    prctl.set_pdeathsig(signal.SIGTERM)
    if os.getppid() != daemon:
        sys.exit(1)
    if hold >= 0:
        fcntl.fcntl(hold, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(hold, fcntl.F_SETFL, fcntl.fcntl(hold, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)
        with socket.socket(fileno=os.dup(hold)) as client, contextlib.suppress(BlockingIOError):
            if not client.recv(1, socket.MSG_PEEK):  # what it has said, if anything, is its confirmation
                sys.exit(1)


def _give_up(*_: object) -> None:
    for signum in (signal.SIGTERM, signal.SIGIO):
        signal.signal(signum, signal.SIG_IGN)  # what takes it back is not disturbed
    sys.exit(1)


def _explained(error: OSError, what: str) -> VemgrError:
    kind = NoSpace if error.errno in _FULL else TransferFailed
    path = error.filename if isinstance(error.filename, str) else ""
    place = f": {path}" if path and path.startswith("/") else ""
    return kind(f"cannot {what}{place}: {error.strerror or error}", path=path, errno=error.errno)


def _failed(error: VemgrError) -> dict[str, Any]:
    return {"failed": error.identifier, "message": error.message, "remedy": error.remedy, "facts": error.facts}


if __name__ == "__main__":
    main()
