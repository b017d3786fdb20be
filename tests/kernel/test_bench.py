# SPDX-License-Identifier: GPL-2.0-or-later
"""`scripts/bench` measures every figure on this host and leaves nothing behind. How fast things are is not judged."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from vemgr.kernel.cgroups import cgroup2_mountpoint

BENCH = Path(__file__).parents[2] / "scripts/bench"
FIGURES = {
    "first-instruction", "first-instruction-p99", "first-instruction-isolated", "burst", "process-podman",
    "process-podman-bridge", "process-nspawn", "exec", "built-in-init", "resident-start", "resident-memory",
    "resident-list", "teardown", "boot",
}
MISSES = 1  # the exit code for "a figure misses its bar", which quick runs do at random


def processes_of(directory):
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.fsencode(directory) in Path(f"/proc/{entry}/cmdline").read_bytes():
                found.append(entry)
    return found


@pytest.fixture
def bench(can_run_ves, tmp_path):
    """Runs it, quickly."""
    if shutil.which("gcc") is None:
        (pytest.fail if os.environ.get("VEMGR_MUST_WORK") == "1" else pytest.skip)("gcc is not installed")

    def run(*options, path=os.environ["PATH"]):
        """The exit code, and the figures by name."""
        before = set(os.listdir(cgroup2_mountpoint()))
        with tempfile.TemporaryDirectory(prefix="bench-", dir="/var/tmp") as directory:  # tmp_path is long for sockets
            done = subprocess.run(
                [sys.executable, BENCH, "--quick", "--dir", directory, "--json", tmp_path / "json", *options],
                capture_output=True, text=True, timeout=280, env={**os.environ, "PATH": path})
            assert done.returncode in (0, MISSES), done.stderr
            assert "Traceback" not in done.stderr
            assert os.listdir(directory) == []
            assert processes_of(directory) == []
        left = set(os.listdir(cgroup2_mountpoint())) - before
        assert [name for name in left if name.startswith("vemgr-bench-")] == []
        found = {figure["figure"]: figure for figure in json.loads((tmp_path / "json").read_text())["figures"]}
        assert all(name in done.stdout for name in found)
        return done.returncode, found

    return run


@pytest.fixture
def fake_crun(tmp_path):
    """A directory for PATH with a crun that does `script` for everything but its specification."""
    def make(script):
        directory = tmp_path / "bin"
        directory.mkdir()
        (directory / "crun").write_text(
            "#!/bin/sh\n"
            'case "$*" in\n'
            """*spec*) echo '{"process": {}, "linux": {"namespaces": []}}' > "${2#--bundle=}/config.json";;\n"""
            f"*run*) {script};;\nesac\n")
        (directory / "crun").chmod(0o755)
        return f"{directory}:{os.environ['PATH']}"
    return make


def test_every_figure_is_measured(bench):
    _, figures = bench()
    assert set(figures) == FIGURES
    for figure in figures.values():
        assert figure["invalid"] or figure["value"] not in (None, "infinite"), figure
        for samples in figure["samples"]:
            assert samples["errors"] == [], figure
    for name in ("resident-start", "resident-list", "teardown", "built-in-init"):  # that need no contender
        assert figures[name]["value"] > 0


def test_a_contender_that_does_not_run_makes_its_figures_invalid_and_no_others(bench, fake_crun):
    code, figures = bench("--only", "first-instruction", "--only", "built-in-init",
                          path=fake_crun("echo no luck; exit 3"))
    assert code == 0
    assert figures["first-instruction"]["verdict"] == "invalid"
    assert "ended with 3: no luck" in figures["first-instruction"]["invalid"][0]
    assert len(figures["first-instruction"]["samples"][0]["seconds"]) == 3  # ours was measured all the same
    assert figures["built-in-init"]["verdict"] == "information"


def test_a_contender_that_fails_later_is_not_beaten(bench, fake_crun, tmp_path):
    once = f"mkdir {tmp_path}/ran"  # works once, and fails ever after
    code, figures = bench("--only", "first-instruction", path=fake_crun(once))
    assert (code, figures["first-instruction"]["verdict"]) == (0, "invalid")
    assert "crun failed 3 of 3 times" in figures["first-instruction"]["invalid"][0]


def test_what_vemgr_cannot_do_is_infinitely_slow(bench):
    """Eight VEs do not fit into a subnet of five addresses."""
    code, figures = bench("--only", "resident-start", "--only", "teardown", "--toml", 'subnet = "10.99.0.0/29"')
    assert code == MISSES
    for figure in figures.values():
        assert (figure["value"], figure["verdict"]) == ("infinite", "missed")
        assert "addresses" in figure["notes"][0]
