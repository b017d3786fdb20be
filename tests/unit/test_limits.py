# SPDX-License-Identifier: GPL-2.0-or-later
"""Settings to cgroup files, on a cgroup that only remembers what is written."""

import asyncio
import errno

import pytest

from vemgr.core.config import DEFAULTS, SETTINGS, parse_settings
from vemgr.core.errors import BadValue, LimitNotReached, NotEnforceable, SystemFailure
from vemgr.core.scheduling import parse_scheduler
from vemgr.runtime import limits as module
from vemgr.runtime.limits import Disks, Limits
from vemgr.runtime.scheduling.placements import Placements

ALL = frozenset({"cpu", "cpuset", "memory", "pids", "io"})
MIB = 1 << 20


class Group:
    """`used`: bytes that cannot be reclaimed are in use. `broken`: an attribute whose write fails."""

    def __init__(self, used=0, fixed=0, broken=""):
        self.__dict__.update(written=[], used=used, fixed=fixed, broken=broken, memory_max=None, pids_max=None,
                             cpuset_cpus="", cpu_idle=0, cpuset_cpus_effective="0-3")

    def __setattr__(self, name, value):
        if name == self.broken:
            raise OSError(errno.EINVAL, "Invalid argument", name)
        self.written.append((name, value))
        self.__dict__[name] = value
        if name == "memory_reclaim":
            self.__dict__["used"] = max(self.fixed, self.used - value)
            if self.used == self.fixed:
                raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    @property
    def memory_current(self):
        return self.used

    def has(self, _name):
        return True


class Tree(dict):
    def __init__(self, controllers=ALL, **group):
        super().__init__(web1=Group(**group))
        self.controllers = controllers

    def usable_cpus(self):
        return "0-3"


@pytest.fixture(autouse=True)
def disk(monkeypatch):
    monkeypatch.setattr(Disks, "behind", staticmethod(lambda _directory: Disks(("254:0",), "io.bfq.weight")))


def apply(tree, texts, before=DEFAULTS):
    asyncio.run(Limits(tree, "/data").apply("web1", parse_settings(texts), before))
    return dict(tree["web1"].written)


@pytest.mark.parametrize(("texts", "written"), [
    ({}, {}), ({"cpus": "1.5"}, {"cpu_max": "150000 100000"}),
    ({"cpu-weight": "300"}, {"cpu_idle": 0, "cpu_weight": 300}), ({"cpu-weight": "idle"}, {"cpu_idle": 1}),
    ({"cpus": "0.5", "cpu-burst": "20ms"}, {"cpu_max_burst": 20000, "cpu_max": "50000 100000"}),
    ({"cpus": "0.1", "cpu-burst": "20ms"}, {"cpu_max_burst": 10000, "cpu_max": "10000 100000"}),
    ({"memory-guarantee": "5000"}, {"memory_low": 8192, "memory_min": 8192}), ({"cpu-guarantee": "1"}, {}),
    ({"cpu-mask": "0"}, {"cpuset_cpus": "0"}), ({"pids": "50"}, {"pids_max": 50}),
    ({"memory": "64M"}, {"memory_max": 64 * MIB, "memory_swap_max": 0}),
    ({"memory": "64M", "swap": "16M"}, {"memory_max": 64 * MIB, "memory_swap_max": 16 * MIB}),
    ({"io-weight": "200"}, {"io_bfq_weight": 200}),
    ({"io-write": "2M/s", "iops-read": "9"}, {"io_max": "254:0 rbps=max wbps=2097152 riops=9 wiops=max"}),
])
def test_what_is_written(texts, written):
    assert apply(Tree(), texts) == written


def test_a_burst_goes_before_the_quota_that_it_would_exceed():
    tree = Tree()
    apply(tree, {"cpus": "0.1"}, parse_settings({"cpus": "1", "cpu-burst": "50ms"}))
    assert tree["web1"].written == [("cpu_max_burst", 0), ("cpu_max", "10000 100000")]


def test_limits_are_lifted():
    before = parse_settings({"cpus": "1", "memory": "64M", "pids": "5", "io-read": "1M"})
    assert apply(Tree(), {}, before) == {
        "cpu_max": "max", "memory_max": None, "memory_swap_max": None, "pids_max": None,
        "io_max": "254:0 rbps=max wbps=max riops=max wiops=max"}


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s.controller], ids=lambda s: s.key)
def test_a_missing_controller_is_named(setting):
    texts = {"cpus": "1", "cpu-burst": "1ms", "cpu-mask": "0", "memory": "64M", "swap": "0", "pids": "5",
             "io-read": "1M", "io-write": "1M"}
    texts = {setting.key: texts.get(setting.key, "200")}
    texts |= {"swap": {"memory": "64M"}, "cpu-burst": {"cpus": "1"}}.get(setting.key, {})
    limits = Limits(Tree(ALL - {setting.controller}), "/data")
    with pytest.raises(NotEnforceable, match=f"no {setting.controller} controller") as refused:
        limits.check(parse_settings(texts))
    assert refused.value.exit_code == 5 and "systemd.unified_cgroup_hierarchy=1" in refused.value.remedy
    Limits(Tree(), "/data").check(parse_settings(texts))


def test_a_cpu_that_there_is_not():
    with pytest.raises(BadValue, match="no CPU"):
        Limits(Tree(), "/data").check(parse_settings({"cpu-mask": "0,8000"}))


def test_cpus_are_chosen_and_again_where_their_number_changes():
    tree, placements = Tree(), Placements({})
    tree.usable_cpus = lambda: "4-7"
    limits = Limits(tree, "/data", None, placements)

    def written(text, before="all"):
        settings, old = (parse_settings({"cpu-mask": each}) for each in (text, before))
        asyncio.run(limits.apply("web1", settings, old))
        return tree["web1"].cpuset_cpus

    assert written("auto:2") == "4-5" and written("auto:3", "auto:2") == "4-6"
    tree["web1"].__dict__["broken"] = "pids_max"
    with pytest.raises(SystemFailure):
        settings = parse_settings({"cpu-mask": "0", "pids": "5"})
        asyncio.run(limits.apply("web1", settings, parse_settings({"cpu-mask": "auto:3"})))
    assert tree["web1"].cpuset_cpus == "4-6", "as before"
    assert placements.of("web1").cpus == {4, 5, 6}, "what has not come into force is not remembered"
    with pytest.raises(SystemFailure):
        settings = parse_settings({"cpu-mask": "auto:1", "pids": "5"})
        asyncio.run(limits.apply("web1", settings, parse_settings({"cpu-mask": "auto:3"})))
    assert tree["web1"].cpuset_cpus == "4-6" and placements.of("web1").cpus == {4, 5, 6}
    with pytest.raises(BadValue, match="there are 4 CPUs for VEs"):
        limits.check(parse_settings({"cpu-mask": "auto:5"}))
    limits.check(parse_settings({"cpu-mask": "auto:4"}))
    limits.adopt("web1", parse_settings({"cpu-mask": "auto:3"}))
    assert limits.placements.of("web1").cpus == {4, 5, 6}


def test_a_kernel_without_the_idle_class(monkeypatch):
    monkeypatch.setattr(Group, "has", lambda _group, name: name != "cpu.idle")
    with pytest.raises(NotEnforceable, match=r"no cpu\.idle"):
        apply(Tree(), {"cpu-weight": "idle"})
    assert apply(Tree(), {"cpu-weight": "300"}) == {"cpu_weight": 300}


def test_disks_that_cannot_be_limited(monkeypatch):
    monkeypatch.setattr(Disks, "behind", staticmethod(lambda _directory: Disks((), "")))
    with pytest.raises(NotEnforceable, match="no disk stands behind"):
        Limits(Tree(), "/data").check(parse_settings({"io-read": "1M"}))
    monkeypatch.setattr(Disks, "behind", staticmethod(lambda _directory: Disks(("254:0",), "")))
    with pytest.raises(NotEnforceable, match="neither BFQ nor"):
        Limits(Tree(), "/data").check(parse_settings({"io-weight": "200"}))


@pytest.mark.parametrize("broken", ["cpu_max", "cpu_weight", "memory_max", "memory_swap_max", "pids_max", "io_max"])
def test_a_failed_write_puts_the_others_back(broken):
    before = parse_settings({"cpus": "2", "cpu-weight": "50", "memory": "128M", "pids": "99", "io-read": "5M"})
    tree = Tree(broken=broken)
    with pytest.raises(SystemFailure, match="a limit of VE web1 cannot be set"):
        apply(tree, {"cpus": "1", "cpu-weight": "60", "memory": "64M", "pids": "9", "io-read": "1M"}, before)
    left = dict(tree["web1"].written)
    expected = {"cpu_max": "200000 100000", "cpu_idle": 0, "cpu_weight": 50, "memory_max": 128 * MIB,
                "memory_swap_max": 0, "pids_max": 99, "io_max": "254:0 rbps=5242880 wbps=max riops=max wiops=max"}
    assert left == {name: value for name, value in expected.items() if name in left}


def test_memory_is_reclaimed_before_it_is_limited():
    tree = Tree(used=200 * MIB)
    apply(tree, {"memory": "64M"}, parse_settings({"memory": "256M"}))
    names = [name for name, _ in tree["web1"].written]
    assert names.count("memory_reclaim") >= 4 and names.index("memory_max") > names.index("memory_reclaim")
    assert tree["web1"].memory_max == 64 * MIB and tree["web1"].memory_high is None, "a standing high would freeze it"


def test_memory_that_cannot_be_reclaimed(monkeypatch):
    tree = Tree(used=200 * MIB, fixed=150 * MIB)
    with pytest.raises(LimitNotReached, match="150M is in use") as refused:
        apply(tree, {"memory": "64M"}, parse_settings({"memory": "256M"}))
    assert "the old limit stays in force" in str(refused.value)
    assert not [value for name, value in tree["web1"].written if name == "memory_max" and value == 64 * MIB]
    assert tree["web1"].memory_high is None


def test_what_is_in_force(monkeypatch):
    group = Tree()["web1"]
    group.__dict__.update(cpu_max="150000 100000", cpu_max_burst=500, cpu_weight=100,
                          cpuset_cpus="", memory_max=64 * MIB, memory_low=4096,
                          memory_swap_max=0, pids_max=None, io_bfq_weight="default 200",
                          io_max="254:0 rbps=max wbps=2097152 riops=9 wiops=max")
    tree = Tree()
    tree["web1"] = group
    assert Limits(tree, "/data").in_force("web1") == {
        "cpus": "1.5", "cpu-burst": "500us",
        "cpu-weight": "100", "cpu-mask": "all", "memory-guarantee": "4K", "memory": "64M", "swap": "0",
        "pids": "unlimited",
        "io-weight": "200", "io-read": "unlimited", "io-write": "2M/s", "iops-read": "9", "iops-write": "unlimited"}
    assert set(module._READERS) < {setting.key for setting in SETTINGS}


@pytest.mark.parametrize(("policy", "texts", "written"), [
    ("guaranteed", {"memory": "64M"}, (64, 64)), ("guaranteed", {"memory": "64M", "memory-guarantee": "16M"}, (16, 16)),
    ("balanced", {"memory": "64M", "memory-guarantee": "16M"}, (16, 16)),
    ("dense", {"memory-guarantee": "96M"}, (96, 64)),
])
def test_what_a_policy_protects(policy, texts, written):
    tree = Tree()
    limits = Limits(tree, "/data", parse_scheduler({"policy": policy}))
    asyncio.run(limits.apply("web1", parse_settings(texts)))
    found = dict(tree["web1"].written)
    assert (found["memory_low"] // MIB, found["memory_min"] // MIB) == written
    asyncio.run(limits.apply("web1", DEFAULTS, parse_settings(texts)))
    found = dict(tree["web1"].written)
    assert (found["memory_low"], found["memory_min"]) == (0, 0)


def test_weights_of_ves_that_are_gone():
    class Gone:
        def __setattr__(self, _name, _value):
            raise OSError(errno.ENODEV, "No such device")

    tree = Tree()
    tree["gone"] = Gone()
    assert Limits(tree, "/data").write_cpu_weights({"gone": 5, "web1": 7}) == ["web1"]
    assert tree["web1"].written == [("cpu_weight", 7)]
    tree = Tree(broken="cpu_weight")
    with pytest.raises(OSError, match="Invalid"):
        Limits(tree, "/data").write_cpu_weights({"web1": 7})


def test_a_ve_that_somebody_has_made_idle_does_not_cost_the_others_their_weights():
    """The kernel refuses an idle cgroup a weight."""
    tree = Tree()
    tree["idle"] = Group(broken="cpu_weight")
    tree["idle"].__dict__["cpu_idle"] = 1
    assert Limits(tree, "/data").write_cpu_weights({"idle": 5, "web1": 7}) == ["web1"]
    assert tree["web1"].written == [("cpu_weight", 7)]
