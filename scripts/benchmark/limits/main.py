# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line of `scripts/bench-limits`: each measurement several times, with its spread, beside its bar.

Load goes into the VEs' cgroups from outside (`vemgr.verify.load`), so that VEs need no programs. What a host cannot
enforce is said, and is no failure. A bar that is missed while others use the host counts as noisy: measure again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path

from benchmark.bench import BARE
from benchmark.environment import describe
from benchmark.instance import TEMPLATE, Instance, is_not_enforceable
from benchmark.limits import control, cpu, io, memory, network, serving, uplink
from benchmark.limits.disk import slow_disk
from benchmark.limits.result import Pace, Result
from benchmark.limits.stage import Stage
from benchmark.limits.world import World
from benchmark.measure import Failed
from benchmark.process import run
from benchmark.tree import make_tree
from vemgr.core.errors import VemgrError

PARTS = {"cpu": cpu.limit, "settle": cpu.settle, "weights": cpu.weights, "guarantee": cpu.guarantee,
         "memory": memory.guarantee, "shrink": memory.shrink, "io": io.rates, "io-weight": io.weights,
         "network": network.rates, "uplink": uplink.shares, "isolation": serving.isolation,
         "utilization": serving.utilization, "control": control.cost, "arithmetic": cpu.arithmetic}
_ROOT = Path(__file__).parents[3]


def main() -> int:
    arguments = _parse()
    run([sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"], directory=_ROOT)
    with tempfile.TemporaryDirectory(prefix="vb-", dir=arguments.dir) as directory:
        base = Path(directory)
        base.chmod(0o711)
        environment = describe(base)
        print(*(f"{key + ':':<18} {value}" for key, value in environment.items()), sep="\n", flush=True)
        trees = {TEMPLATE: make_tree(base / "tree"), BARE: make_tree(base / "bare", init=False)}
        with ExitStack() as undo:
            world = undo.enter_context(World())
            place = undo.enter_context(slow_disk(base / "disk")) if arguments.slow_disk else base
            vemgr = undo.enter_context(closing(Instance(place / "v", trees, world.config)))
            stage = Stage(vemgr, world, arguments.repeat, arguments.seconds, arguments.ves)
            results = list(_measure(stage, arguments.only or list(PARTS)))
    if arguments.json:
        rows = [{**asdict(result), "verdict": result.verdict} for result in results]
        Path(arguments.json).write_text(json.dumps({"environment": environment, "results": rows}, indent=1) + "\n",
                                        encoding="utf-8")
    print("; ".join(f"{count} {verdict}" for verdict, count in Counter(r.verdict for r in results).items()))
    return 1 if any(result.verdict == "MISS" for result in results) else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench-limits", description=__doc__)
    parser.add_argument("--only", action="append", choices=[*PARTS], help="measure this; may be repeated")
    parser.add_argument("--repeat", type=int, default=3, help="how often each is measured (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each time (default %(default)s)")
    parser.add_argument("--ves", type=int, default=500, help="VEs beside which the daemon is watched (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the results there too")
    parser.add_argument("--dir", default="/var/tmp", help="where VEs are kept (default %(default)s)")  # noqa: S108
    parser.add_argument("--slow-disk", action="store_true",
                        help="keep VEs on a disk in memory of 20 MB/s with BFQ (null_blk), where weights can be seen")
    return parser.parse_args()


def _measure(stage: Stage, names: list[str]) -> Iterator[Result]:
    pace = Pace()
    pace.look()
    for name in names:
        before = pace.look()
        for result in _measured(stage, name):
            after = pace.look()
            result.pace, before = min(before, after), after
            print(result, flush=True)
            yield result


def _measured(stage: Stage, name: str) -> Iterator[Result]:
    try:
        yield from PARTS[name](stage)
    except (Failed, VemgrError, OSError) as error:
        yield Result(name, "to be measured", str(error), held=None if is_not_enforceable(error) else False)
    finally:
        stage.clear()
