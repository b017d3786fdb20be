# SPDX-License-Identifier: GPL-2.0-or-later
"""Recordings of demand: what is written is read back as what was wanted, whoever comes, goes or is started again."""

import json
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from vemgr.cli import connection, recording
from vemgr.cli.main import cli
from vemgr.core.errors import BadValue, Unreachable
from vemgr.scheduler.recording import FIGURES, Recorder, head, read_recording
from vemgr.scheduler.scenario import parse_scenario
from vemgr.scheduler.simulation import Simulation

HEAD = head(10, 4000, 8 << 30, "balanced")


def ve(name="a", pid=1, **changes):
    return {"name": name, "pid": pid, "settings": {"cpu-guarantee": "0.5"}, "cpuUsed": 0, "cpuWaited": 0,
            "memory": 1000, "workingSet": 600, "ioRead": 0, "ioWrite": 0, "netIn": 0, "netOut": 0, **changes}


def recorded(*looks, first=()):
    """The lines of looks, 10 s apart."""
    recorder = Recorder(100.0, first)
    return [HEAD, *(line for number, look in enumerate(looks) for line in recorder.look(110.0 + 10 * number, look))]


def test_a_look_is_told_in_rates():
    lines = recorded([ve(cpuUsed=5_000_000, cpuWaited=2_000_000, ioRead=1000, ioWrite=500, netIn=20, netOut=10)],
                     first=[ve()])
    sample = json.loads(lines[-1])
    assert sample == {"at": 10.0, "ves": {"a": {"cpus-used": 500, "cpus": 700, "memory-held": 1000, "memory": 600,
                                                "io-read": 100, "io-write": 50, "net-in": 2, "net-out": 1}}}
    assert tuple(sample["ves"]["a"]) == FIGURES
    assert json.loads(lines[1]) == {"ve": "a", "settings": {"cpu-guarantee": "0.5"}}
    found = read_recording(lines)
    demand = found.ves["a"].demand
    assert {name: each.at(3, 0) for name, each in demand.items()} == {"cpus": 700, "memory": 600, "io": 150}
    assert found.ves["a"].settings.cpu_guarantee == 500 and found.amounts == {"cpus": 4000, "memory": 8 << 30}


def test_what_the_host_does_not_tell_is_left_out():
    unknown = dict.fromkeys(("cpuWaited", "memory", "workingSet", "ioRead", "ioWrite", "netIn", "netOut"))
    lines = recorded([ve(cpuUsed=1_000_000, **unknown)], first=[ve(**unknown)])
    assert json.loads(lines[-1])["ves"]["a"] == {"cpus-used": 100, "cpus": 100}
    assert list(read_recording(lines).ves["a"].demand) == ["cpus"]


def test_ves_come_go_and_are_started_again():
    busy = 10_000_000
    lines = recorded([ve(cpuUsed=busy), ve("b", cpuUsed=busy)], [ve(cpuUsed=busy)], [ve(cpuUsed=busy), ve("b", 2)],
                     [ve(pid=9, cpuUsed=busy // 2), ve("b", 2, cpuUsed=busy)], first=[ve()])
    found = read_recording(lines)
    a, b = found.ves["a"], found.ves["b"]
    assert [a.demand["cpus"].at(time, 0) for time in (0, 9, 10, 25, 35)] == [1000, 1000, 0, 0, 500]
    assert [b.demand["cpus"].at(time, 0) for time in (5, 15, 25, 35, 99)] == [1000, 0, 0, 1000, 1000]
    gone = read_recording(recorded([ve(), ve("b")], [ve()], [ve(), ve("c")]))
    assert (gone.ves["b"].start, gone.ves["b"].stop) == (0, 10)
    assert (gone.ves["c"].start, gone.ves["c"].stop) == (20, float("inf"))


def test_settings_are_told_once_and_when_they_change():
    lines = recorded([ve()], [ve()], [ve(settings={})], [], [ve(settings={})])
    assert [json.loads(line)["settings"] for line in lines[1:] if '"settings"' in line] == [
        {"cpu-guarantee": "0.5"}, {}, {}]
    assert read_recording(lines).ves["a"].settings.cpu_guarantee == 0


LOOK = st.dictionaries(st.sampled_from("abc"), st.tuples(st.integers(1, 2), st.integers(0, 10**9)), max_size=3)


@given(st.lists(LOOK, min_size=1, max_size=12))
def test_whatever_happens_is_read_back(looks):
    lines = recorded(*([ve(name, pid, cpuUsed=used) for name, (pid, used) in look.items()] for look in looks))
    found = read_recording(lines)
    assert found.seconds == pytest.approx(10 * len(looks))
    for number, sample in enumerate(json.loads(line)["ves"] for line in lines if '"at"' in line):
        for name in "abc":
            demand = found.ves[name].demand["cpus"].at(10 * number + 5, 0) if name in found.ves else 0
            if name in sample:
                assert demand == sample[name]["cpus"] >= 0
            elif name in found.ves and number and found.ves[name].start < 10 * number < found.ves[name].stop:
                assert demand == 0


def test_a_line_that_was_not_finished_is_left_out():
    lines = recorded([ve()], [ve(cpuUsed=1)])
    assert read_recording([*lines[:-1], lines[-1][:40]]).seconds == 10


@pytest.mark.parametrize("lines", [
    [], ["{}\n"], ["x\n"], ["[1]\n"], [HEAD], [HEAD.replace('"version":1', '"version":2'), '{"at":1,"ves":{}}\n'],
    [HEAD, '{"at":1,"ves":{"a":{}}}\n'], [HEAD, '{"at":0,"ves":{}}\n'], [HEAD, '{"at":"x","ves":{}}\n'],
    [HEAD, '{"at":1e999,"ves":{}}\n'], [HEAD, '{"ve":"../x","settings":{}}\n'], [HEAD, '{"ve":1,"settings":{}}\n'],
    [HEAD, '{"ve":"a","settings":{"cpus":"x"}}\n'], [HEAD, '{"at":2,"ves":{}}\n', '{"at":1,"ves":{}}\n'],
    [HEAD, '{"ve":"a","settings":{}}\n', '{"at":1,"ves":{"a":{"cpus":-1}}}\n'],
    [HEAD, '{"ve":"a","settings":{}}\n', '{"at":1,"ves":{"a":{"cpus":1.5}}}\n'],
    [HEAD, '{"ve":"a","settings":{}}\n', '{"at":1,"ves":{"a":7}}\n'], ["[" * 100_000 + "\n"],
    [head(10, 1, 1, "x").replace('"cpus":1', '"cpus":-1'), '{"at":1,"ves":{}}\n'],
])
def test_what_is_no_recording(lines):
    with pytest.raises(BadValue):
        read_recording(lines)


def test_a_recording_is_simulated():
    """Two VEs that want all of 4 CPUs each: the one with a guarantee has it, also as ten of its kind on three hosts."""
    looks = [[ve(cpuUsed=step * 40_000_000), ve("b", settings={}, cpuUsed=step * 40_000_000)] for step in range(1, 4)]
    lines = recorded(*looks, first=[ve(), ve("b")])
    found = Simulation(parse_scenario({"recording": "x"}, read_recording(lines))).run().as_dict()
    assert found["ticks"] == 3 and found["seconds"] == 30
    assert found["resources"][0]["unmet"] == 0 and found["resources"][0]["utilization"] == pytest.approx(1)
    kinds = {kind["kind"]: kind for kind in found["kinds"]}
    assert kinds["a"]["satisfied"]["cpus"] > kinds["b"]["satisfied"]["cpus"]
    document = {"recording": "x", "copies": 10, "host": {"count": 3}, "ticks": 5, "tick": 1,
                "ve": [{"name": "more", "demand": {"cpus": "1"}}]}
    found = Simulation(parse_scenario(document, read_recording(lines))).run().as_dict()
    assert [kind["started"] for kind in found["kinds"]] == [10, 10, 1] and found["hosts"] == 3


class Daemon:
    def __init__(self):
        self.looks = 0

    def call(self, method):
        if method == "GetCapacity":
            return {"policy": "balanced", "resources": [{"resource": "cpus", "total": 4000},
                                                        {"resource": "memory", "total": 1 << 30}]}
        assert method == "GetDemand"
        self.looks += 1
        if self.looks == 3:
            raise Unreachable("gone")
        if self.looks == 6:
            raise KeyboardInterrupt
        return {"ves": [ve(cpuUsed=self.looks * 1000)]}


@pytest.fixture
def daemon(monkeypatch):
    one = Daemon()
    monkeypatch.setattr(connection, "connect", lambda _path: one)
    now = [1000.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.append(now.pop() + seconds))
    monkeypatch.setattr(recording, "time", clock)
    return one


def test_what_was_recorded_until_ctrl_c_stays(daemon, tmp_path):
    file = tmp_path / "web.jsonl"
    done = CliRunner().invoke(cli, ["scheduler", "record", "--interval", "1", str(file)], catch_exceptions=False)
    assert (done.exit_code, done.stderr) == (0, f"3 samples in {file}\n")
    lines = file.read_text().splitlines()
    assert sum('"at"' in line for line in lines) == 3
    assert read_recording(f"{line}\n" for line in lines).ves["a"].demand
    assert CliRunner().invoke(cli, ["scheduler", "simulate", str(file)], catch_exceptions=False).exit_code == 0
    (tmp_path / "more.toml").write_text('recording = "web.jsonl"\ncopies = 3\n')
    done = CliRunner().invoke(cli, ["scheduler", "simulate", "--json", str(tmp_path / "more.toml")])
    assert json.loads(done.stdout)["kinds"][0]["started"] == 3
    again = CliRunner().invoke(cli, ["scheduler", "record", str(file)])
    assert isinstance(again.exception, BadValue) and len(file.read_text().splitlines()) == len(lines)
