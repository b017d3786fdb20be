# SPDX-License-Identifier: GPL-2.0-or-later
"""Templates from programs that write an archive: mmdebstrap, tar. Apart from the verbs, since only few need it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import IO

import click

from vemgr.core.errors import SystemFailure, VemgrError

_KEPT_LINES = 5
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Producer:
    """A program whose standard output is an archive. An interrupt ends it, all of it, and is remembered."""

    def __init__(self, command: list[str]) -> None:
        self.name = command[0]
        self.interrupted = 0
        self.lines: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._command = command

    @contextlib.contextmanager
    def running(self) -> Iterator[int]:
        """Yields the descriptor to read from."""
        before = {signum: signal.signal(signum, self._interrupt) for signum in _INTERRUPTS}
        # A session of its own: what is typed at the terminal reaches us alone, and we see to an orderly end.
        process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, start_new_session=True,
                                   env={**os.environ, "LC_ALL": "C"})
        assert process.stdout is not None
        assert process.stderr is not None
        self._process = process
        if self.interrupted:
            self._terminate()  # while it was being started
        watcher = threading.Thread(target=_show_progress, args=(process.stderr, self.lines), daemon=True)
        watcher.start()
        try:
            yield process.stdout.fileno()
        finally:
            # Nobody reads any more: a program that is not at its end gets SIGPIPE now.
            process.stdout.close()
            process.wait()
            watcher.join()
            process.stderr.close()
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def failure(self) -> str:
        """Why its archive is not to be trusted, or "". One that we have stopped listening to is not to blame."""
        code = self._process.returncode if self._process else 0
        if code in (0, -signal.SIGPIPE):
            return ""
        how = f"with status {code}" if code > 0 else f"by signal {-code}"
        return f"{self.name} failed {how}: {'; '.join(self.lines[-_KEPT_LINES:])}"

    def _interrupt(self, signum: int, _frame: object) -> None:
        if not self.interrupted:  # a second one would disturb its clearing away
            self.interrupted = signum
            self._terminate()

    def _terminate(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)


def stream(producer: Producer, import_from: Callable[[int], object], remove: Callable[[], object]) -> None:
    """Import what a program writes; no template is left when it fails or is interrupted.

    The program's failure is told in preference to the torn archive that follows from it.
    """
    failure: VemgrError | None = None
    with producer.running() as fd:
        try:
            import_from(fd)
        except VemgrError as error:
            failure = error
    why = producer.failure()
    if failure is None and (why or producer.interrupted):
        remove()
    if producer.interrupted:
        raise SystemExit(128 + producer.interrupted)
    if why and (failure is None or failure.identifier == "TemplateUnusable"):
        raise SystemFailure(why)
    if failure is not None:
        raise failure


def _show_progress(stream: IO[bytes], lines: list[str]) -> None:
    """Lines of progress: one that is overwritten on a terminal, all of them in a log."""
    terminal = sys.stderr.isatty()
    for raw in stream:
        line = raw.decode(errors="replace").strip()
        if not line:
            continue
        lines.append(line)
        del lines[:-50]
        # Whether anybody looks or not, it has to be read, or the program would stand still.
        with contextlib.suppress(OSError):
            if terminal:
                click.echo(f"\r\033[K{line[:100]}", err=True, nl=False)
            else:
                click.echo(line, err=True)
    if terminal:
        with contextlib.suppress(OSError):
            click.echo("\r\033[K", err=True, nl=False)
