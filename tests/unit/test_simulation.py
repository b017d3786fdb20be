# SPDX-License-Identifier: GPL-2.0-or-later
"""The simulator: what must hold of any simulated host, and the scenarios that come with vemgr."""

import json
import re
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from vemgr.cli.main import cli
from vemgr.cli.simulation_page import render
from vemgr.core.errors import VemgrError
from vemgr.scheduler.demand import SHAPES, Demand, parse_demand
from vemgr.scheduler.report import jain
from vemgr.scheduler.scenario import parse_scenario
from vemgr.scheduler.simulation import Simulation

SCENARIOS = sorted((Path(__file__).parents[2] / "vemgr/scheduler/scenarios").glob("*.toml"))
BAR = 0.99


def simulate(document):
    return Simulation(parse_scenario(document)).run().as_dict()


def own(name):
    (path,) = [path for path in SCENARIOS if path.stem == name]
    return simulate(tomllib.loads(path.read_text()))


def by(rows, key):
    return {row[key]: row for row in rows}


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_a_scenario_of_ours_keeps_every_guarantee_and_wastes_nothing(path):
    found = simulate(tomllib.loads(path.read_text()))
    assert found["description"]
    for row in found["resources"]:
        assert row["unmet"] == 0 and row["worst"] >= BAR
        assert row["conserved"] >= 0.97
        assert 0 < row["utilization"] <= 1
        assert 0 < row["leastFairness"] <= row["fairness"] <= 1 + 1e-9


def test_what_the_scenarios_are_there_to_show():
    noisy = own("noisy-neighbour")
    satisfied = by(noisy["kinds"], "kind")["service"]["satisfied"]
    assert satisfied == pytest.approx({"cpus": 1, "memory": 1, "io": 1}, abs=0.01)
    herd = own("thundering-herd")
    assert by(herd["kinds"], "kind")["steady"]["satisfied"]["cpus"] == pytest.approx(1)
    assert by(herd["kinds"], "kind")["herd"]["started"] == 500 and herd["movesPerMinute"] > 1
    leak = by(own("memory-leak")["kinds"], "kind")
    assert leak["guaranteed"]["satisfied"]["memory"] == 1 > leak["plain"]["satisfied"]["memory"]
    storm = by(own("io-storm")["kinds"], "kind")
    assert storm["database"]["satisfied"]["io"] == 1 and storm["capped"]["satisfied"]["io"] == pytest.approx(0.1)
    day = by(own("diurnal")["resources"], "resource")
    assert day["cpus"]["utilization"] > 0.9, "batch work takes what the web servers leave"


def test_without_its_guarantee_the_service_suffers():
    (path,) = [path for path in SCENARIOS if path.stem == "noisy-neighbour"]
    document = tomllib.loads(path.read_text())
    document["ve"][0]["settings"] = {}
    assert by(simulate(document)["kinds"], "kind")["service"]["satisfied"]["cpus"] < 0.1


def test_idle_ves_take_what_is_left():
    def satisfied(batch, weight):
        document = {"ticks": 5, "tick": 1, "host": {"cpus": 4}, "scheduler": {"reserve-cpus": "0%/0/0"}, "ve": [
            {"name": "idle", "count": 3, "settings": {"cpu-weight": "idle"}, "demand": {"cpus": "4"}},
            {"name": "batch", "settings": {"cpu-weight": weight}, "demand": {"cpus": batch}},
            {"name": "good", "settings": {"cpu-guarantee": "1"}, "demand": {"cpus": "1"}}]}
        return {row["kind"]: row["satisfied"]["cpus"] for row in simulate(document)["kinds"]}

    alone = satisfied("1", "100")
    assert alone["idle"] == pytest.approx(2 / 12) and alone["batch"] == alone["good"] == pytest.approx(1, abs=0.01)
    assert satisfied("4", "10000")["idle"] < 0.01


def test_what_cannot_be_promised_is_refused():
    document = {"ticks": 10, "tick": 1, "host": {"count": 3, "cpus": 4}, "ve": [
        {"name": "a", "count": 20, "settings": {"cpu-guarantee": "1"}, "demand": {"cpus": "1"}},
        {"name": "late", "count": 20, "settings": {"cpu-guarantee": "1"}, "demand": {"cpus": "1"}, "start": 5},
        {"name": "plain", "demand": {"cpus": "1"}}]}
    kinds = by(simulate(document)["kinds"], "kind")
    assert (kinds["a"]["started"], kinds["a"]["refused"]) == (9, 11), "0.2 of 4 CPUs are the host's own"
    assert kinds["late"]["started"] == 0 and kinds["plain"]["started"] == 1
    document["ve"][0]["stop"] = 5
    assert by(simulate(document)["kinds"], "kind")["late"]["started"] == 9


AMOUNT = st.sampled_from(["0", "0.1", "0.5", "2"])
KIND = st.fixed_dictionaries({
    "count": st.integers(1, 6), "demand": st.fixed_dictionaries({"cpus": st.sampled_from(["0.1", "1", "8"]) | st.builds(
        lambda shape: {"shape": shape, "high": "4", "low": "0.1", "begin": 3, "end": 9, "period": 7, "spread": 5},
        st.sampled_from(SHAPES)), "memory": st.sampled_from(["64M", "3G"])}),
    "settings": st.fixed_dictionaries({"cpu-guarantee": AMOUNT, "memory-guarantee": st.sampled_from(["0", "1G"])}),
    "start": st.integers(0, 12), "stop": st.integers(0, 12), "spread": st.integers(0, 5)})


@settings(max_examples=60)
@given(st.lists(KIND, min_size=1, max_size=4), st.integers(1, 3), st.sampled_from(["guaranteed", "balanced"]))
def test_no_guarantee_is_missed_whatever_happens(kinds, hosts, policy):
    document = {"ticks": 12, "tick": 1, "host": {"count": hosts, "cpus": 4, "memory": "8G"},
                "scheduler": {"policy": policy}, "ve": [{**kind, "name": f"k{n}"} for n, kind in enumerate(kinds)]}
    found = simulate(document)
    assert found == simulate(document), "nothing is left to chance"
    for row in found["resources"]:
        assert row["unmet"] == 0 and row["utilization"] <= 1 and row["conserved"] <= 1 + 1e-9
    for row, kind in zip(found["kinds"], kinds, strict=True):
        assert row["started"] + row["refused"] <= kind["count"]


def test_more_promised_than_there_is_is_seen_as_unmet():
    """The report must be able to say so: with policy dense guarantees are not for all at the same time."""
    found = simulate({"ticks": 2, "tick": 1, "host": {"cpus": 4}, "scheduler": {"policy": "dense"}, "ve": [
        {"count": 15, "settings": {"cpu-guarantee": "1"}, "demand": {"cpus": "1"}}]})
    (cpus,) = found["resources"]
    assert cpus["unmet"] == 1 and cpus["worst"] == pytest.approx(3.8 / 15, rel=0.01)


def test_jain():
    assert jain([1, 1, 1]) == 1 and jain([1, 0, 0, 0]) == 0.25 and jain([]) == 1 and jain([0.5, 0.5]) == 1


def test_shapes():
    day = Demand("diurnal", 100, 300, period=100)
    assert [day.at(time, 0) for time in (0, 25, 50, 100)] == [100, 200, 300, 100]
    burst = Demand("burst", 1, 9, begin=10, end=20, spread=10)
    assert [burst.at(time, 0) for time in (9, 10, 19, 20)] == [1, 9, 9, 1]
    assert len({tuple(burst.at(time, number) for time in range(40)) for number in range(5)}) > 2
    leak = Demand("leak", 0, 100, begin=10, end=20)
    assert [leak.at(time, 0) for time in (0, 10, 15, 20, 99)] == [0, 0, 50, 100, 100]


VE = {"demand": {"cpus": "1"}}


@pytest.mark.parametrize("document", [
    {}, {"ve": []}, {"ve": 1}, {"ve": [1]}, {"x": 1, "ve": [VE]}, {"ve": [{"x": 1}]}, {"ve": [VE], "ticks": 0},
    {"ve": [VE], "ticks": 1.5}, {"ve": [VE], "tick": 0}, {"ve": [VE], "tick": -1}, {"ve": [VE], "host": 1},
    {"ve": [VE], "host": {"cpus": "x"}}, {"ve": [VE], "host": {"x": 1}}, {"ve": [VE], "host": {"count": 10**9}},
    {"ve": [{"count": 0}]}, {"ve": [{"count": 10**9}]}, {"ve": [{"name": 1}]}, {"ve": [{"name": "a"}, {"name": "a"}]},
    {"ve": [{"settings": {"cpus": 1}}]}, {"ve": [{"settings": {"cpus": "x"}}]}, {"ve": [{"demand": {"x": "1"}}]},
    {"ve": [{"demand": {"cpus": []}}]}, {"ve": [{"demand": {"cpus": {"shape": "x"}}}]},
    {"ve": [{"demand": {"cpus": {"shape": 1}}}]}, {"ve": [{"demand": {"cpus": {"x": 1}}}]},
    {"ve": [{"demand": {"cpus": {"shape": "leak"}}}]}, {"ve": [{"demand": {"cpus": {"period": 0}}}]},
    {"ve": [{"demand": {"memory": "unlimited"}}]}, {"ve": [{"start": "soon"}]}, {"ve": [{"start": float("nan")}]},
    {"ve": [VE], "scheduler": {"policy": "x"}}, {"ve": [{"demand": {"cpus": float("inf")}}]},
])
def test_what_is_no_scenario(document):
    with pytest.raises(VemgrError) as refused:
        parse_scenario(document)
    assert refused.value.exit_code in (20, 21)


def test_amounts_may_be_numbers():
    assert parse_demand("x", "cpus", 1.5).high == 1500 and parse_demand("x", "io", "10M/s").high == 10 << 20


# the command

def command(*arguments):
    return CliRunner().invoke(cli, ["scheduler", "simulate", *arguments])


def test_the_command(tmp_path):
    assert "service  1" in command("noisy-neighbour").output
    found = json.loads(command("--json", "noisy-neighbour").output)
    assert found == json.loads(json.dumps(own("noisy-neighbour")))
    file = tmp_path / "mine.toml"
    file.write_text('ticks = 1\n[host]\ncpus = 1\n[[ve]]\ndemand = { cpus = "1" }\n')
    assert "kind0" in command(str(file)).output


def test_a_scenario_that_cannot_be_read(tmp_path):
    missing = command("nonsense").exception
    assert missing.exit_code == 21 and "noisy-neighbour" in missing.remedy
    file = tmp_path / "mine.toml"
    file.write_text("= 1")
    assert command(str(file)).exception.exit_code == 3
    assert command(str(tmp_path)).exception.exit_code == 3


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_the_page_shows_what_was_found(path, tmp_path):
    """Well-formed, with every plot, and nothing that is fetched from elsewhere."""
    page = tmp_path / "page.html"
    done = CliRunner().invoke(cli, ["scheduler", "simulate", "--html", str(page), path.stem], catch_exceptions=False)
    assert done.exit_code == 0
    text = page.read_text()
    document = ElementTree.fromstring(re.sub(r"<(meta[^>]*)>", r"<\1/>", text.replace("<!DOCTYPE html>", "")))
    plots = [svg for svg in document.iter("svg") if svg.get("role") == "img"]
    assert [svg.get("aria-label") for svg in plots] == ["Utilization", "Fairness", "Unmet guarantees", "Moves"]
    assert all(path.get("d") for svg in plots for path in svg.iter("path"))
    assert "http" not in text and "<script" not in text and "prefers-color-scheme: dark" in text
    numbers = [float(number) for svg in plots for path in svg.iter("path")
               for number in re.findall(r"-?[\d.]+", path.get("d"))]
    assert numbers and min(numbers) >= 0 and max(numbers) <= 960, "nothing lies outside of its plot"


def test_the_history_adds_up_and_stays_short():
    document = {"ticks": 1001, "tick": 1, "host": {"cpus": 4}, "ve": [
        {"name": "<b>", "settings": {"cpu-guarantee": "1"}, "demand": {"cpus": "1"}},
        {"count": 5, "start": 500, "spread": 200, "demand": {"cpus": "1"}}]}
    found = simulate(document)
    history = found["history"]
    assert len(history) == 334 and history[1]["seconds"] == 3
    last = 1001 - 3 * 333
    moves = sum(step["movesPerMinute"] * 3 for step in history[:-1]) + history[-1]["movesPerMinute"] * last
    assert moves / 1001 == pytest.approx(found["movesPerMinute"])
    used = [step["resources"][0]["utilization"] for step in history]
    assert (sum(used[:-1]) * 3 + used[-1] * last) / 1001 == pytest.approx(found["resources"][0]["utilization"])
    assert used[0] < used[-1] and "&lt;b&gt;" in render(found, "x") and "<b>" not in render(found, "x")
