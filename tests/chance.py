# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the tests that draw lots get their seeds from."""

import os
import random


def seed(name: str) -> int:
    """$VEMGR_<NAME>_SEED, if it is set. Under CI always the same, since a change is judged there by what it changes and
    not by luck; anywhere else another one each time, which finds more."""
    given = os.environ.get(f"VEMGR_{name.upper()}_SEED")
    chosen = int(given) if given else 1 if os.environ.get("CI") else random.SystemRandom().randrange(1 << 32)
    print(f"{name}: seed {chosen}")
    return chosen
