# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands in instances that share the host's kernel: started through a program of the host, such as `crun exec`, or by
another way that ends in processes which the host sees."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence

from vemgr.compare import marked
from vemgr.compare.driver import CommandTimedOut, DriverFailed, Finished

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: All that a command finds in its environment, beside the mark by which it can be found.
ENVIRONMENT = {"PATH": PATH, "HOME": "/root"}

#: From a command and the variables of its environment to the command of the host that runs it in the instance.
Wrap = Callable[[Sequence[str], dict[str, str]], list[str]]


def new_mark() -> str:
    return secrets.token_hex(8)


def timed_out(name: str, argv: Sequence[str], timeout: float) -> CommandTimedOut:
    return CommandTimedOut(f"'{argv[0]}' in {name} had not ended after {timeout:g} seconds and was killed",
                           instance=name, command=" ".join(argv), seconds=timeout)


@contextlib.contextmanager
def on_cpus(cpus: set[int] | None) -> Iterator[None]:
    """What this thread starts within is bound to these CPUs: cheaper than a function that runs after a fork, for which
    all of this process would have to be copied."""
    if cpus is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Commands:
    """Of one instance. `affinity`: the CPUs of the host that they may use, None for all."""

    def __init__(self, name: str, wrap: Wrap, *, mark: str, affinity: set[int] | None = None) -> None:
        self._name, self._wrap, self._mark, self._affinity = name, wrap, mark, affinity

    def run(self, argv: Sequence[str], *, timeout: float, input: bytes = b"") -> Finished:
        mark = f"{self._mark}.{new_mark()}"
        begin = time.monotonic()
        process = self._popen(argv, mark, stdin=subprocess.PIPE, output=subprocess.PIPE)
        try:
            out, err = process.communicate(input, timeout)
        except subprocess.TimeoutExpired:
            self._end(mark, process)
            raise timed_out(self._name, argv, timeout) from None
        except BaseException:  # Ctrl-C
            self._end(mark, process)
            raise
        seconds = time.monotonic() - begin
        code = process.returncode
        return Finished(code if code >= 0 else 128 - code, out, err, seconds)

    def spawn(self, argv: Sequence[str]) -> Spawned:
        mark = f"{self._mark}.{new_mark()}"
        return Spawned(self._popen(argv, mark, stdin=subprocess.DEVNULL, output=subprocess.DEVNULL), mark)

    def _popen(self, argv: Sequence[str], mark: str, *, stdin: int, output: int) -> subprocess.Popen[bytes]:
        variables = ENVIRONMENT | {marked.VARIABLE: mark}
        command = self._wrap(argv, variables)
        try:
            # The tool needs our PATH; what it runs in the instance is given `variables` by the tool's own option.
            with on_cpus(self._affinity):
                return subprocess.Popen(command, stdin=stdin, stdout=output, stderr=output, cwd="/", process_group=0,
                                        env={"PATH": os.environ.get("PATH", PATH), marked.VARIABLE: mark})
        except FileNotFoundError as error:
            raise DriverFailed(f"{command[0]} is not there to run a command in {self._name}", instance=self._name,
                               command=command[0]) from error

    @staticmethod
    def _end(mark: str, process: subprocess.Popen[bytes]) -> None:
        marked.end(mark, grace=0)
        process.kill()
        process.communicate()


class Spawned:
    """A command that goes on."""

    def __init__(self, process: subprocess.Popen[bytes], mark: str) -> None:
        self._process, self._mark = process, mark

    def stop(self) -> None:
        marked.end_all(lambda: {*marked.marked(self._mark), *_unreaped(self._process)})
        self._process.wait()


def _unreaped(process: subprocess.Popen[bytes]) -> list[int]:
    return [process.pid] if process.poll() is None else []
