# SPDX-License-Identifier: GPL-2.0-or-later
"""Each fuzzer for a short time, with a new seed each time. `python3 -m tests.fuzz` runs one for long."""

import os
import random

import pytest

from tests.fuzz.engine import fuzz
from tests.fuzz.targets import TARGETS

SECONDS = float(os.environ.get("VEMGR_FUZZ_SECONDS", "15"))


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "api"])
def test_fuzz(name):
    seed = int(os.environ.get("VEMGR_FUZZ_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"seed {seed}")
    done, seen = fuzz(TARGETS[name](), SECONDS, seed, out=None)
    assert done > 10 * SECONDS, "it is too slow to find anything"
    assert len(seen) > 20, "all inputs end alike"
