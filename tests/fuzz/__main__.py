# SPDX-License-Identifier: GPL-2.0-or-later
"""python3 -m tests.fuzz TARGET [--seconds N] [--seed N] [--replay FILE]"""

import argparse
import contextlib
import random
from pathlib import Path

from tests.fuzz.engine import check, fuzz
from tests.fuzz.targets import TARGETS


def main():
    parser = argparse.ArgumentParser(prog="python3 -m tests.fuzz", description="Fuzz one of vemgr's readers.")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--replay", type=Path, help="one input, from a file that a finding has named")
    options = parser.parse_args()
    target = TARGETS[options.target]()
    if options.replay:
        with contextlib.closing(target):
            print(check(target, options.replay.read_bytes()))
            target.finish()
        return
    print(f"{options.target}: seed {options.seed}, {options.seconds:g} s", flush=True)
    done, seen = fuzz(target, options.seconds, options.seed)
    print(f"{done} inputs, {len(seen)} outcomes, no finding")


if __name__ == "__main__":
    main()
