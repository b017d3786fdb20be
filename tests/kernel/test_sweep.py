# SPDX-License-Identifier: GPL-2.0-or-later
"""Killed at any system call: a sample of what `python -m tests.sweep` does in full (docs/HACKING.md)."""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chance import seed
from tests.sweep.features import FEATURES
from tests.sweep.tracer import trace
from tests.sweep.verbs import VERBS

ROOT = Path(__file__).parents[2]
SEED = str(seed("sweep"))  # of the sample


def run(*command, timeout):
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=timeout,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.mark.timeout(600)  # half a minute each, but all that it waits for is slower beside other work
@pytest.mark.parametrize("target", ["daemon", "keeper", "child"])
def test_one_point_of_each_verb(can_run_ves, target):
    """All is as before or done, nothing is left, nobody else is touched, and the verb works."""
    assert sample(VERBS, "--target", target) >= 8


@pytest.mark.timeout(600)
def test_some_points_of_some_features(can_run_ves):
    """Two of them by chance: all take minutes."""
    assert sample(random.Random(SEED).sample(sorted(FEATURES), 2)) >= 1


def sample(verbs, *options):
    """One call of each; how many came to be killed."""
    done = run("-m", "tests.sweep", *(word for verb in verbs for word in ("--verb", verb)), *options, "--sample", "1",
               "--seed", SEED, "--logs", timeout=580)
    print(done.stdout)
    assert done.returncode == 0, f"seed {SEED}\n{done.stdout}\n{done.stderr}"
    return int(re.search(r"^(\d+) points in", done.stdout, re.MULTILINE)[1])


def test_a_leak_is_seen(can_run_ves):
    """The same with a daemon that does not clear away what an interrupted create has left."""
    done = run("-c", "import sys, vemgr.daemon.main; vemgr.daemon.main.sweep = lambda *_: None\n"
                     "from tests.sweep.__main__ import main\n"
                     "sys.exit(main(['--verb', 'create', '--target', 'daemon', '--every', '7']))", timeout=280)
    assert done.returncode == 1
    assert "more ['state/ve/.subject.partial'" in done.stdout, done.stdout


@pytest.fixture
def worker():
    """A process that waits for a byte, then makes 100 calls of getppid and says how many it has made."""
    gate_reader, gate = os.pipe()
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(gate_reader, 1)
        for number in range(100):
            os.getppid()
            os.write(tell, bytes([number]))
        os._exit(0)
    os.close(tell)
    yield pid, lambda: os.write(gate, b"x"), told
    for fd in (gate_reader, gate, told):
        os.close(fd)


def test_the_tracer_counts(can_run_ves, worker):
    """The call at whose entry it is killed is not carried out, and all before it are."""
    pid, begin, told = worker
    traced = trace(pid, 20, begin, lambda: False)
    assert (traced.calls, traced.killed) == (20, pid)
    assert os.waitpid(pid, 0)[1] == 9
    # read, then getppid and write by turns; the read was begun before, and is begun anew under the tracer.
    assert traced.call in ("getppid", "write")
    said = os.read(told, 1000)
    assert said == bytes(range(len(said))) and 8 <= len(said) <= 10


def test_the_tracer_lets_go(can_run_ves, worker):
    pid, begin, told = worker
    traced = trace(pid, 0, begin, lambda: False)
    assert traced.killed == 0 and traced.calls >= 200
    assert os.waitpid(pid, 0)[1] == 0 and len(os.read(told, 1000)) == 100
