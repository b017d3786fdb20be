# SPDX-License-Identifier: GPL-2.0-or-later
"""What a work has to say of itself, and the stage that it is done on."""

from __future__ import annotations

import contextlib
import gzip
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from vemgr.compare.driver import Driver, DriverFailed, Finished, Instance, Resources
from vemgr.compare.noise import clock_objection
from vemgr.compare.schema import Figure
from vemgr.core.errors import FailedError

SHORT, LONG = 10, 5  # how often works are counted unless asked otherwise
_NO_GZIP = 42  # the script's own exit code
_PUT_SECONDS = 180.0


class WorkFailed(FailedError):
    """A work did not do in an instance what it was to do; the error has what its program said."""

    exit_code = 7


class ClockWrong(FailedError):
    """An instance's clock says something else than the host's: its figures mean nothing."""

    exit_code = 7


class Workload(Protocol):
    """`needs`: programs that the template must contain. `rounds`: how often it is counted. `quick`: part of --quick.
    `crowded`: it makes more tasks than there are CPUs, so that their waiting says nothing of others on the host."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def group(self) -> str: ...
    @property
    def figures(self) -> Sequence[Figure]: ...
    @property
    def needs(self) -> Sequence[str]: ...
    @property
    def rounds(self) -> int: ...
    @property
    def quick(self) -> bool: ...
    @property
    def crowded(self) -> bool: ...

    def missing(self, stage: Stage) -> str:
        """Why this driver or template cannot do it, or nothing. Asked once, before the first run."""

    def measure(self, stage: Stage) -> Mapping[str, float]:
        """Do it once; by the name of the figure. Raises `VemgrError`."""


@dataclass(frozen=True)
class Probe:
    """The program that is the same everywhere: its bytes, and where it lies on the host."""

    path: str
    content: bytes


class Stage:
    """One driver with the instance that all short works share, which is started when first asked for.

    `directory`: where works keep their files, on the instance's disk. `prefix`: of the names of instances. `quick`:
    works that can be done in part are.
    """

    def __init__(self, driver: Driver, resources: Resources, probe: Probe, directory: str, prefix: str, *,
                 quick: bool = False) -> None:
        self.quick = quick
        self.driver, self.resources, self._probe = driver, resources, probe
        self.directory, self._prefix = directory, prefix
        self._packed = gzip.compress(probe.content, mtime=0)  # the port of a guest takes a minute for a megabyte
        self._numbers = itertools.count(1)
        self._shared: Instance | None = None
        self._second: Instance | None = None
        self._has: dict[str, str] = {}

    @property
    def on_host(self) -> bool:
        return self.driver.name == "host"

    @property
    def host_probe(self) -> str:
        return self._probe.path

    @property
    def program(self) -> str:
        """The probe's path in an instance."""
        return f"{self.directory}/probe"

    def shared(self) -> Instance:
        if self._shared is None:
            self._shared = self._start()
        return self._shared

    def drop_shared(self) -> None:
        """After a failure: the next work gets new instances. Raises nothing; what stays is the driver's to clean."""
        for instance in (self._shared, self._second):
            if instance is not None:
                with contextlib.suppress(FailedError):
                    instance.stop()
        self._shared = self._second = None

    def second(self) -> Instance:
        """Another one like `shared`, for works between two."""
        if self._second is None:
            self._second = self._start()
        return self._second

    def next_name(self) -> str:
        return f"{self._prefix}{next(self._numbers)}"

    def bare(self) -> Instance:
        """A new instance without the probe, to be stopped by the caller."""
        return self.driver.start(self.next_name(), self.resources)

    @contextlib.contextmanager
    def several(self, count: int, *, bare: bool = False) -> Iterator[list[Instance]]:
        """New instances with the probe in them, unless they are to be `bare`; they are stopped afterwards."""
        found: list[Instance] = []
        try:
            while len(found) < count:
                found.append(self.bare() if bare else self._start())
            yield found
        finally:
            for instance in found:
                instance.stop()

    def lacks(self, programs: Sequence[str]) -> str:
        """Which of them the template does not contain, as a reason, or nothing."""
        asked = [program for program in programs if program not in self._has]
        if asked:
            # Debian has PostgreSQL's programs where no PATH leads.
            text = ('PATH="$PATH:/usr/sbin:/sbin:$(echo /usr/lib/postgresql/*/bin)"; '
                    'for each in "$@"; do command -v "$each" || echo; done')
            done = self.shared().run(["sh", "-c", text, "sh", *asked], timeout=60)
            self._has |= dict(zip(asked, done.stdout.decode(errors="replace").split("\n"), strict=False))
        missing = [program for program in programs if not self._has.get(program)]
        return f"the template has no {' and no '.join(missing)}" if missing else ""

    def where(self, program: str) -> str:
        """The path of a program that is not lacking."""
        return self._has[program]

    def probe(self, instance: Instance, *words: str, timeout: float = 60) -> dict[str, float]:
        """Run the probe; what it says, by name. Raises `VemgrError`, `ClockWrong` among them."""
        done = instance.run([self.program, *words], timeout=timeout)
        if done.code:
            said = done.stderr.decode(errors="replace").strip()
            raise WorkFailed(f"{' '.join(words)} in {instance.name} ended with {done.code}: {said[-300:] or 'no word'}",
                             instance=instance.name)
        found = figures_of(done.stdout)
        if why := clock_objection(found.get("elapsed", 0) / 1e9, done.seconds):
            raise ClockWrong(f"{instance.name}: {why}", instance=instance.name)
        return found

    def shell(self, instance: Instance, script: str, *arguments: str, timeout: float = 120) -> str:
        """Run a script of the template's shell in the works' directory; what it prints. Raises `VemgrError`."""
        done = instance.run(["sh", "-c", f"cd {self.directory} && {script}", "sh", *arguments], timeout=timeout)
        if done.code:
            said = done.stderr.decode(errors="replace").strip() or done.stdout.decode(errors="replace").strip()
            raise WorkFailed(f"a script in {instance.name} ended with {done.code}: {said[-300:] or 'no word'}",
                             instance=instance.name)
        return done.stdout.decode(errors="replace")

    def _start(self) -> Instance:
        instance = self.bare()
        try:
            done = self._put(instance, "command -v gzip >/dev/null || exit 42; gzip -dc", self._packed)
            if done.code == _NO_GZIP:
                done = self._put(instance, "cat", self._probe.content)
            if done.code:
                raise DriverFailed(f"the probe cannot be put into {instance.name}: "
                                   f"{done.stderr.decode(errors='replace').strip()[-300:]}",
                                   remedy="the template needs sh, mkdir, cat and chmod", instance=instance.name)
        except BaseException:
            instance.stop()
            raise
        return instance

    def _put(self, instance: Instance, unpack: str, data: bytes) -> Finished:
        script = (f"mkdir -p {self.directory} && chmod 755 {self.directory} && "
                  f"{{ {unpack}; }} > {self.program} && chmod 755 {self.program}")
        return instance.run(["sh", "-c", script], timeout=_PUT_SECONDS, input=data)


def figures_of(output: bytes) -> dict[str, float]:
    """The probe's lines. Raises `WorkFailed` where they are not its."""
    try:
        return {name: float(value) for name, value in (line.split() for line in output.decode().splitlines())}
    except ValueError as error:
        raise WorkFailed(f"not what the probe prints: {output[:200]!r}") from error
