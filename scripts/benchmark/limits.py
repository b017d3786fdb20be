# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line of `scripts/bench-limits`: each measurement several times, with its spread, beside its bar.

Load goes into the VEs' cgroups from outside (`vemgr.verify.load`), so that VEs need no programs. What a host cannot
enforce is said, and is no failure.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from benchmark import limits_cpu, limits_io, limits_memory, limits_network, limits_serving
from benchmark.bench import BARE
from benchmark.instance import TEMPLATE, Instance
from benchmark.limits_stage import Result, Stage
from benchmark.measure import Failed
from benchmark.process import run
from benchmark.tree import make_tree
from vemgr.core.errors import VemgrError

PARTS = {"cpu": limits_cpu.limit, "settle": limits_cpu.settle, "weights": limits_cpu.weights,
         "guarantee": limits_cpu.guarantee, "memory": limits_memory.guarantee, "shrink": limits_memory.shrink,
         "io": limits_io.rates, "io-weight": limits_io.weights, "network": limits_network.rates,
         "isolation": limits_serving.isolation, "utilization": limits_serving.utilization,
         "arithmetic": limits_cpu.arithmetic}


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench-limits", description=__doc__)
    parser.add_argument("--only", action="append", choices=[*PARTS], help="measure this; may be repeated")
    parser.add_argument("--repeat", type=int, default=3, help="how often each is measured (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each time (default %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the results there too")
    parser.add_argument("--dir", default="/var/tmp", help="where VEs are kept (default %(default)s)")  # noqa: S108
    arguments = parser.parse_args()
    results: list[Result] = []
    run([sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"], directory=Path(__file__).parents[2])
    with tempfile.TemporaryDirectory(prefix="vb-", dir=arguments.dir) as directory:
        base = Path(directory)
        base.chmod(0o711)
        trees = {TEMPLATE: make_tree(base / "tree"), BARE: make_tree(base / "bare", init=False)}
        with closing(Instance(base / "v", trees)) as vemgr:
            stage = Stage(vemgr, arguments.repeat, arguments.seconds)
            print(f"{os.cpu_count()} CPUs, Linux {os.uname().release}; each {arguments.repeat} times", flush=True)
            for name in arguments.only or PARTS:
                for result in _measured(stage, name):
                    results.append(result)
                    print(result, flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps([asdict(result) for result in results], indent=1), encoding="utf-8")
    return 1 if any(result.held is False for result in results) else 0


def _measured(stage: Stage, name: str) -> Iterator[Result]:
    try:
        yield from PARTS[name](stage)
    except (Failed, VemgrError, OSError) as error:
        yield Result(name, f"not measured: {error}", [], held=False)
    finally:
        stage.clear()
