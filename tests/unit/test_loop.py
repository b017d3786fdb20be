# SPDX-License-Identifier: GPL-2.0-or-later
"""The control loop on cgroups of plain files: what it notices, puts right, and leaves alone."""

import asyncio
import errno
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from vemgr.core.config import MIB, Definition, parse_settings
from vemgr.core.errors import BadValue, Overcommitted
from vemgr.core.host import HostConfig
from vemgr.core.lifecycle import State
from vemgr.core.scheduling import parse_scheduler
from vemgr.kernel import topology
from vemgr.kernel.inotify import Inotify
from vemgr.runtime.instances import Instance
from vemgr.runtime.journal import Journal
from vemgr.runtime.limits import Disks, Limits
from vemgr.runtime.scheduling import policy as policy_module
from vemgr.runtime.scheduling import readings
from vemgr.runtime.scheduling.balancer import Balancer
from vemgr.runtime.scheduling.loop import ControlLoop
from vemgr.runtime.scheduling.placements import Placements
from vemgr.runtime.scheduling.policy import PolicySwitch
from vemgr.runtime.scheduling.promises import Promises
from vemgr.scheduler.admission import Promise

GIB = 1 << 30
FILES = {"cpu.weight": "100", "cpu.max": "max 100000", "memory.min": "0", "memory.low": "0", "memory.max": "max",
         "memory.high": "max", "memory.swap.max": "max", "pids.max": "max", "cpuset.cpus": "",
         "memory.current": str(400 * MIB), "memory.swap.current": "0", "memory.reclaim": "",
         "memory.stat": f"anon 5\ninactive_anon 0\ninactive_file {400 * MIB}\nworkingset_refault_file 0",
         "memory.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 total=0"}


class Tree:
    """Cgroups that only remember. What is written replaces the file, as in a cgroup and unlike in other files."""

    controllers = frozenset({"cpu", "memory", "pids", "cpuset"})

    def __init__(self, base):
        self.base = str(base)

    def __getitem__(self, ve):
        return Group(f"{self.base}/{ve}")

    def path(self, ve):
        return f"{self.base}/{ve}"

    def groups(self):
        return []

    def weakened(self):
        return ""

    def protect(self, _certain, _promised):
        pass


class Group:
    def __init__(self, path):
        self.__dict__["path"] = path

    def __getattr__(self, name):
        text = Path(self.path, name.replace("_", ".")).read_text().strip()
        return int(text) if text.isdigit() else text

    def __setattr__(self, name, value):
        if name == "cpu_weight" and Path(self.path, "cpu.idle").exists() and self.cpu_idle:
            raise OSError(errno.EINVAL, "Invalid argument")
        Path(self.path, name.replace("_", ".")).write_text("max" if value is None else str(value))

    def has(self, _file):
        return True


class Host:
    def __init__(self, base, **scheduler):
        self.base = base / "ve"
        self.base.mkdir()
        scheduler = parse_scheduler({"reserve-cpus": "0%/0/0", "reserve-memory": "0%/1G/1G", **scheduler})
        self.tree = Tree(self.base)
        self.limits = Limits(self.tree, "/", scheduler)
        self.promises = Promises(scheduler, 4000, 9 * GIB)
        self.config = HostConfig(run_dir=str(base), scheduler=scheduler)
        self.journal = Journal()
        self.instances = []
        for resource in ("cpu", "memory"):
            (self.base / f"{resource}.pressure").write_text(FILES["memory.pressure"])
        self.tasks = []
        balancer = Balancer(self, lambda work: self.tasks.append(asyncio.ensure_future(work)))
        self.loop = ControlLoop(self, self.instances, balancer)
        self.switch = PolicySwitch(self, self.instances)

    def start(self, name, files=FILES, **texts):
        settings = parse_settings({key.replace("_", "-"): text for key, text in texts.items()})
        instance = Instance(Definition(name, "bb", 0, "", settings))
        instance.state, instance.in_force, instance.pid = State.RUNNING, settings, len(self.instances) + 1
        self.instances.append(instance)
        self.promises.running[name] = settings
        (self.base / name).mkdir()
        for file, text in files.items():
            self.write(name, file, text)
        return instance

    def read(self, ve, file):
        return (self.base / ve / file).read_text()

    def write(self, ve, file, text):
        (self.base / ve / file).write_text(text)

    def tick(self, times=1):
        async def run():
            for _ in range(times):
                await self.loop.tick()

        asyncio.run(asyncio.wait_for(run(), 20))

    def events(self):
        return [(event.kind, event.ve, event.detail) for event in self.journal._ring.after(0)]


@pytest.fixture
def host(tmp_path, monkeypatch):
    monkeypatch.setattr(readings, "available", lambda: 8 * GIB)
    return Host(tmp_path)


def test_all_is_as_it_should_be(host):
    host.start("a")
    host.tick(2)
    assert host.events() == []


@pytest.mark.parametrize(("file", "found", "wanted", "texts"), [
    ("io.max", "8:0 rbps=max wbps=5 riops=max wiops=max", "8:0 rbps=max wbps=max riops=max wiops=max", {}),
    ("io.max", "", "8:0 rbps=max wbps=1048576 riops=max wiops=max", {"io_write": "1M"}),
    ("io.bfq.weight", "default 7", "500", {"io_weight": "500"}), ("cpuset.cpus", "0", "0,1", {"cpu_mask": "0,1"}),
])
def test_what_others_have_done_to_disks_and_cpus_is_put_right(host, monkeypatch, file, found, wanted, texts):
    """Limits of a disk that is not ours stay as they are."""
    monkeypatch.setattr(Disks, "behind", lambda _data: Disks(("8:0",), "io.bfq.weight"))
    host.tree.controllers |= {"io"}
    weight, other = texts.get("io_weight", "100"), "259:0 rbps=9 wbps=max riops=max wiops=max"
    line = f"8:0 rbps=max wbps={'1048576' if 'io_write' in texts else 'max'} riops=max wiops=max"
    host.start("a", {**FILES, "io.max": f"{other}\n{line}", "io.bfq.weight": f"default {weight}",
                     "cpuset.cpus": "0-1" if "cpu_mask" in texts else ""}, **texts)
    host.tick()
    assert host.events() == []
    host.write("a", file, found)
    host.tick()
    assert host.read("a", file.replace("bfq_", "bfq.")) == wanted
    (event,) = host.events()
    assert event[:2] == ("restored", "a") and event[2].startswith(f"{file} was {found or 'empty'}, not ")


@pytest.mark.parametrize(("file", "found", "wanted", "texts"), [
    ("cpu.max", "max 100000", "50000 100000", {"cpus": "0.5"}), ("cpu.max", "1000 100000", "max", {}),
    ("cpu.weight", "7", "100", {}), ("pids.max", "5", "max", {}), ("memory.high", "4096", "max", {}),
    ("memory.max", "max", str(500 * MIB), {"memory": "500M", "swap": "unlimited"}),
])
def test_what_others_have_written_is_told_and_put_right(host, file, found, wanted, texts):
    host.start("a", **texts)
    for name, text in (("cpu.max", "50000 100000" if "cpus" in texts else "max 100000"),
                       ("memory.max", str(500 * MIB) if "memory" in texts else "max"), (file, found)):
        host.write("a", name, text)
    host.tick()
    assert host.read("a", file) == wanted
    (event,) = host.events()
    assert event[:2] == ("restored", "a") and event[2].startswith(f"{file} was {found}, not {wanted}")
    assert event[2].endswith("put right")


@pytest.mark.parametrize(("weight", "found", "wanted"), [("idle", "0", "1"), ("200", "1", "0")])
def test_a_ve_that_others_have_made_idle_or_not(host, weight, found, wanted):
    """A weight stays as it is while the VE is idle: the kernel would refuse it."""
    files = {**FILES, "cpu.idle": found, "cpu.weight": "0" if found == "1" else "200"}
    host.start("a", files, cpu_weight=weight)
    host.tick()
    assert host.read("a", "cpu.idle") == wanted
    assert host.read("a", "cpu.weight") == "200"
    told = {"cpu.idle"} if weight == "idle" else {"cpu.idle", "cpu.weight"}
    assert {event[2].split()[0] for event in host.events()} == told


def test_a_ve_that_others_have_made_idle_gets_the_weight_that_guarantees_give_it(host):
    """And until then it does not keep the others from theirs."""
    for name, texts in (("a", {}), ("b", {}), ("good", {"cpu_guarantee": "1"})):
        host.start(name, {**FILES, "cpu.idle": "0"}, **texts)
    host.write("a", "cpu.idle", "1")
    host.write("a", "cpu.weight", "0")

    async def story():
        for instance in host.instances:
            host.promises.adopt(instance.name, instance.in_force)
        await asyncio.gather(*host.tasks)
        assert host.read("a", "cpu.weight") == "0" and host.read("b", "cpu.weight") not in ("0", "100")
        assert host.read("good", "cpu.weight") == "10000"
        await host.loop.tick()
        await asyncio.gather(*host.tasks)

    asyncio.run(asyncio.wait_for(story(), 20))
    assert host.read("a", "cpu.idle") == "0" and host.read("a", "cpu.weight") == host.read("b", "cpu.weight")


def test_a_ve_moves_to_other_cpus_when_what_was_pinned_there_has_gone(host, monkeypatch):
    monkeypatch.setattr(topology, "places", lambda cpus: {cpu: (0, cpu) for cpu in cpus})
    host.tree.usable_cpus = lambda: "0-1"
    host.limits.placements = Placements(host.promises.running)
    for name in ("a", "b"):
        host.start(name, {**FILES, "cpuset.cpus": "0"}, cpu_mask="auto:1")
        host.limits.placements.adopt(name, "0")
    host.tick()
    assert (host.read("a", "cpuset.cpus"), host.read("b", "cpuset.cpus")) == ("0", "1")
    assert host.events() == [("moved", "b", "to CPUs 1: 1 CPU on 1 core; nothing was pinned to them")]
    host.tick()
    assert len(host.events()) == 1


def test_a_ve_that_a_verb_is_at_work_on_is_left_alone(host):
    instance = host.start("a")
    host.write("a", "cpu.weight", "7")

    async def during_a_verb():
        async with instance.lock:
            await host.loop.tick()

    asyncio.run(during_a_verb())
    assert host.read("a", "cpu.weight") == "7" and host.events() == []


def test_a_ve_that_has_gone_is_not_acted_on(host):
    host.start("a")
    for file in FILES:
        (host.base / "a" / file).unlink()
    (host.base / "a").rmdir()
    host.tick(2)
    assert host.events() == []


def test_each_ve_is_looked_at_once_and_then_when_it_is_written_to(host):
    many = [host.start(f"ve{number}", files={"cpu.weight": "100"}) for number in range(300)]
    looked = []
    host.loop._inspection._differing = lambda name, _wanted: looked.append(name) or {}
    host.tick(6)
    assert {*looked} == {instance.name for instance in many}
    looked.clear()
    host.write("ve77", "cpu.weight", "7")
    host.tick()
    assert "ve77" in looked and len(looked) <= 5
    looked.clear()
    host.tick(75)
    assert {*looked} == {instance.name for instance in many} and len(looked) <= 320  # in turn, for what is not written


def test_all_are_looked_at_when_a_disk_gets_another_scheduler(host, monkeypatch):
    host.tree.controllers |= {"io"}
    monkeypatch.setattr(Disks, "behind", lambda _data: Disks(("8:0",), ""))
    line = "8:0 rbps=max wbps=max riops=max wiops=max"
    for number in range(100):
        host.start(f"ve{number}", {**FILES, "io.max": line, "io.bfq.weight": "default 100"}, io_weight="500")
    host.tick(3)
    assert host.events() == []
    monkeypatch.setattr(Disks, "behind", lambda _data: Disks(("8:0",), "io.bfq.weight"))
    host.tick(2)
    assert {host.read(f"ve{number}", "io.bfq.weight") for number in range(100)} == {"500"}


@pytest.mark.parametrize(("file", "at_work"), [("pids.max", "verb"), ("cpu.weight", "balancer")])
def test_what_cannot_be_said_yet_is_looked_at_again(host, monkeypatch, file, at_work):
    """A verb that begins between the two looks of a tick, and a start elsewhere that moves all weights."""
    async def story():
        many = [host.start(f"ve{number}") for number in range(40)]
        for _ in range(12):
            await host.loop.tick()
        host.write("ve30", file, "7")
        host.loop._inspection._next = 0
        if at_work == "verb":
            monkeypatch.setattr(host.loop, "_look_at_memory", lambda _running, _now: [SimpleNamespace(ve="ve0")])
            monkeypatch.setattr(host.loop, "_reclaim", lambda _take: many[30].lock.acquire())
        else:
            monkeypatch.setattr(host.loop._inspection._balancer, "_awake", True)
        await host.loop.tick()
        monkeypatch.undo()
        if at_work == "verb":
            many[30].lock.release()
        assert host.events() == []
        await host.loop.tick()

    monkeypatch.setattr(readings, "available", lambda: 8 * GIB)
    asyncio.run(asyncio.wait_for(story(), 20))
    assert host.read("ve30", file) == FILES[file]


def test_what_is_written_while_a_verb_is_at_work_is_looked_at_after_it(host):
    async def story():
        many = [host.start(f"ve{number}") for number in range(100)]
        for _ in range(3):
            await host.loop.tick()
        async with many[50].lock:
            host.write("ve50", "cpu.weight", "7")
            await host.loop.tick()
        assert host.read("ve50", "cpu.weight") == "7"
        await host.loop.tick()
        assert host.read("ve50", "cpu.weight") == "100"

    asyncio.run(asyncio.wait_for(story(), 20))


def test_without_watches_each_ve_has_its_turn(host, monkeypatch, caplog):
    """As where inotify's watches have been used up."""
    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Inotify, "add", full)
    for number in range(500):
        host.start(f"ve{number}", files={"cpu.weight": "7"})
    host.tick(6)
    assert {event[1] for event in host.events()} == {f"ve{number}" for number in range(500)}
    assert caplog.text.count("are noticed late") == 1


def test_a_ve_that_began_again_is_watched_anew(host):
    instances = [host.start(f"ve{number}") for number in range(50)]
    host.tick(2)
    shutil.rmtree(host.base / "ve30")
    instances[30].pid = 1030
    (host.base / "ve30").mkdir()
    for file, text in FILES.items():
        host.write("ve30", file, text)
    host.tick()
    host.write("ve30", "pids.max", "5")
    host.tick()
    assert host.read("ve30", "pids.max") == "max"
    instances.clear()
    host.instances.clear()
    host.tick()
    assert not host.loop._inspection._writes._watches and not host.loop._inspection._writes._ves


def test_idle_memory_is_reclaimed_while_the_host_is_short(host, monkeypatch):
    host.start("a")
    host.start("kept", memory_guarantee="400M")
    for file in ("memory.min", "memory.low"):
        host.write("kept", file, str(400 * MIB))
    host.promises.ledger.hold("kept", Promise(memory=400 * MIB))
    monkeypatch.setattr(readings, "available", lambda: GIB // 2)
    host.loop._inspection.due = lambda _running: []
    host.tick()
    assert host.read("a", "memory.reclaim") == str(100 * MIB) and host.read("kept", "memory.reclaim") == ""
    assert host.events() == [("reclaimed", "a", "0M of 100M: 400M idle above its guarantee; the host has 512M left")]


def test_a_policy_is_switched_and_kept(host):
    instance = host.start("a", memory="1G")
    host.write("a", "memory.max", str(GIB))
    assert host.promises.ledger.promised("memory") == 0
    asyncio.run(host.switch.switch("guaranteed"))
    assert host.promises.ledger.promised("memory") == GIB and host.read("a", "memory.min") == str(GIB)
    assert host.switch.show() == {"policy": "guaranteed", "configured": "balanced"}
    assert policy_module.in_force(host.config).policy == "guaranteed"
    asyncio.run(host.switch.switch("balanced"))
    assert host.read("a", "memory.min") == "0" and policy_module.in_force(host.config) is host.config.scheduler
    assert [event[2] for event in host.events()] == ["guaranteed, was balanced", "balanced, was guaranteed"]
    with pytest.raises(BadValue):
        asyncio.run(host.switch.switch("generous"))
    assert instance.running


def test_a_policy_that_cannot_be_kept_is_refused(host):
    for name in "ab":
        host.start(name, memory="5G")
    with pytest.raises(Overcommitted):
        asyncio.run(host.switch.switch("guaranteed"))
    assert host.promises.config.policy == "balanced" and host.promises.ledger.promised("memory") == 0
    assert host.events() == []


def test_what_is_in_the_file_of_the_policy_may_be_anything(host):
    (host.base.parent / "policy").write_bytes(b"\xff\n")
    assert policy_module.in_force(host.config) is host.config.scheduler
