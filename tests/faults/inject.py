# SPDX-License-Identifier: GPL-2.0-or-later
"""Every call of every verb fails once: the verb fails with it and says where, and all is as before."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.faults.stage import ALL, DESCRIPTOR, MEMORY, PROCESS, SPACE, Hit, Stage
from tests.faults.verbs import Scenario
from vemgr.api.client import RemoteError

#: What a host may run out of, and get again after the verb: all calls that need it fail from the N-th on.
SHORTAGES: dict[str, dict[str, Any]] = {
    "": {}, "space": {"kinds": SPACE, "on": True}, "half a write": {"kinds": SPACE, "shortened": True},
    "descriptors": {"kinds": DESCRIPTOR, "on": True}, "memory": {"kinds": MEMORY, "on": True},
    "processes": {"kinds": PROCESS, "on": True},
}


_WANTS = (errno.ENOSPC, errno.EMFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN)
_RELIEF = 3.0  # seconds that a shortage lasts


@dataclass
class Outcome:
    """What came of one role's calls in one verb. `tolerated`: calls whose failure the verb got over."""

    points: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    tolerated: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def count_calls(stage: Stage, scenario: Scenario, role: str, **how: Any) -> int:
    stage.faults.arm(role, 0, **how)
    scenario.act(stage)
    count = stage.faults.disarm().count
    if scenario.alone:
        scenario.clear(stage)
        stage.network = stage.picture(rules=True)["network"]
        scenario.base(stage)
    scenario.undo(stage)
    return count


def inject(stage: Stage, scenario: Scenario, role: str, points: Iterable[int], before: dict[str, Any],
           outcome: Outcome, *, kinds: int = ALL, on: bool = False, shortened: bool = False) -> None:
    """Do the verb once for each of `points`, the number of the call that fails. Raises `AssertionError` where more has
    changed than the verb says."""
    for at in points:
        pids = stage.pids()
        stage.faults.arm(role, at, kinds=kinds, on=on, shortened=shortened)
        error = None
        relief = threading.Timer(_RELIEF, stage.faults.relieve)
        relief.start()  # some things wait until it is over instead of failing
        try:
            scenario.act(stage)
        except RemoteError as failure:
            error = failure
        finally:
            relief.cancel()
        hit = stage.faults.disarm()
        if not hit.hits:
            assert error is None, f"{scenario.name}: {error} although nothing has failed"
            scenario.undo(stage)
            stage.await_picture(before, why=f"{scenario.name}, untouched", rules=scenario.rules)
            continue
        outcome.points += 1
        where = f"{scenario.name}, {role} call {at}, {hit}"
        if error is None:
            outcome.tolerated[f"{hit.call} {_plain(hit.about)}"] += 1
            scenario.undo(stage)
        else:
            outcome.failed[f"{hit.call}({_plain(hit.about)}) -> {error.identifier}: {_plain(str(error))}"] += 1
            why = unclear(error, hit, _WANTS if on else ())
            if why:
                outcome.wrong.append(f"{where}: {why}: {error.identifier}: {error} {error.facts}")
        if scenario.final and error is not None:
            restore(stage, scenario, before)
        if scenario.alone and error is not None and stage.picture(rules=True)["network"] == stage.network:
            scenario.undo(stage)  # made as a whole, before the step that failed, and there to stay
        if any(name.endswith(".removed") for name in stage.files()):
            # What cannot be deleted goes with the next.
            stage.call("Create", name="next", template="bb", settings={})
            stage.call("Destroy", name="next")
        stage.await_picture(before, why=f"{where} ({error})", rules=scenario.rules, timeout=6)
        assert scenario.alone or stage.pids() == pids, where
        assert all(service.poll() is None for service in stage.services.values()), where


def restore(stage: Stage, scenario: Scenario, before: dict[str, Any]) -> None:
    """Make anew what a verb that has failed after its point of no return has taken; one before it needs none."""
    if stage.ves() != before["ves"]:
        with contextlib.suppress(RemoteError):
            scenario.clear(stage)
        scenario.base(stage)


def unclear(error: RemoteError, hit: Hit, others: Iterable[int] = ()) -> str:
    """Why a reader would not know what has failed, or "". `others`: errno of what may have failed after it."""
    text = str(error)
    if "defect" in text:
        return "called a defect"
    causes = (*map(os.strerror, (hit.code, *others)), "no space left", "no space is left", "no descriptor left")
    return "" if any(cause in text for cause in causes) else "without its cause"


def _plain(text: str) -> str:
    return re.sub(r"/[^ )]*/vemgr-test-[^/]*|[0-9a-f]{8,}|\d{4,}", "…", text)
