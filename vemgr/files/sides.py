# SPDX-License-Identifier: GPL-2.0-or-later
"""Two processes with a pipe between them: one that writes an archive and one that reads it."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterator
from typing import BinaryIO, Literal

import prctl

Mode = Literal["rb", "wb"]


@contextlib.contextmanager
def other_side(work: Callable[[BinaryIO], None], *, reads: bool) -> Iterator[BinaryIO]:
    """Fork a process that does `work` with the other end of a pipe. A failure is raised when both have ended."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    told, tell = os.pipe2(os.O_CLOEXEC)
    theirs, ours = (reader, writer) if reads else (writer, reader)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        _be(work, parent, theirs, ours, "rb" if reads else "wb", tell)
    os.close(theirs)
    os.close(tell)
    failure: BaseException | None = None
    stream: BinaryIO = open(ours, "wb" if reads else "rb")  # noqa: SIM115  (closed in each case below)
    try:
        yield stream
    except BaseException as error:
        failure = error
    finally:
        if failure is not None and not isinstance(failure, Exception):  # we are told to give up
            os.kill(child, signal.SIGKILL)
        with contextlib.suppress(OSError):
            stream.close()
        said = os.read(told, 4000).decode(errors="replace")
        os.waitpid(child, 0)
        os.close(told)
    # Whoever wrote is to blame first, for an archive that is cut off; unless nobody read any more.
    if failure is not None and (not said or (reads and not isinstance(failure, BrokenPipeError))):
        raise failure
    if said:
        raise OSError(errno.EIO, said)


def _be(work: Callable[[BinaryIO], None], parent: int, theirs: int, ours: int, mode: Mode, tell: int) -> None:
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        prctl.set_pdeathsig(signal.SIGKILL)
        os.close(ours)
        if os.getppid() == parent:
            with open(theirs, mode) as stream:
                work(stream)
            code = 0
    except BrokenPipeError:
        pass  # the other side has failed, and says why
    except Exception as error:
        os.write(tell, str(error).encode()[:2000])
    finally:
        os._exit(code)
