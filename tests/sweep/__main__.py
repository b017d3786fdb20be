# SPDX-License-Identifier: GPL-2.0-or-later
"""Kill the daemon, the keeper, or what the keeper has VEs forked from, at the system calls of a verb:

    python -m tests.sweep --verb start --target daemon            # each call, until the verb comes to its end
    python -m tests.sweep --every 10                              # each tenth, of all verbs and targets
    python -m tests.sweep --sample 3 --seed 7                     # three of each, by chance
    python -m tests.sweep --verb stop --target daemon --at 117    # one that was found
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterator, Sequence

from tests.sweep.doing import TARGETS, WrongError
from tests.sweep.features import FEATURES
from tests.sweep.stage import Stage
from tests.sweep.sweep import Report, Sweep, points
from tests.sweep.verbs import VERBS as EARLIER
from vemgr.core.errors import VemgrError

VERBS = {**EARLIER, **FEATURES}
_UNTOUCHED = 2  # so many in a row mean that the verb has no such call: threads do not make the same calls each time
_MOST_WRONG = 50  # of one verb and target


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of the clearing away
    began = time.monotonic()
    with _Stages(options) as stages:
        reports = list(_all(stages, options))
    wrong = [f"{report.verb} {report.target} {line}" for report in reports for line in report.wrong]
    late = [f"{report.verb} {report.target} {line}" for report in reports for line in report.late]
    print(f"{sum(report.points for report in reports)} points in {time.monotonic() - began:.0f} s, "
          f"{len(late)} later than {options.within} s, {len(wrong)} wrong")
    for line in late:
        print(f"LATE {line}")
    for line in wrong:
        print(f"WRONG {line}")
    return int(bool(wrong or (options.strict and late)))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.sweep", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verb", action="append", choices=VERBS, help="all, when not given")
    parser.add_argument("--target", action="append", choices=TARGETS, help="all, when not given")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only each N-th call")
    parser.add_argument("--start", type=int, default=1, metavar="N", help="begin with this call")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="only N calls of each verb and target")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--at", type=int, default=0, metavar="N", help="only this call")
    parser.add_argument("--within", type=float, default=1.0, metavar="SECONDS", help="later than that is counted late")
    parser.add_argument("--strict", action="store_true", help="to be late is wrong")
    parser.add_argument("--directory", default="/var/tmp", help="where the instance has its files")
    parser.add_argument("--logs", action="store_true", help="print the end of the logs with what is wrong")
    return parser.parse_args(arguments)


class _Stages:
    """One stage as long as nothing is wrong with it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._stage: Stage | None = None

    def __enter__(self) -> _Stages:
        return self

    def __exit__(self, *_: object) -> None:
        if self._stage is not None:
            self._stage.close()
            self._stage = None

    def one(self) -> Stage:
        if self._stage is None:
            self._stage = Stage(self._options.directory)
            self._stage.begin()
            print(f"limits: {', '.join(self._stage.limits()) or 'none'}", flush=True)
        return self._stage

    def spoilt(self, why: str) -> None:
        print(f"WRONG {why}", file=sys.stderr, flush=True)
        if self._options.logs and self._stage is not None:
            print(self._stage.logs(), file=sys.stderr, flush=True)
        self.__exit__()


def _all(stages: _Stages, options: argparse.Namespace) -> Iterator[Report]:
    for name in options.verb or VERBS:
        for target in options.target or TARGETS:
            if target in VERBS[name].targets:
                report = Report(name, target)
                _sweep(stages, report, options)
                print(report.line(), flush=True)
                yield report


def _sweep(stages: _Stages, report: Report, options: argparse.Namespace) -> None:
    """All points of one verb and target."""
    remaining: Iterator[int] | None = None
    untouched = 0
    while len(report.wrong) < _MOST_WRONG:
        try:
            one = Sweep(stages.one(), VERBS[report.verb], report, options.within)
            one.learn()
        except (WrongError, VemgrError, OSError, AssertionError) as error:  # not even without a kill
            report.wrong.append(str(error))
            stages.spoilt(f"{report.verb} {report.target} {error}")
            return
        try:
            remaining = remaining or _points(one, report, options)
            for at in remaining:
                untouched = 0 if one.point(at) else untouched + 1
                if untouched == _UNTOUCHED and not options.sample:
                    return
            return
        except (WrongError, VemgrError, OSError, AssertionError) as error:
            report.wrong = report.wrong or [str(error)]
            stages.spoilt(f"{report.verb} {report.target} {error}")


def _points(one: Sweep, report: Report, options: argparse.Namespace) -> Iterator[int]:
    if options.at:
        return iter([options.at])
    if options.sample:
        one.point(0)
    return points(options.start, options.every, options.sample, options.seed, report.total)


if __name__ == "__main__":
    sys.exit(main())
