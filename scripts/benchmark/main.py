# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line of `scripts/bench`: options, namespaces of its own, one group of measurements after the other."""

from __future__ import annotations

import argparse
import compileall
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from benchmark import booting, environment, inside, report, resident, starting
from benchmark.bench import QUICK, Bench, Sizes
from benchmark.contenders import unmount_below
from benchmark.environment import Watch
from benchmark.figure import Definition, Figure
from benchmark.instance import ROOT
from benchmark.measure import Estimate, Failed
from benchmark.process import run
from vemgr.core.errors import VemgrError
from vemgr.kernel.cgroups import cgroup2_mountpoint

_INSIDE = "VEMGR_BENCH_INSIDE"
_CGROUPS = "/sys/fs/cgroup"
_DIRECTORY = "/var/tmp"  # noqa: S108  (/tmp may be in memory; what is made below it has a name nobody can guess)


@dataclass(frozen=True)
class Group:
    """Figures that come from the same runs."""

    measure: Callable[[Bench], Iterator[Figure]]
    definitions: Sequence[Definition]


GROUPS = (
    Group(starting.first_instruction, (starting.FIRST, starting.FIRST_P99, starting.FIRST_ISOLATED)),
    Group(starting.burst, (starting.BURST,)),
    Group(starting.process, (starting.PODMAN, starting.PODMAN_BRIDGE, starting.NSPAWN)),
    Group(booting.boot, (booting.BOOT,)),
    Group(inside.exec_, (inside.EXEC,)),
    Group(inside.built_in_init, (inside.BUILT_IN,)),
    Group(resident.resident, (resident.START, resident.MEMORY, resident.LIST, resident.TEARDOWN)),
)


def main() -> int:
    arguments = _parse()
    if os.geteuid() != 0:
        sys.exit("bench: only root can make VEs")
    if _INSIDE not in os.environ:
        # Links that we forget go with the network namespace, and mounts with the mount namespace.
        os.execvpe("unshare", ["unshare", "--mount", "--net", "--propagation=private", sys.executable, *sys.argv],
                   {**os.environ, _INSIDE: "yes"})
    signal.signal(signal.SIGTERM, _end)
    run(["ip", "link", "set", "lo", "up"])
    _show_pure_cgroup2()
    with ExitStack() as undo:
        base = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="vemgr-bench-", dir=arguments.dir)))
        undo.callback(unmount_below, base)
        base.chmod(0o711)  # root of a user namespace has to come in
        _build(base)
        facts = environment.describe(base)
        figures = _measure(base, arguments)
    print(report.text(facts, figures), end="")
    if arguments.json:
        Path(arguments.json).write_text(report.as_json(facts, figures), encoding="utf-8")
    return 0 if all(figure.verdict != "missed" for figure in figures) else 1


def _parse() -> argparse.Namespace:
    keys = [definition.key for group in GROUPS for definition in group.definitions]
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Measure vemgr against crun, podman and systemd-nspawn on this host.",
        epilog="Exit code 0: no figure misses its bar; 1: one does. An invalid figure is neither.")
    parser.add_argument("--only", action="append", choices=keys, metavar="FIGURE",
                        help=f"measure this one; may be repeated: {', '.join(keys)}")
    parser.add_argument("--quick", action="store_true", help="few runs, to see that everything works")
    parser.add_argument("--runs", type=int, metavar="N", help=f"rounds of interleaved starts (default {Sizes.rounds})")
    parser.add_argument("--resident", type=int, metavar="N", help=f"resident VEs (default {Sizes.resident})")
    parser.add_argument("--json", metavar="FILE", help="write everything there too, every sample included")
    parser.add_argument("--dir", default=_DIRECTORY, help="where all keep their files (default %(default)s)")
    parser.add_argument("--toml", action="append", default=[], metavar="LINE", help="a further line for vemgr.toml")
    parser.add_argument("--os-tree", type=Path, metavar="DIR",
                        help="root of an operating system with systemd, for the figure boot; it is written to")
    arguments = parser.parse_args()
    for name in ("runs", "resident"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 2:
            parser.error(f"--{name}: at least 2")
    return arguments


def _end(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(128 + signal.SIGTERM)  # so that everything is taken away


def _show_pure_cgroup2() -> None:
    """Where controllers are on v1, cgroup2 is mounted elsewhere, and crun and others refuse. In our own mount namespace
    it can take the usual place, for all contenders alike; it is the same hierarchy."""
    if cgroup2_mountpoint() != _CGROUPS:
        run(["umount", "--recursive", _CGROUPS])
        run(["mount", "-t", "cgroup2", "none", _CGROUPS])


def _build(base: Path) -> None:
    """The checkout as it is where it is installed: with its program in C, and compiled."""
    run([sys.executable, "setup.py", "--quiet", "build_ext", "--inplace", f"--build-temp={base}/build"], directory=ROOT)
    compileall.compile_dir(str(ROOT / "vemgr"), quiet=2)


def _sizes(arguments: argparse.Namespace) -> Sizes:
    sizes = QUICK if arguments.quick else Sizes()
    if arguments.runs:
        sizes = replace(sizes, rounds=arguments.runs, processes=min(arguments.runs, sizes.processes))
    return replace(sizes, resident=arguments.resident) if arguments.resident else sizes


def _measure(base: Path, arguments: argparse.Namespace) -> list[Figure]:
    found: list[Figure] = []
    with Bench(base, _sizes(arguments), "\n".join(arguments.toml), arguments.os_tree) as bench:
        for group in GROUPS:
            wanted = [each for each in group.definitions if not arguments.only or each.key in arguments.only]
            if wanted:
                found += [figure for figure in _measure_group(bench, group) if figure.definition in wanted]
    return found


def _measure_group(bench: Bench, group: Group) -> list[Figure]:
    """Every figure of the group. One that could not be measured because vemgr failed is infinitely bad."""
    print(f"measuring {', '.join(each.key for each in group.definitions)} ...", file=sys.stderr)
    watch, found, failure = Watch(), dict[str, Figure](), ""
    try:
        for figure in group.measure(bench):
            found[figure.definition.key] = figure
    except (Failed, VemgrError, OSError, subprocess.SubprocessError) as error:
        failure = f"failed: {error or type(error).__name__}"
    for definition in group.definitions:
        worst = Estimate(0.0 if definition.bar.more_is_better else math.inf)
        figure = found.setdefault(definition.key, Figure(definition, worst, notes=[failure or "not measured"]))
        figure.notes.append(f"steal meanwhile {watch.steal():.1%}, load {watch.load()}")
        figure.invalid += watch.complaints()
    return [found[definition.key] for definition in group.definitions]
