# SPDX-License-Identifier: GPL-2.0-or-later
"""When a VE that has ended by itself is started again, and when it is given up."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from vemgr.core.events import Kind

_FIRST_DELAY, _LONGEST_DELAY = 1.0, 60.0  # seconds
_LASTING = 60.0  # seconds: a VE that was up for so long has got over what made it end before


class Policy(StrEnum):
    """no: never. on-failure: when its init was killed by a signal, for want of memory too, or has ended with an exit
    code other than 0. always: also when it has ended with 0. A VE that powered itself off stays off in any case, and
    one that rebooted starts again in any case, which is no restart in this sense."""

    NO = "no"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"


def wants_restart(policy: Policy, how: Kind, *, powered_off: bool) -> bool:
    """`how`: what the end of its init is called."""
    if powered_off or how == Kind.REBOOTED:
        return False
    return policy == Policy.ALWAYS or (policy == Policy.ON_FAILURE and how == Kind.CRASHED)


@dataclass(frozen=True)
class Restarts:
    """The restarts of one VE in a row. Times are seconds since boot.

    `count`: since it was last up for a while or somebody started it. `times`: of those that still count for giving up.
    `due`: when the next one comes, 0 for none. `given_up`: there will be none.
    """

    count: int = 0
    times: tuple[float, ...] = ()
    due: float = 0.0
    given_up: bool = False

    def next(self, now: float, lived: float, most: int, window: float) -> Restarts | None:
        """After an end at `now` of a VE that was up for `lived` seconds: with a time for the next restart, or None to
        give it up, as there have been `most` in the last `window` seconds."""
        times = tuple(time for time in self.times if now - window < time <= now)
        if len(times) >= most:
            return None
        count = 0 if lived >= _LASTING else self.count
        delay = min(_FIRST_DELAY * 2 ** min(count, 16), _LONGEST_DELAY)
        return Restarts(count + 1, (*times, now), now + delay)
