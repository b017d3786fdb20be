# SPDX-License-Identifier: GPL-2.0-or-later
"""What the scheduler tells: capacity, what fits, and why a VE's files are as they are."""

import asyncio
from types import SimpleNamespace

import pytest

from vemgr.core.config import Definition, parse_settings
from vemgr.core.errors import BadValue, Overcommitted
from vemgr.core.lifecycle import State
from vemgr.core.scheduling import parse_scheduler
from vemgr.kernel import topology
from vemgr.kernel.cgroups import VECgroup
from vemgr.kernel.usage import cpu_ticks, memory_used
from vemgr.runtime.instances import Instance
from vemgr.runtime.journal import Journal
from vemgr.runtime.limits import Disks
from vemgr.runtime.scheduling import accounting
from vemgr.runtime.scheduling.accounting import Accounting
from vemgr.runtime.scheduling.placements import Placements
from vemgr.runtime.scheduling.preview import preview
from vemgr.runtime.scheduling.promises import Promises, host_resources
from vemgr.scheduler.explain import knobs_of
from vemgr.scheduler.shares import cpu_shares

GIB = 1 << 30
FILES = {"cpu.stat": "usage_usec 5000\nuser_usec 1\n", "memory.current": f"{3 << 20}\n", "cpu.weight": "100\n",
         "cpu.idle": "0\n", "cpu.max": "150000 100000\n", "memory.min": "0\n", "memory.low": "0\n",
         "memory.max": f"{GIB}\n", "memory.high": "max\n", "memory.swap.max": "0\n", "pids.max": "max\n"}


class Tree:
    """Cgroups as directories of plain files."""

    def __init__(self, base):
        self.base = str(base)

    def path(self, ve):
        return f"{self.base}/{ve}"

    def __getitem__(self, ve):
        return VECgroup(SimpleNamespace(full_path=f"{self.base}/{ve}".encode()))


@pytest.fixture
def host(tmp_path, monkeypatch):
    monkeypatch.setattr(accounting, "_LOOK", 0.01)
    promises = Promises(parse_scheduler({"reserve-cpus": "0%/0/0", "reserve-memory": "0%/1G/1G"}), 4000, 9 * GIB)
    uplink = SimpleNamespace(look=lambda: None, sent=lambda: 0)
    return SimpleNamespace(promises=promises, tree=Tree(tmp_path), base=tmp_path, journal=Journal(),
                           networking=SimpleNamespace(uplink=uplink))


def instance(host, name, running=True, files=FILES, **texts):
    settings = parse_settings({key.replace("_", "-"): text for key, text in texts.items()})
    found = Instance(Definition(name, "bb", 0, "", settings))
    if running:
        found.state, found.in_force = State.RUNNING, settings
        host.promises.adopt(name, settings)
        (host.base / name).mkdir()
        for file, text in files.items():
            (host.base / name / file).write_text(text)
    return found


def explain(host, found):
    return asyncio.run(Accounting(host).explain(found))


def test_capacity(host):
    instance(host, "web1", cpu_guarantee="1", memory_guarantee="1G")
    instance(host, "web2", cpu_guarantee="1.5")
    cpus, memory = asyncio.run(Accounting(host).capacity())["resources"]
    assert 0 <= cpus.pop("used") <= 4000 and 0 < memory.pop("used") < host_resources()[1]
    assert cpus == {"resource": "cpus", "total": 4000, "reserve": 0, "overcommit": 1.0, "promisable": 4000,
                    "promised": 2500, "free": 1500,
                    "holders": [{"ve": "web2", "amount": 1500}, {"ve": "web1", "amount": 1000}]}
    assert (memory["total"], memory["reserve"], memory["free"]) == (9 * GIB, GIB, 7 * GIB)
    assert memory["holders"] == [{"ve": "web1", "amount": GIB}]


@pytest.mark.parametrize(("cpus", "memory", "answer"), [
    ("1", "", (False, 3, "cpus")), ("1", "3G", (False, 2, "memory")), ("0.1", "8G", (False, 1, "memory")),
    ("", "9G", (False, 0, "memory")), ("", "", (True, 0, "")), ("0", "", (True, 0, "")),
])
def test_what_still_fits_and_that_it_does(host, cpus, memory, answer):
    instance(host, "web1", cpu_guarantee="0.5")
    found = Accounting(host).fitting(cpus, memory, "")
    assert (found["unlimited"], found["count"], found["scarce"]) == answer
    if not found["unlimited"]:
        settings = parse_settings({"cpu-guarantee": cpus or "0", "memory-guarantee": memory or "0"})
        for number in range(found["count"]):
            with host.promises.admitted(f"more{number}", settings):
                pass
        assert Accounting(host).fitting(cpus, memory, "")["count"] == 0


def test_nonsense_does_not_fit(host):
    for cpus, memory in (("x", ""), ("", "unlimited"), ("-1", "1G")):
        with pytest.raises(BadValue, match="guarantee"):
            Accounting(host).fitting(cpus, memory, "")


def test_a_ve_is_explained(host):
    found = explain(host, instance(host, "web1", cpus="1.5", memory="1G"))
    assert (found["name"], found["state"], found["policy"]) == ("web1", "running", "balanced")
    cpus, memory = found["shares"]
    assert cpus == {"resource": "cpus", "guarantee": "0", "limit": "1.5", "weight": 100, "entitled": "1.5",
                    "used": "0.000"}
    assert memory == {"resource": "memory", "guarantee": "0", "limit": "1G", "weight": 0, "entitled": "1024M",
                      "used": "3M"}
    assert all(knob["value"] == knob["wanted"] for knob in found["knobs"])
    assert [knob["file"] for knob in found["knobs"]] == [*FILES][2:]


def test_memory_that_is_not_idle(host):
    stat = f"inactive_anon {1 << 30}\ninactive_file {1 << 20}\nworkingset_refault_file 0\n"
    found = explain(host, instance(host, "web1", files={**FILES, "memory.stat": stat}))
    assert found["workingSet"] in (2 << 20, 0), "anonymous memory is idle only as far as there is swap for it"
    assert explain(host, instance(host, "bare", files={}))["workingSet"] is None


def test_disks_and_cpus_that_were_given_are_explained(host):
    host.limits = SimpleNamespace(disks=lambda: Disks(("8:0", "8:16"), "io.bfq.weight"), placements=Placements({}))
    line = "rbps=max wbps=1048576 riops=max wiops=max"
    files = {**FILES, "io.max": f"8:16 {line}\n259:0 rbps=1 wbps=max riops=max wiops=max\n8:0 {line}\n",
             "io.bfq.weight": "default 50\n", "cpuset.cpus": "0-1\n"}
    ve = instance(host, "web1", files=files, memory="1G", cpus="1.5", io_write="1M", io_weight="50", cpu_mask="0,1")
    found = explain(host, ve)
    assert all(knob["value"] == knob["wanted"] for knob in found["knobs"])
    assert [knob["file"] for knob in found["knobs"]][-3:] == ["cpuset.cpus", "io.max", "io.bfq.weight"]
    (host.base / "web1/io.max").write_text(f"8:0 {line}\n")
    (host.base / "web1/io.bfq.weight").write_text("default 60\n")
    found = explain(host, ve)
    assert [knob["file"] for knob in found["knobs"] if knob["value"] != knob["wanted"]] == ["io.max", "io.bfq.weight"]


def test_cpus_that_were_chosen_are_explained_and_those_that_would_be(host, monkeypatch):
    monkeypatch.setattr(topology, "places", lambda cpus: {cpu: (0, cpu) for cpu in cpus})
    placements = Placements(host.promises.running)
    host.limits = SimpleNamespace(disks=lambda: Disks((), ""), placements=placements, usable_cpus=lambda: {0, 1, 2})

    def mask(found):
        return next((knob["wanted"], knob["reason"]) for knob in explain(host, found)["knobs"]
                    if knob["file"] == "cpuset.cpus")

    ve = instance(host, "web1", files={**FILES, "cpuset.cpus": "1-2\n"}, cpu_mask="auto:2")
    assert mask(ve) == ("0-1", "2 CPUs on 2 cores; nothing was pinned to them"), "what it has is not known"
    placements.adopt("web1", "1-2")
    assert mask(ve) == ("1-2", "chosen before this daemon came")
    assert mask(instance(host, "later", running=False, cpu_mask="auto:1"))[0] == "0"
    del host.promises.running["web1"]
    assert mask(ve)[0] == "0-1", "it has stopped: where it was counts no more"


@pytest.fixture
def previewed(host):
    host.limits = SimpleNamespace(disks=lambda: Disks(("8:0",), ""), check=lambda _settings: None,
                                  placements=Placements({}), usable_cpus=lambda: {0, 1})
    host.disks = SimpleNamespace(live=lambda _name, _settings: set())

    def do(ve, **texts):
        given = {key.replace("_", "-"): text for key, text in texts.items()}
        return preview(host, ve, parse_settings(given, ve.definition.settings))
    return do


def test_what_a_change_would_do(host, previewed):
    one = instance(host, "one", cpus="1")
    instance(host, "two")
    found = previewed(one, cpus="2", io_write="1M", hostname="x")
    assert {change["file"]: (change["old"], change["new"]) for change in found["changes"]} == {
        "cpu.max": ("100000 100000", "200000 100000"),
        "io.max": ("8:0 rbps=max wbps=max riops=max wiops=max", "8:0 rbps=max wbps=1048576 riops=max wiops=max")}
    assert found["others"] == [] and found["pending"] == ["hostname"]
    found = previewed(one, cpu_guarantee="1")
    assert [change["of"] for change in found["others"]] == ["two"], "weights are relative"
    assert "guarantee 1 + " in next(each["reason"] for each in found["changes"] if each["file"] == "cpu.weight")
    assert host.promises.running["one"].cpu_guarantee == 0 and not host.promises.ledger.held
    with pytest.raises(Overcommitted):
        previewed(one, cpus="unlimited", cpu_guarantee="5")


def test_a_change_of_the_class_is_told(host, previewed):
    changes = previewed(instance(host, "one", cpu_weight="idle"), cpu_weight="50")["changes"]
    assert {change["file"]: change["new"] for change in changes} == {"cpu.idle": "0", "cpu.weight": "50"}


def test_what_a_change_would_do_to_a_ve_that_does_not_run(host, previewed):
    instance(host, "two")
    found = previewed(instance(host, "later", running=False), cpu_guarantee="2", hostname="x")
    assert found["others"] == found["pending"] == [] and found["changes"]
    assert "later" not in host.promises.running


def test_what_is_not_as_it_should_be_is_seen(host):
    found = explain(host, instance(host, "web1", files={**FILES, "memory.max": "max\n", "cpu.weight": "90\n"},
                                   cpus="1.5", memory="1G"))
    differing = {knob["file"]: (knob["value"], knob["wanted"]) for knob in found["knobs"]
                 if knob["value"] != knob["wanted"]}
    assert differing == {"memory.max": ("max", str(GIB)), "cpu.weight": ("90", "100")}


def test_a_ve_without_controllers_or_not_running(host):
    bare = explain(host, instance(host, "bare", files={}))
    assert {knob["value"] for knob in bare["knobs"]} == {""} and bare["shares"][0]["used"] == ""
    stopped = explain(host, instance(host, "later", running=False, cpu_guarantee="1"))
    assert stopped["state"] == "stopped" and {knob["value"] for knob in stopped["knobs"]} == {""}
    # 3 CPUs are left when the guarantee has been given, and two have equal parts of it.
    assert stopped["shares"][0]["entitled"] == "2.5"
    assert "later" not in host.promises.running


@pytest.mark.parametrize(("config", "texts", "reasons"), [
    ({}, {}, {"cpu.weight": "as given", "cpu.max": "no limit", "memory.min": "no guarantee", "memory.max": "no limit",
              "memory.swap.max": "neither"}),
    ({}, {"cpu-guarantee": "1"}, {"cpu.weight": "guarantee 1 + 0.030000 CPUs for each unit of weight x 100"}),
    ({}, {"memory": "64M"}, {"memory.swap.max": "swap was not given: none", "memory.max": "limit of 64M"}),
    ({}, {"memory": "64M", "swap": "16M"}, {"memory.swap.max": "swap is 16M"}),
    ({"policy": "guaranteed"}, {"memory": "64M"}, {"memory.min": "limit of 64M, which policy 'guaranteed' guarantees"}),
    ({"policy": "dense"}, {"memory-guarantee": "96M"}, {
        "memory.min": "guarantee of 96M, divided by the overcommit of 1.5", "memory.low": "guarantee of 96M"}),
])
def test_reasons(config, texts, reasons):
    scheduler, settings = parse_scheduler(config), parse_settings(texts)
    found = {knob.file: knob.reason for knob in knobs_of(
        "web1", settings, cpu_shares(4000, {"web1": settings}, scheduler.policy), scheduler, 4096)}
    for file, words in reasons.items():
        assert words in found[file]


def test_the_host_as_the_kernel_tells():
    busy, ticks = cpu_ticks()
    assert 0 < busy <= ticks
    assert 0 < memory_used() < host_resources()[1]
