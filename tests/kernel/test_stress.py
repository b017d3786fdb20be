# SPDX-License-Identifier: GPL-2.0-or-later
"""Eight clients at once. Longer, or again with the same seed: `python -m tests.faults.stress --seconds N --seed N`."""

import os

import pytest

from tests.chance import seed
from tests.faults.stage import made_stage
from tests.faults.stress import stress

SECONDS = float(os.environ.get("VEMGR_STRESS_SECONDS", "45"))


@pytest.mark.timeout(SECONDS + 300)
def test_eight_clients_at_once(can_run_ves):
    with made_stage() as stage:
        answers = stress(stage, SECONDS, seed("stress"))
    verbs = ("create", "start", "stop", "restart", "suspend", "resume", "destroy", "destroy --force", "set", "exec")
    assert all(answers[f"{verb}: ok"] for verb in verbs), answers
