# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast a VE starts: one, many at once, and as a whole process."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial

from benchmark.bench import Bench
from benchmark.contenders import Nspawn, Podman
from benchmark.figure import Bar, Definition, Figure, compare
from benchmark.instance import CLIENTS
from benchmark.measure import Estimate, interleave

FIRST = Definition("first-instruction", "API request to first instruction of init, p50 / whole `crun run`, p50",
                   Bar(0.6, 0.25))
FIRST_P99 = Definition("first-instruction-p99", "the same, p99 / crun's p50", Bar(1.5, 1.0))
FIRST_ISOLATED = Definition("first-instruction-isolated", "the same, p50 / crun as isolated as a VE, p50")
BURST = Definition("burst", "starts by 4 clients at once, rate / crun's rate", Bar(3.0, 8.0, more_is_better=True))
PODMAN = Definition("process-podman", "`vemgr start` as a process / `podman start` without network", Bar(0.4, 0.1))
PODMAN_BRIDGE = Definition("process-podman-bridge", "`vemgr start` as a process / `podman start` on a bridge")
NSPAWN = Definition("process-nspawn", "`vemgr start` as a process / whole `systemd-nspawn` of true", Bar(1.0, 0.3))


def first_instruction(bench: Bench) -> Iterator[Figure]:
    vemgr = bench.vemgr
    with vemgr.ve() as name:
        def start() -> float:
            try:
                return vemgr.first_instruction(name)
            finally:
                vemgr.stop(name)

        contenders: dict[str, Callable[[], float]] = {"vemgr": start}
        notes = [f"VE: bridge with link, limits {vemgr.settings or 'none: this host has no controllers'}"]
        for label, crun in (("crun", bench.crun), ("isolated crun", bench.isolated_crun)):
            if crun is not None:
                contenders[label] = crun.run
                notes.append(f"{label}: {crun.what}")
        samples = interleave(bench.sizes.rounds, contenders)
    for definition, theirs, share in ((FIRST, "crun", 0.5), (FIRST_P99, "crun", 0.99),
                                      (FIRST_ISOLATED, "isolated crun", 0.5)):
        figure = compare(definition, samples, theirs, bench.missing, share)
        figure.notes = notes if definition is FIRST else []
        yield figure


def burst(bench: Bench) -> Iterator[Figure]:
    """The samples are seconds of a whole burst; its rate against the other's is the ratio of those the other way
    round. One start that fails makes its burst infinite."""
    vemgr, count, crun = bench.vemgr, bench.sizes.burst, bench.crun
    names = vemgr.create_many(count)
    try:
        contenders: dict[str, Callable[[], float]] = {"vemgr": lambda: _burst_of_ves(bench, names)}
        if crun is not None:
            contenders["crun"] = lambda: crun.burst(count, CLIENTS)
        samples = interleave(bench.sizes.bursts, contenders, warm_up=0)
    finally:
        vemgr.destroy_many(names)
    figure = compare(BURST, samples, "crun", bench.missing)
    estimate = figure.estimate
    figure.estimate = Estimate(*(1 / value if value else math.inf for value in (
        estimate.value, estimate.high, estimate.low)))
    rates = ", ".join(f"{name} {count / each.p50:.1f}/s" for name, each in samples.items())
    figure.notes = [f"{count} starts; {rates}"]
    yield figure


def _burst_of_ves(bench: Bench, names: list[str]) -> float:
    vemgr = bench.vemgr
    for name in names:
        vemgr.stamp_of(name).unlink(missing_ok=True)
    try:
        began = time.perf_counter()
        vemgr.start_many(names)
        took = time.perf_counter() - began
        for name in names:
            vemgr.read_stamp(name)
        return took
    finally:
        running = vemgr.running()
        vemgr.for_each(running, lambda name, client: vemgr.call("Stop", client, name=name, kill=True))
        vemgr.await_no_links(names)


def process(bench: Bench) -> Iterator[Figure]:
    vemgr = bench.vemgr
    with ExitStack() as undo:
        name = undo.enter_context(vemgr.ve())

        def start() -> float:
            vemgr.stamp_of(name).unlink(missing_ok=True)
            try:
                took = vemgr.timed_cli("start", name)
                vemgr.read_stamp(name)
                return took
            finally:
                if vemgr.running():
                    vemgr.stop(name)

        contenders: dict[str, Callable[[], float]] = {"vemgr": start}
        for network in ("none", "bridge"):
            label = f"podman {network}"
            podman = bench.offer(label, partial(Podman, bench.base / "podman", bench.tree, network))
            if podman is not None:
                undo.enter_context(closing(podman))
                contenders[label] = podman.run
        nspawn = bench.offer("systemd-nspawn", lambda: Nspawn(bench.base, bench.tree))
        if nspawn is not None:
            contenders["systemd-nspawn"] = nspawn.run
        samples = interleave(bench.sizes.processes, contenders)
    for definition, theirs in ((PODMAN, "podman none"), (PODMAN_BRIDGE, "podman bridge"), (NSPAWN, "systemd-nspawn")):
        yield compare(definition, samples, theirs, bench.missing)
