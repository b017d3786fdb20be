# SPDX-License-Identifier: GPL-2.0-or-later
"""Killed in the midst of verbs that set limits; the rest of `tests/sweep` needs none and is in the kernel ring."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(900)
def test_verbs_with_limits(vemgr, figure):
    verbs = [word for verb in ("first-start", "set-live") for word in ("--verb", verb)]
    # The test machine may be twenty times slower than what a second was asked of.
    done = subprocess.run([sys.executable, "-m", "tests.sweep", *verbs, "--sample", "3", "--within", "30", "--logs"],
                          cwd=ROOT, capture_output=True, text=True, timeout=880,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    figure(done.stdout.splitlines()[-1] if done.stdout else "nothing")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "limits: cpus, memory, pids\n" in done.stdout
