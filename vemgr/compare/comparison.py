# SPDX-License-Identifier: GPL-2.0-or-later
"""A comparison from its beginning to its end: who takes part, what stays, and that nothing else does."""

from __future__ import annotations

import contextlib
import math
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import vemgr
from vemgr.compare import drivers, keeping, schema
from vemgr.compare.campaign import Campaign, prepared
from vemgr.compare.driver import Context, Driver, Resources, StartsWarm
from vemgr.compare.environment import describe
from vemgr.compare.keeping import Kept
from vemgr.compare.progress import Progress
from vemgr.compare.report import page, table
from vemgr.compare.schema import Column, Header, Report, Work
from vemgr.compare.workloads.catalogue import chosen
from vemgr.compare.workloads.probing import build_probe
from vemgr.compare.workloads.workload import SHORT, Stage, Workload
from vemgr.core.errors import BadValue, KernelLacks, NoTemplate, TemplateNotFound, VemgrError

_QUICK_SECONDS = 270.0  # what is left to five minutes is for reports and for clearing away
_QUICK_LONG = 2  # rounds
_IN_INSTANCES = "/var/tmp/vemgr-compare"  # noqa: S108  (of instances, where nobody else is)
_EMULATED = "TCG"


@dataclass(frozen=True)
class Wish:
    """What is asked for. Empty `drivers`: all, or with `quick` those that it has time for; empty `workloads`: all.
    `repeat` None: as each work has it. `resume`: go on with what `output` has; then its header decides, and the rest of
    the wish is not looked at."""

    output: Path
    drivers: tuple[str, ...] = ()
    workloads: tuple[str, ...] = ()
    resources: Resources = field(default_factory=lambda: Resources(1, 512 << 20))
    repeat: int | None = None
    quick: bool = False
    resume: bool = False
    noise: float = 0.1
    seed: int | None = None

    def check(self) -> None:
        """Raises `BadValue` for names that there are none of, before anything has been begun."""
        for name in self.drivers:
            if name not in drivers.NAMES:
                raise BadValue("--driver", name, "there is no such driver",
                               remedy=f"there are: {', '.join(drivers.NAMES)}")
        chosen(self.workloads, quick=self.quick)

    def columns(self) -> Sequence[str]:
        """The names of the drivers."""
        return self.drivers or [name for name in drivers.NAMES if not self.quick or name not in drivers.NOT_QUICK]


def begun_with(output: Path) -> Header:
    """What an interrupted run in this directory was begun with. Raises `BadValue`."""
    path = output / keeping.SAMPLES
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise BadValue("--output", output, "there is nothing in it to resume", remedy="leave out --resume") from None
    return schema.parse_lines(data, str(path))[0]


def choose_template(templates: Sequence[dict[str, Any]], wanted: str) -> str:
    """Of those that the daemon lists. Raises `BadValue`, `NoTemplate`, `TemplateNotFound`."""
    if wanted == "host":
        raise BadValue("--template", wanted, "it links to the host's own system, which a guest cannot boot",
                       remedy="'vemgr template build' makes one with a tree of its own")
    usable = [template["name"] for template in templates if template["kind"] != "host"]
    if wanted:
        if wanted not in usable:
            raise TemplateNotFound(wanted)
        return wanted
    if len(usable) != 1:
        raise NoTemplate("there is no template to make instances from" if not usable
                         else f"which template shall it be? there are {', '.join(usable)}",
                         remedy="'vemgr template build' makes one" if not usable else "name one with --template")
    return str(usable[0])


def compare(wish: Wish, context: Context, root: Path, progress: Progress) -> Report:
    """Do it. `root`: the template's tree. Reports are written in any case, also when it is interrupted, of what there
    is by then. Raises `VemgrError`, and lets `KeyboardInterrupt` pass when all is cleared away."""
    wish.check()
    begin = time.monotonic()
    kept = Kept(wish.output, resume=wish.resume)
    try:
        clean(context, progress)
        with _columns(wish, kept, context) as found:
            resources = Resources(kept.header.cpus, kept.header.memory) if kept.header else wish.resources
            whys = _prepare(found, resources, context, root, progress)
            header = kept.header or _begin(wish, kept, context, found, whys, progress)
            try:
                _measure(header, found, whys, kept, context, progress, begin)
            finally:
                progress.end()
                report = _report(header, kept)
                write_reports(report, kept, progress)
        return report
    finally:
        kept.close()


def clean(context: Context, progress: Progress) -> None:
    """What runs that were killed have left, of all drivers. What cannot be removed stays in the journal and is said."""
    for name in drivers.NAMES:
        try:
            driver = drivers.driver(name, context)
            for removed in driver.clean():
                progress.say(f"removed, of a run that was killed: {removed}")
            driver.close()
        except (VemgrError, OSError, ImportError) as error:
            progress.say(f"{name}: what a run that was killed has left cannot be removed: {error}")


@contextlib.contextmanager
def _columns(wish: Wish, kept: Kept, context: Context) -> Iterator[list[Driver]]:
    names = [column.name for column in kept.header.columns] if kept.header else wish.columns()
    with contextlib.ExitStack() as stack:
        found = []
        for name in dict.fromkeys(names):
            driver = drivers.driver(name, context)
            stack.callback(driver.close)
            found.append(driver)
        yield found


def _prepare(found: Sequence[Driver], resources: Resources, context: Context, root: Path,
             progress: Progress) -> dict[str, str]:
    """By driver: why it cannot be used, or nothing. Raises `KernelLacks` where none can."""
    def prepare(driver: Driver) -> None:
        directory = context.directory / driver.name
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        driver.prepare(root, resources, directory)

    whys = prepared(found, prepare, progress)
    if all(whys.values()):
        raise KernelLacks("none of the drivers is available here: "
                          + "; ".join(f"{name}: {why}" for name, why in whys.items()))
    return whys


def _begin(wish: Wish, kept: Kept, context: Context, found: Sequence[Driver], whys: dict[str, str],
           progress: Progress) -> Header:
    columns = [Column(name=driver.name, label=driver.label, why=whys[driver.name], emulated=_EMULATED in driver.label,
                      warm=driver.warm if isinstance(driver, StartsWarm) else "")
               for driver in found]
    works = chosen(wish.workloads, quick=wish.quick)
    header = Header(
        started=datetime.now(UTC).isoformat(timespec="seconds"), vemgr=vemgr.__version__,
        seed=secrets.randbelow(1 << 32) if wish.seed is None else wish.seed, template=context.template,
        cpus=wish.resources.cpus, memory=wish.resources.memory, noise=wish.noise, quick=wish.quick,
        environment=describe(context.directory), columns=columns,
        works=[Work(name=work.name, title=work.title, group=work.group, rounds=_rounds(wish, work),
                    figures=list(work.figures)) for work in works])
    kept.begin(header)
    for name, value in header.environment.items():
        progress.say(f"  {name}: {value}")
    return header


def _rounds(wish: Wish, work: Workload) -> int:
    if wish.repeat is not None:
        return wish.repeat
    return min(work.rounds, _QUICK_LONG) if wish.quick and work.rounds < SHORT else work.rounds


def _measure(header: Header, found: Sequence[Driver], whys: dict[str, str], kept: Kept, context: Context,
             progress: Progress, begin: float) -> None:
    probe = build_probe(context.directory)
    works = {work.name: work for work in chosen([work.name for work in header.works], quick=False)}
    resources = Resources(header.cpus, header.memory)
    tag = secrets.token_hex(2)
    # After an interruption one that was there may be gone, and its rows stay as they are.
    usable = {column.name for column in header.columns if not column.why and not whys[column.name]}
    stages = {driver.name: Stage(driver, resources, probe, _IN_INSTANCES, f"cmp-{tag}-{number}-", quick=header.quick)
              for number, driver in enumerate(found) if driver.name in usable}
    # What is made beforehand, such as images and a guest for several VEs, is part of the five minutes.
    budget = begin + _QUICK_SECONDS - time.monotonic() if header.quick else math.inf
    try:
        Campaign(header, works, stages, kept, progress, budget).run()
    finally:
        for stage in stages.values():
            stage.drop_shared()


def _report(header: Header, kept: Kept) -> Report:
    done = {(line.round, line.workload, line.driver) for line in kept.lines if isinstance(line, schema.Sample)}
    absent = {(line.workload, line.driver) for line in kept.lines if isinstance(line, schema.Absent)}
    wanted = {(number, work.name, column.name) for work in header.works for column in header.columns if not column.why
              for number in range(1, work.rounds + 1) if (work.name, column.name) not in absent}
    return schema.assemble(header, kept.lines, complete=wanted <= done)


def write_reports(report: Report, kept: Kept, progress: Progress) -> None:
    text = table.render(report)
    kept.write(keeping.REPORT, schema.encode(report))
    kept.write(keeping.TABLE, text.encode())
    path = kept.write(keeping.PAGE, page.render(report).encode())
    progress.say(f"\n{text}\n{path}")
