# SPDX-License-Identifier: GPL-2.0-or-later
"""What is said of a measurement, and measurements on cgroups of plain files."""

import os
import signal
import time

import pytest

from vemgr.core.config import MIB, parse_settings
from vemgr.verify import load
from vemgr.verify.finding import Finding, Outcome, exit_code, judge_amount, judge_guarantee, judge_rate
from vemgr.verify.measure import Subject, verify


@pytest.mark.parametrize(("asked", "got", "outcome", "text"), [
    (1.5, 1.49, "enforced", "cpus: enforced: asked 1.50, got 1.49 CPUs"),
    (0.5, 0.52, "exceeded", "cpus: exceeded: asked 0.50, got 0.52 CPUs"),
    (1, 0.3, "enforced", "cpus: enforced: asked 1.00, got 0.30 CPUs (less than the limit allows: something else held "
                         "it back)"),
])
def test_a_rate(asked, got, outcome, text):
    finding = judge_rate("cpus", asked, got, 1, "CPUs")
    assert (finding.outcome, str(finding)) == (outcome, text)


def test_a_guarantee():
    assert judge_guarantee("cpu-guarantee", 0.5, 0.49, 1, "CPUs").outcome == "kept"
    assert judge_guarantee("cpu-guarantee", 0.5, 0.4, 1, "CPUs").outcome == "missed"


@pytest.mark.parametrize(("most", "hit", "outcome"), [
    (64 * MIB, True, "enforced"), (65 * MIB, True, "exceeded"), (65 * MIB, False, "exceeded"),
    (30 * MIB, False, "not measured"),
])
def test_an_amount(most, hit, outcome):
    assert judge_amount("memory", 64 * MIB, most, MIB, "MiB", hit=hit, how="x").outcome == outcome


def test_the_worst_is_the_exit_code():
    findings = [Finding("a", outcome) for outcome in Outcome]
    assert exit_code(findings) == 6 and exit_code([]) == 0
    assert exit_code([Finding("a", Outcome.ENFORCED), Finding("a", Outcome.NOT_ENFORCEABLE)]) == 5


@pytest.fixture
def group(tmp_path):
    return tmp_path


def subject(group, **texts):
    settings = parse_settings({key.replace("_", "-"): text for key, text in texts.items()})
    return Subject("web1", settings, str(group), frozenset({"cpu", "memory", "pids"}), str(group), 1.0)


def test_only_what_is_set_is_measured(group):
    assert list(verify(subject(group), ())) == []


def test_a_missing_controller_is_told_when_asked_for(group):
    (finding,) = verify(subject(group), ("io",))
    assert finding.outcome == "not enforceable" and "no io controller" in str(finding)


def test_a_cgroup_that_has_gone(group):
    (finding,) = verify(subject(group, pids="20"), ("pids",))
    assert finding.outcome == "not measured" and "pids.current" in str(finding)


def test_a_limit_that_is_out_of_reach(group):
    (group / "pids.current").write_text("1\n")
    (finding,) = verify(subject(group, pids="100000"), ("pids",))
    assert finding.outcome == "not measured"


def test_loads_end_with_the_measurement(group):
    with load.loaded(str(group), load.burn, signal.pause) as pids:
        (procs,) = group.glob(".verify-*/cgroup.procs")
        assert procs.read_text() == "0"
        assert all(os.path.exists(f"/proc/{pid}") for pid in pids)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_load_that_cannot_enter(tmp_path, monkeypatch):
    def refuse(path, _text):
        if path.endswith("procs"):
            raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(load, "_write", refuse)
    with pytest.raises(OSError, match="cannot enter"), load.loaded(str(tmp_path), load.burn):
        pass
    assert list(tmp_path.iterdir()) == []


def test_transfers_go_round_the_file(tmp_path):
    path = tmp_path / "data"
    load.fill(str(path), 1 << 20)
    assert path.stat().st_size == 1 << 20
    pid = os.fork()
    if pid == 0:
        try:
            load.transfer(str(path), write=True, size=1 << 20)()
        finally:
            os._exit(1)
    assert load.wait_until(lambda: path.read_bytes() == bytes(1 << 20), 20)
    time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1]) and path.stat().st_size == 1 << 20
