# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands in a running VE, and what its built-in init needs."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from benchmark.bench import BARE, Bench
from benchmark.figure import Definition, Figure, compare, spread
from benchmark.instance import Instance
from benchmark.measure import Failed, interleave
from benchmark.resident import memory_of
from vemgr.core.errors import VemgrError

EXEC = Definition("exec", "exec of a static true over the API, to its status / whole `crun exec`")
BUILT_IN = Definition("built-in-init", "memory of one built-in init (PSS)", unit="KiB")

_INITS = 20


def exec_(bench: Bench) -> Iterator[Figure]:
    vemgr = bench.vemgr
    with ExitStack() as undo:
        name = undo.enter_context(vemgr.ve())
        vemgr.start(name)
        contenders: dict[str, Callable[[], float]] = {"vemgr": lambda: _true_in(vemgr, name)}
        if bench.crun is not None:
            contenders["crun"] = undo.enter_context(bench.crun.running())
        samples = interleave(bench.sizes.rounds, contenders)
    yield compare(EXEC, samples, "crun", bench.missing)


def _true_in(vemgr: Instance, name: str) -> float:
    command = {"argv": ["/bin/true"], "env": {}, "cwd": "", "user": "root", "tty": False}
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    began = time.perf_counter()
    try:
        reply = vemgr.client.call("Exec", {"name": name, "command": command, "stdio": [0, 1, 2]}, [null] * 3)
        (status_fd,) = reply["descriptors"]
        status = os.read(status_fd, 4)
        took = time.perf_counter() - began
        os.close(status_fd)
    except VemgrError as error:
        raise Failed(f"Exec {name}: {error}") from error
    finally:
        os.close(null)
    if len(status) != 4 or struct.unpack("=i", status)[0] != 0:
        raise Failed(f"Exec {name}: status {status!r}")
    return took


def built_in_init(bench: Bench) -> Iterator[Figure]:
    vemgr = bench.vemgr
    names = [vemgr.create(template=BARE) for _ in range(min(_INITS, bench.sizes.resident))]
    try:
        vemgr.start_many(names)
        each = [memory_of([pid]) for pid in vemgr.running().values()]
        yield Figure(BUILT_IN, spread([memory.shared_out / 1024 for memory in each]), notes=[
            f"USS {spread([memory.own / 1024 for memory in each]).value:.0f} KiB; {len(each)} inits"])
    finally:
        vemgr.destroy_many(names)
