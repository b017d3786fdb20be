# SPDX-License-Identifier: GPL-2.0-or-later
"""README.md's tour on an installed vemgr, with all its limits."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("tour", Path(__file__).parents[1] / "tour.py")
tour = sys.modules["tour"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tour)


def test_the_tour_works_as_written(vemgr, tmp_path):
    controllers = vemgr.host()["controllers"]
    assert set(controllers) >= tour.CONTROLLERS
    sudo = tmp_path / "sudo"
    sudo.write_text('#!/bin/sh\nexec "$@"\n')
    sudo.chmod(0o755)
    path = f"{tmp_path}:{os.path.dirname(vemgr.program)}:{os.environ['PATH']}"

    def types(line):
        done = subprocess.run(["bash", "-c", line], cwd="/", env={"PATH": path, "LC_ALL": "C"}, text=True, timeout=240,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return done.returncode, done.stdout

    tour.follow(types, controllers)
    assert "web1" not in vemgr.list()
