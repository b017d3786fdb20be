# SPDX-License-Identifier: GPL-2.0-or-later
"""Each fuzzer for a short time, with a new seed except under CI. `python3 -m tests.fuzz` runs one for long."""

import os

import pytest

from tests.chance import seed
from tests.fuzz.engine import fuzz
from tests.fuzz.targets import TARGETS

SECONDS = float(os.environ.get("VEMGR_FUZZ_SECONDS", "15"))


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "api"])
def test_fuzz(name):
    done, seen = fuzz(TARGETS[name](), SECONDS, seed("fuzz"), out=None)
    assert done > 10 * SECONDS, "it is too slow to find anything"
    assert len(seen) > 20, "all inputs end alike"
