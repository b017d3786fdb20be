# SPDX-License-Identifier: GPL-2.0-or-later
"""The linters, as tests: what they say is what a reviewer would have to."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = Path(sys.executable).parent


@pytest.mark.parametrize("command", [
    ["ruff", "check", "vemgr", "tests", "scripts"], ["mypy"],
    ["lint-imports", "--no-cache"],
], ids=lambda command: command[0])
def test_linter(command):
    tool = shutil.which(command[0], path=f"{TOOLS}:/usr/bin")
    assert tool, f"{command[0]} belongs to the test dependencies"
    run = subprocess.run([tool, *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_file_names_its_licence():
    tracked = subprocess.run(["git", "ls-files", "*.py", "scripts/*", "systemd/*"], cwd=ROOT, capture_output=True,
                             text=True)
    names = tracked.stdout.split() or [str(p.relative_to(ROOT)) for p in ROOT.glob("*/**/*.py")]
    assert len(names) > 50
    lacking = [name for name in names if (ROOT / name).is_file()
               and "SPDX-License-Identifier: GPL-2.0-or-later" not in (ROOT / name).read_text()[:200]]
    assert lacking == []
