# SPDX-License-Identifier: GPL-2.0-or-later
"""What changes when a thousand VEs run: starts, memory, the list, and how they go."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmark.bench import Bench
from benchmark.figure import Bar, Definition, Figure, compare
from benchmark.instance import Instance, until
from benchmark.measure import Estimate, Samples, interleave, ratio

START = Definition("resident-start", "a start with the VEs resident / on an empty host, p50", Bar(1.3, 1.1))
MEMORY = Definition("resident-memory", "memory of vemgr's own processes per running VE", Bar(16, 8), "KiB")
LIST = Definition("resident-list", "`vemgr list` with the VEs / with one, whole process", Bar(2.0, 1.2))
TEARDOWN = Definition("teardown", "`vemgr stop --kill` of half the VEs, until cgroups and links are gone", Bar(4, 1),
                      "s")

_IDLE = 1.0  # seconds in which a daemon gives back what a burst of requests took


def resident(bench: Bench) -> Iterator[Figure]:
    vemgr, count = bench.vemgr, bench.sizes.resident
    rounds = max(2, bench.sizes.rounds // 2)
    with ExitStack() as undo:
        probe = undo.enter_context(vemgr.ve())
        one = bench.new_instance("one")
        one.start(undo.enter_context(one.ve()))
        before = _starts(bench, probe, rounds)
        empty = own_memory(vemgr)
        names = vemgr.create_many(count)
        try:
            created = own_memory(vemgr)
            began = time.perf_counter()
            vemgr.start_many(names)
            took = time.perf_counter() - began
            full = own_memory(vemgr)
            for name in names:
                vemgr.read_stamp(name)
            loaded = _starts(bench, probe, rounds)
            yield _memory(count, empty, created, full)
            yield _list(bench, one)
            yield _teardown(vemgr, names)
        finally:
            vemgr.destroy_many(names)
        after = _starts(bench, probe, rounds)
    ours = Samples("vemgr", loaded["vemgr"].values, loaded["vemgr"].errors)
    unloaded = Samples("on an empty host", before["vemgr"].values + after["vemgr"].values)
    figure = Figure(START, ratio(ours.values, unloaded.values), [ours, unloaded],
                    [f"{count} VEs were started at {count / took:.1f}/s"])
    for label, block in (("before", before), ("with them", loaded), ("after", after)):
        figure.notes.append(label + ": " + ", ".join(f"{s.name} {s.p50 * 1000:.1f} ms" for s in block.values()))
    if "crun" in loaded:
        others = ratio(loaded["crun"].values, before["crun"].values + after["crun"].values)
        figure.notes.append(f"crun's own starts beside the same VEs: {others.value:.2f} times as long")
    yield figure


def _starts(bench: Bench, name: str, rounds: int) -> dict[str, Samples]:
    """crun beside it tells what the host alone does to a start meanwhile."""
    vemgr = bench.vemgr

    def start() -> float:
        try:
            return vemgr.first_instruction(name)
        finally:
            vemgr.stop(name)

    return interleave(rounds, {"vemgr": start} | ({"crun": bench.crun.run} if bench.crun else {}))


@dataclass(frozen=True)
class Memory:
    """Bytes: `own`, which only these processes have (USS); `shared_out`, with their part of what is shared (PSS); and
    what is in use on the whole `host`."""

    own: int = 0
    shared_out: int = 0
    host: int = 0

    def per_ve(self, before: Memory, count: int) -> Memory:
        return Memory(*(int((now - then) / count) for now, then in (
            (self.own, before.own), (self.shared_out, before.shared_out), (self.host, before.host))))


def own_memory(vemgr: Instance) -> Memory:
    """Of daemon, keeper and whatever descends from them, except the VEs' inits, which are the VEs' own."""
    time.sleep(_IDLE)
    inits = set(vemgr.running().values())
    return memory_of([pid for pid in _with_descendants(vemgr.own_pids()) if pid not in inits])


def memory_of(pids: list[int]) -> Memory:
    own = shared_out = 0
    for pid in pids:
        try:
            fields = _numbers(f"/proc/{pid}/smaps_rollup")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        own += fields["Private_Clean"] + fields["Private_Dirty"]
        shared_out += fields["Pss"]
    free = _numbers("/proc/meminfo")
    return Memory(own * 1024, shared_out * 1024, (free["MemTotal"] - free["MemAvailable"]) * 1024)


def _numbers(path: str) -> dict[str, int]:
    """`Name:  123 kB` lines."""
    lines = [line.split() for line in Path(path).read_text(encoding="ascii").splitlines()]
    return {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def _with_descendants(pids: list[int]) -> list[int]:
    parents: dict[int, list[int]] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = Path(f"/proc/{entry}/stat").read_text(errors="replace")
        except OSError:
            continue
        parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry))
    found: list[int] = []
    waiting = list(pids)
    while waiting:
        found.append(pid := waiting.pop())
        waiting += parents.get(pid, [])
    return sorted(set(found))


def _memory(count: int, empty: Memory, created: Memory, full: Memory) -> Figure:
    total, defined = full.per_ve(empty, count), created.per_ve(empty, count)
    worse = max(total.own, total.shared_out)
    return Figure(MEMORY, Estimate(worse / 1024), notes=[
        f"per VE: USS {total.own / 1024:.1f} KiB, PSS {total.shared_out / 1024:.1f} KiB; of it for a stopped VE "
        f"USS {defined.own / 1024:.1f} KiB", f"before the first: USS {empty.own / 2**20:.1f} MiB",
        f"the whole host's MemAvailable fell by {total.host / 1024:.0f} KiB per VE, kernel and init included"])


def _list(bench: Bench, one: Instance) -> Figure:
    samples = interleave(bench.sizes.processes, {
        "vemgr": lambda: bench.vemgr.timed_cli("list"), "with one": lambda: one.timed_cli("list")})
    return compare(LIST, samples, "with one", {})


def _teardown(vemgr: Instance, names: list[str]) -> Figure:
    """Both halves, one after the other: two samples, of which the worse one counts."""
    half = len(names) // 2
    samples = Samples("vemgr")
    answers: list[float] = []

    def stop(part: list[str]) -> float:
        cgroups = [f"{vemgr.host['cgroup']}/{name}" for name in part]
        began = time.perf_counter()
        answers.append(vemgr.timed_cli("stop", "--kill", *part))
        until(lambda: not any(map(os.path.exists, cgroups)), "the cgroups of stopped VEs stay")
        vemgr.await_no_links(part)
        return time.perf_counter() - began

    samples.take(lambda: stop(names[:half]))
    samples.take(lambda: stop(names[half:half * 2]))
    return Figure(TEARDOWN, Estimate(max(samples.values), min(samples.values), max(samples.values)), [samples], [
        f"{half} VEs each time; the command itself took " + " and ".join(f"{seconds:.2f} s" for seconds in answers)])
