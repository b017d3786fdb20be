# SPDX-License-Identifier: GPL-2.0-or-later
"""Threads for what blocks, all of them there from the beginning."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from vemgr.core.errors import SystemFailure

_BOUND = 10.0  # seconds for them to run


def started_pool(threads: int, name: str) -> ThreadPoolExecutor:
    """A pool that never has to start a thread. One that does so when work comes raises `RuntimeError` where the host
    has no more processes or memory to give, and keeps the work: it is done later, when the verb has failed already.

    Raises `SystemFailure`.
    """
    pool = ThreadPoolExecutor(threads, name)
    together = threading.Barrier(threads + 1)
    try:
        for _ in range(threads):
            pool.submit(together.wait)
        together.wait(_BOUND)
    except (RuntimeError, threading.BrokenBarrierError) as error:
        together.abort()
        pool.shutdown(wait=False, cancel_futures=True)
        raise SystemFailure(f"cannot start {threads} threads: {error}",
                            remedy="see TasksMax= of vemgr.service, and how many processes this host allows") from error
    return pool
