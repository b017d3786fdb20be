# SPDX-License-Identifier: GPL-2.0-or-later
"""The arithmetic of `vemgr compare`: medians, intervals, order, noise, and what one report has against another."""

import itertools
import math
import random
import statistics as reference

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.compare_stand_in import Counting, report
from vemgr.cli.compare import compare
from vemgr.compare import noise, schedule, schema
from vemgr.compare.noise import Counters, Noise
from vemgr.compare.report import difference, numbers
from vemgr.compare.schedule import Task
from vemgr.compare.statistics import Estimate, estimate, median, percentile, ratio
from vemgr.core.errors import BadValue

VALUES = st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=30)


@given(VALUES)
def test_the_median_is_that_of_the_standard_library(values):
    assert median(values) == pytest.approx(reference.median(values), rel=1e-12)


@given(VALUES, st.floats(0.01, 1))
def test_a_percentile_is_a_measured_value(values, share):
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9


def test_nothing_has_no_median():
    for function in (median, estimate, lambda values: percentile(values, 0.5)):
        with pytest.raises(ValueError, match="no values"):
            function([])


def exact_median_distribution(count):
    """P(median of a resample <= k-th smallest value) for an odd `count` (Efron 1979, section 2)."""
    middle = (count + 1) // 2
    return [sum(math.comb(count, hits) * (rank / count)**hits * (1 - rank / count)**(count - hits)
                for hits in range(middle, count + 1)) for rank in range(1, count + 1)]


@pytest.mark.parametrize("count", [5, 11, 21])
def test_the_interval_of_a_median_is_what_can_be_computed_exactly(count):
    values = [float(value * value) for value in range(1, count + 1)]
    exact = exact_median_distribution(count)
    found = estimate(values)
    assert found.value == median(values)
    for end, share in ((found.low, 0.025), (found.high, 0.975)):
        rank = values.index(end)
        below = exact[rank - 1] if rank else 0.0
        assert below - 0.02 <= share <= exact[rank] + 0.02  # a thousand draws are not all of them


def test_the_interval_holds_the_true_median_about_as_often_as_it_says():
    dice = random.Random(5)
    held = 0
    for _ in range(150):
        found = estimate([dice.gauss(100, 5) for _ in range(15)])
        held += found.low <= 100 <= found.high
    assert held / 150 > 0.88  # percentile intervals of few samples are a little too short


@settings(max_examples=25)
@given(st.lists(st.floats(0.5, 2), min_size=2, max_size=12), st.floats(0.1, 10))
def test_an_interval_holds_its_median_and_scales_with_it(values, factor):
    found, scaled = estimate(values), estimate([value * factor for value in values])
    assert min(values) <= found.low <= found.value <= found.high <= max(values)
    assert found == estimate(values)
    for one, other in ((found.low, scaled.low), (found.value, scaled.value), (found.high, scaled.high)):
        assert other == pytest.approx(one * factor)


def test_ratios():
    assert ratio([2.0], [4.0]) == Estimate(0.5, 0.5, 0.5, 1)
    found = ratio([2.0, 2.1, 1.9, 2.0], [4.0, 4.1, 3.9])
    assert found.value == 0.5 and 0.45 < found.low < 0.5 < found.high < 0.55 and found.count == 3
    assert ratio([1.0, 2.0], [0.0, 1.0]) is None


# the order

ROUNDS = st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(1, 4), min_size=1, max_size=4)
DRIVERS = st.lists(st.sampled_from(["host", "ve", "crun", "kvm"]), min_size=1, unique=True)


@given(st.integers(), ROUNDS, DRIVERS)
def test_each_task_is_done_once_in_rounds_and_all_drivers_do_a_work_in_turn(seed, rounds, drivers):
    tasks = schedule.plan(seed, rounds, drivers)
    assert tasks == schedule.plan(seed, rounds, drivers)
    assert sorted(tasks, key=repr) == sorted(
        (Task(number, work, driver) for work, count in rounds.items() for number in range(count + 1)
         for driver in drivers), key=repr)
    assert [task.round for task in tasks] == sorted(task.round for task in tasks)
    groups = [key for key, _ in itertools.groupby(tasks, lambda task: (task.round, task.workload))]
    assert len(groups) == len(set(groups)) == len(tasks) / len(drivers)


def test_orders_differ_between_rounds_and_seeds_so_that_nobody_is_always_first():
    drivers = ["host", "ve", "crun", "kvm"]
    tasks = schedule.plan(3, {"a": 40}, drivers)
    first = [tasks[number].driver for number in range(0, len(tasks), len(drivers))]
    assert {driver: first.count(driver) > 3 for driver in drivers} == dict.fromkeys(drivers, True)
    assert tasks != schedule.plan(4, {"a": 40}, drivers)


def test_what_is_cold_does_not_warm_up():
    tasks = schedule.plan(1, {"a": 2, "b": 1}, ["ve"], cold={"a"})
    assert sorted((task.round, task.workload) for task in tasks) == [(0, "b"), (1, "a"), (1, "b"), (2, "a")]


def test_what_has_a_rank_comes_before_or_after_the_others_of_its_round():
    tasks = schedule.plan(1, dict.fromkeys("abcde", 3), ["ve"], ranks={"e": -1, "b": 2, "a": 1})
    for number in range(4):
        order = "".join(task.workload for task in tasks if task.round == number)
        assert order[0] == "e" and {*order[1:3]} == {*"cd"} and order[3:] == "ab"


def test_the_time_that_is_left():
    tasks = [Task(1, "a", "host"), Task(1, "a", "ve"), Task(2, "a", "crun")]
    assert schedule.time_left(tasks, {("a", "host"): 1.0, ("a", "ve"): 4.0}) == 1 + 4 + 4
    assert schedule.time_left([], {}) == 0
    assert schedule.time_left(tasks[:1], {}) > 0


# noise

def counters(**changes):
    return Counters(**{"seconds": 10.0, "total": 1000, "stolen": 0, "cpu": 0, "memory": 0, "io": 0, **changes})


def test_shares_of_a_run():
    after = counters(seconds=12.0, total=1400, stolen=40, cpu=500_000, memory=1, io=2_000_000)
    found = noise.between(counters(), after)
    assert found == Noise(0.1, 0.25, 0.0, 1.0)
    assert noise.between(counters(), counters()) == Noise(0.0, 0.0, 0.0, 0.0)


@given(*[st.integers(0, 10**9)] * 6)
def test_shares_are_shares(seconds, total, stolen, cpu, memory, io):
    found = noise.between(counters(), counters(seconds=10 + seconds / 1e6, total=1000 + total, stolen=stolen, cpu=cpu,
                                               memory=memory, io=io))
    assert all(0 <= share <= 1 for share in (found.steal, found.cpu, found.memory, found.io))


@pytest.mark.parametrize(("found", "crowded", "objects"), [
    (Noise(0.2, 0.0, 0.0, 0.0), False, "steal 20%"), (Noise(0.2, 0.0, 0.0, 0.0), True, "steal 20%"),
    (Noise(0.0, 0.5, 0.0, 0.0), False, "waited for a CPU 50%"), (Noise(0.0, 0.5, 0.0, 0.0), True, ""),
    (Noise(0.1, 0.1, 1.0, 1.0), False, ""),  # the work itself waits for disks
])
def test_what_makes_a_run_invalid(found, crowded, objects):
    said = noise.objection(found, 0.1, crowded=crowded)
    assert objects in said and bool(said) == bool(objects)


def test_a_clock_that_runs_fast_is_found():
    assert noise.clock_objection(1.0, 1.2) == noise.clock_objection(0.0, 5.0) == ""
    assert "clock" in noise.clock_objection(2.0, 1.2)


# numbers

@pytest.mark.parametrize(("value", "unit", "text"), [
    (191.8, "ns", "192 ns"), (3356.0, "ns", "3.36 µs"), (0.0203, "MiB", "0.0203 MiB"), (1023, "MiB", "1,023 MiB"),
    (2048, "MiB", "2.00 GiB"), (7900.0, "ms", "7.90 s"), (12345.6, "/s", "12,346 /s"), (0, "", "0"), (8.0, "", "8.00"),
])
def test_numbers_for_people(value, unit, text):
    assert numbers.with_unit(value, unit) == text


def test_an_interval_has_the_unit_of_its_value():
    assert numbers.interval(Estimate(2000.0, 900.0, 2100.0, 10), "ns") == "0.900 to 2.10 µs"


# difference

COST, RATE = Counting("cost", better="lower"), Counting("rate", unit="/s", better="higher")
FIRM, LOW, HIGH = [10.0, 10.1, 9.9, 10.0, 10.0], [5.0, 5.1, 4.9, 5.0, 5.0], [20.0, 20.2, 19.9, 20.0, 20.1]


def verdicts(first, second):
    return {(change.figure.name, change.driver): change.verdict for change in difference.changes(first, second)}


@pytest.mark.parametrize(("work", "after", "verdict"), [
    (COST, HIGH, "worse"), (COST, LOW, "better"), (RATE, HIGH, "better"), (RATE, LOW, "worse"), (COST, FIRM, "same"),
    (COST, [10.05, 30.0, 9.95, 10.1], "same"),  # wide, but no worse beyond chance
    (COST, [], "lost"), (COST, HIGH[:4], "few"), (COST, FIRM[:2], "same"),
])
def test_what_has_become_of_a_figure(work, after, verdict):
    first = report([work], ["ve"], {(work.name, "ve"): FIRM})
    assert verdicts(first, report([work], ["ve"], {(work.name, "ve"): after})) == {(work.name, "ve"): verdict}


def test_only_what_both_were_to_measure_is_compared():
    first = report([COST, RATE], ["ve", "crun"], {("cost", "ve"): FIRM, ("rate", "ve"): FIRM, ("cost", "crun"): FIRM})
    second = report([COST], ["ve", "host"], {("cost", "ve"): FIRM, ("cost", "host"): FIRM})
    assert verdicts(first, second) == {("cost", "ve"): "same"}
    assert verdicts(report([COST], ["ve"], {}), report([COST], ["ve"], {("cost", "ve"): FIRM})) == {
        ("cost", "ve"): "new"}


def test_other_circumstances_are_named():
    first = report([COST], ["ve"], {}, environment={"kernel": "6.1", "CPU": "x"})
    second = report([COST], ["ve"], {}, environment={"kernel": "6.2", "CPU": "x"}, template="debian", cpus=2)
    assert difference.other_circumstances(first, first) == []
    assert difference.other_circumstances(first, second) == [
        "kernel: 6.1 / 6.2", "template: bb / debian", "the instances had other resources"]


@pytest.mark.parametrize(("after", "code", "says"), [
    (HIGH, 1, "worse   ve, title of cost: 10.0 ns (9.90 to 10.1 ns) -> 20.0 ns (19.9 to 20.2 ns), 2.00 times\n"
              "1 figures: 1 worse, 0 better, beyond their intervals\n"),
    (LOW, 0, "1 figures: 0 worse, 1 better"), (FIRM, 0, "1 figures: 0 worse, 0 better"), ([], 1, "lost    ve"),
    (HIGH[:3], 0, "1 of too few runs to say"),
])
def test_the_verdict_on_the_command_line(tmp_path, after, code, says):
    for name, values in (("a", FIRM), ("b", after)):
        found = report([COST], ["ve"], {("cost", "ve"): values})
        (tmp_path / name).write_bytes(schema.encode(found))
    done = CliRunner().invoke(compare, ["diff", str(tmp_path / "a"), str(tmp_path / "b")])
    assert done.exit_code == code and says in done.output


def test_a_report_that_is_not_there(tmp_path):
    done = CliRunner().invoke(compare, ["diff", str(tmp_path), str(tmp_path)])
    assert isinstance(done.exception, BadValue) and "no such file" in str(done.exception)
