# SPDX-License-Identifier: GPL-2.0-or-later
"""The arithmetic of `scripts/bench`: what fails is never fast, and what cannot be compared is not judged."""

import json
import math

import pytest
from benchmark import report
from benchmark.environment import CpuTimes, Watch
from benchmark.figure import Bar, Definition, Figure, compare
from benchmark.limits.result import Pace, Result
from benchmark.measure import Estimate, Failed, Samples, interleave, percentile, ratio
from benchmark.process import timed
from hypothesis import given
from hypothesis import strategies as st

SPEED = Definition("speed", "speed", Bar(0.6, 0.25))


def samples(name, *values, errors=()):
    return Samples(name, list(values), list(errors))


def test_contenders_take_turns():
    order = []

    def contender(name):
        def run():
            order.append(name)
            return 1.0
        return run

    found = interleave(3, {"a": contender("a"), "b": contender("b")}, warm_up=1)
    assert order == ["a", "b"] * 4
    assert found["a"].values == found["b"].values == [1.0] * 3


def test_a_failed_run_is_infinitely_long():
    outcomes = iter([1.0, 2.0, Failed("no luck"), 3.0])

    def run():
        outcome = next(outcomes)
        if isinstance(outcome, Failed):
            raise outcome
        return outcome

    found = interleave(4, {"vemgr": run}, warm_up=0)["vemgr"]
    assert found.values == [1.0, 2.0, math.inf, 3.0]
    assert found.errors == ["no luck"]
    assert (found.p50, found.percentile(0.99)) == (2.0, math.inf)


@given(st.lists(st.one_of(st.floats(0, 1e6), st.just(math.inf)), min_size=1), st.floats(0.01, 1))
def test_a_percentile_is_a_measured_value(values, share):
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9


@given(st.lists(st.floats(0.1, 10), min_size=5, max_size=30), st.lists(st.floats(0.1, 10), min_size=5, max_size=30))
def test_an_interval_lies_within_what_is_possible(ours, theirs):
    found = ratio(ours, theirs)
    assert min(ours) / max(theirs) <= found.low <= found.high <= max(ours) / min(theirs)
    assert found.value == percentile(ours, 0.5) / percentile(theirs, 0.5)


def test_the_interval_of_clear_samples_is_narrow():
    found = ratio([1.0, 1.01, 0.99] * 20, [2.0, 2.02, 1.98] * 20)
    assert 0.48 < found.low <= 0.5 <= found.high < 0.52


def test_a_slower_start_is_a_larger_ratio_and_its_p99_too():
    ours = [1.0] * 90 + [8.0] * 10
    assert ratio(ours, [2.0] * 100).value == 0.5
    assert ratio(ours, [2.0] * 100, 0.99).value == 4.0


@pytest.mark.parametrize(("value", "verdict"), [(0.2, "moonshot"), (0.25, "moonshot"), (0.6, "good"), (0.61, "missed"),
                                                (math.inf, "missed"), (math.nan, "missed")])
def test_verdicts_where_less_is_better(value, verdict):
    assert Figure(SPEED, Estimate(value)).verdict == verdict


@pytest.mark.parametrize(("value", "verdict"), [(9.0, "moonshot"), (3.0, "good"), (2.9, "missed"), (0.0, "missed")])
def test_verdicts_where_more_is_better(value, verdict):
    assert Figure(Definition("rate", "", Bar(3, 8, more_is_better=True)), Estimate(value)).verdict == verdict


def test_our_failures_are_slow_and_the_others_make_a_figure_invalid():
    ours = samples("vemgr", math.inf, math.inf, 1.0, errors=["no", "no"])
    theirs = samples("crun", math.inf, math.inf, 1.0, errors=["broken", "broken"])
    good = samples("crun", 1.0, 1.0, 1.0)
    assert compare(SPEED, {"vemgr": ours, "crun": good}, "crun", {}).verdict == "missed"
    figure = compare(SPEED, {"vemgr": samples("vemgr", 1.0, 1.0, 1.0), "crun": theirs}, "crun", {})
    assert (figure.verdict, figure.invalid) == ("invalid", ["crun failed 2 of 3 times: broken"])


def test_a_missing_contender_makes_a_figure_invalid():
    figure = compare(SPEED, {"vemgr": samples("vemgr", 1.0)}, "podman", {"podman": "not installed"})
    assert (figure.verdict, figure.invalid) == ("invalid", ["no podman: not installed"])
    assert figure.samples[0].p50 == 1.0


def test_steal_and_a_stepped_clock_are_complained_of():
    now = CpuTimes.now()
    assert Watch().complaints() == []
    assert "steal" in Watch(before=CpuTimes(now.total - 1000, now.stolen - 100)).complaints()[0]
    stepped = Watch()
    stepped.offset -= 0.5
    assert "stepped" in stepped.complaints()[0]


def test_a_command_is_timed_and_its_exit_code_counts(tmp_path):
    log = str(tmp_path / "log")
    assert 0 < timed(["sh", "-c", "exit 0"], log) < 10
    with pytest.raises(Failed, match=r"ended with 7: sorry"):
        timed(["sh", "-c", "echo sorry >&2; exit 7"], log)
    with pytest.raises(Failed, match="ended with -9"):
        timed(["sh", "-c", "kill -KILL $$"], log)
    with pytest.raises(Failed, match="No such file"):
        timed(["vemgr-no-such-program"], log)


def test_a_report_says_everything_and_json_can_be_read():
    figures = [
        Figure(SPEED, Estimate(math.inf), [samples("vemgr", math.inf, 1.0, errors=["it broke"])], ["a note"]),
        Figure(Definition("other", "another"), invalid=["no crun"]),
    ]
    text = report.text({"kernel": "6.1"}, figures)
    for expected in ("kernel:", "6.1", "inf", "<= 0.6", "missed", "1 failed: it broke", "a note", "invalid: no crun"):
        assert expected in text
    document = json.loads(report.as_json({"kernel": "6.1"}, figures))
    assert [figure["verdict"] for figure in document["figures"]] == ["missed", "invalid"]
    assert document["figures"][0]["samples"][0]["seconds"] == ["infinite", 1.0]
    assert document["figures"][1]["value"] is None


@pytest.mark.parametrize(("held", "pace", "verdict"), [
    (True, 1.0, "ok"), (True, 0.5, "ok"), (False, 1.0, "MISS"), (False, 0.91, "MISS"), (False, 0.5, "noisy"),
    (None, 0.5, "n/a")])
def test_a_bar_that_is_missed_while_others_use_the_host_is_not_judged(held, pace, verdict):
    result = Result("speed", "at least 1", "0.9 of it", [0.9], held, pace)
    assert result.verdict == verdict and str(result).startswith(verdict)
    assert ("best pace" in str(result)) == (pace < 0.9)


def test_pace_is_part_of_the_best_that_was_seen(monkeypatch):
    turns = iter([[50, 50], [100, 100], [90, 80], [120, 120]])
    monkeypatch.setattr("benchmark.limits.result._spin_on_each", lambda: next(turns))
    pace = Pace()
    assert [pace.look() for _ in range(4)] == [1.0, 1.0, 0.85, 1.0]


def test_all_cpus_are_made_to_count(monkeypatch):
    monkeypatch.setattr("benchmark.limits.result._SPIN", 0.01)
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    assert Pace().look() == 1.0
