# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs on groups, on cgroups that are directories of plain files."""

import asyncio
import os
from pathlib import Path

import pytest

from vemgr.core.config import Definition, parse_settings
from vemgr.core.errors import GroupExists, GroupInUse, NoSuchGroup, NotEnforceable, Overcommitted, SystemFailure
from vemgr.core.host import HostConfig
from vemgr.core.lifecycle import State
from vemgr.core.scheduling import parse_scheduler
from vemgr.kernel import cgroups
from vemgr.kernel.cgroups import CgroupTree
from vemgr.runtime.instances import Instances
from vemgr.runtime.journal import Journal
from vemgr.runtime.limits import Limits
from vemgr.runtime.scheduling import balancer as balancing
from vemgr.runtime.scheduling import groups as module
from vemgr.runtime.scheduling.balancer import Balancer
from vemgr.runtime.scheduling.groups import Groups
from vemgr.runtime.scheduling.inspection import Inspection
from vemgr.runtime.scheduling.promises import Promises

GIB = 1 << 30
FILES = {"cpu.weight": "100", "cpu.idle": "0", "cpu.max": "max 100000", "memory.min": "0", "memory.low": "0",
         "memory.max": "max", "memory.high": "max", "memory.swap.max": "max", "pids.max": "max", "memory.current": "0"}


class Tree(CgroupTree):
    """A new cgroup has its files, as the kernel sees to it."""

    def make_group(self, group, above):
        new = super().make_group(group, above)
        if new:
            fill(self.path(group))
        return new


def fill(path):
    for file, text in FILES.items():
        Path(path, file).write_text(text)


class Host:
    def __init__(self, base):
        (base / "ve").mkdir()
        fill(base / "ve")
        (base / "ve/cgroup.subtree_control").write_text("cpu memory pids")
        scheduler = parse_scheduler({"reserve-cpus": "0%/0/0", "reserve-memory": "0%/0/0"})
        self.tree, self.journal = Tree(str(base)), Journal()
        self.config = HostConfig(state_dir=str(base / "state"))
        self.limits, self.promises = Limits(self.tree, "/", scheduler), Promises(scheduler, 4000, 8 * GIB)
        self.tasks, self.instances = [], Instances()
        self.balancer = Balancer(self, lambda work: self.tasks.append(asyncio.ensure_future(work)))
        self.groups = Groups(self, self.instances)

    async def start(self, name, group, **texts):
        settings = parse_settings({"group": group, **{key.replace("_", "-"): text for key, text in texts.items()}})
        instance = self.instances.admit(Definition(name, "bb", 0, "", settings))
        with self.promises.admitted(name, settings):
            await self.groups.prepare(name, group)
            Path(self.tree.path(name)).mkdir()
            fill(self.tree.path(name))
        instance.state, instance.in_force = State.RUNNING, settings

    def stop(self, name):
        for file in Path(self.tree.path(name)).iterdir():
            file.unlink()
        Path(self.tree.path(name)).rmdir()
        self.instances.get(name).state = State.STOPPED
        self.promises.release(name)

    def read(self, name, file):
        return Path(self.tree.path(name), file).read_text()

    async def rest(self):
        while self.tasks:
            await self.tasks.pop()


@pytest.fixture
def host(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "protection_recurses", lambda: True)
    # As the kernel takes it: what is written replaces what was there.
    monkeypatch.setattr(cgroups, "_command", lambda path, text: Path(path).write_text(text) if Path(path).exists()
                        else os.open(path, os.O_WRONLY))
    monkeypatch.setattr(balancing, "_DELAY", 0.001)
    return Host(tmp_path)


def run(work):
    return asyncio.run(asyncio.wait_for(work, 20))


def test_a_group_is_defined_used_and_changed_live(host):
    async def story():
        await host.groups.create("acme", "", {"memory": "1G", "cpus": "2", "cpu-guarantee": "1"})
        await host.groups.create("team", "acme", {"memory-guarantee": "64M", "pids": "50"})
        assert host.tree.groups() == [], "no cgroup while nothing runs"
        await host.start("web1", "team")
        await host.rest()
        assert host.tree.group_of("web1") == "_team"
        assert (host.read("_acme", "memory.max"), host.read("_acme", "memory.swap.max")) == (str(GIB), "0")
        assert (host.read("_acme", "cpu.max"), host.read("_team", "pids.max")) == ("200000 100000", "50")
        assert host.read("_team", "memory.low") == host.read("_acme", "memory.low") == str(64 << 20)
        assert Path(host.tree.base, "memory.low").read_text() == str(64 << 20)
        assert host.read("_acme", "cpu.weight") == "10000", "what follows from its guarantee"
        await host.groups.set("acme", {"cpus": "0.5", "cpu-guarantee": "0", "cpu-weight": "300"})
        await host.rest()
        assert host.read("_acme", "cpu.max") == "50000 100000"
        # Memory is guaranteed still, and so weights are the balancer's; without CPU guarantees they are as given.
        assert host.read("_acme", "cpu.weight") == "300"
        await host.groups.set("team", {"memory-guarantee": "default"})
        await host.rest()
        assert host.read("_team", "memory.low") == host.read("_acme", "memory.low") == "0"
        again = Groups(host, host.instances)
        again.load()
        assert host.groups.show("acme")["settings"]["cpus"] == "0.5"
        assert host.groups.show("team")["running"] == host.groups.show("team")["ves"] == ["web1"]

    run(story())


def test_what_others_have_written_is_put_right(host):
    async def story():
        await host.groups.create("acme", "", {"cpus": "2", "memory-guarantee": "64M", "pids": "50"})
        await host.start("web1", "acme")
        await host.rest()
        inspection = Inspection(host, host.balancer)
        last = host.journal._ring.last
        await inspection.groups()
        assert host.journal._ring.last == last, "all is as it should be"
        for file, text in (("cpu.max", "max 100000"), ("memory.low", "0"), ("pids.max", "max"), ("cpu.weight", "7")):
            Path(host.tree.path("_acme"), file).write_text(text)
        await inspection.groups()
        assert (host.read("_acme", "cpu.max"), host.read("_acme", "pids.max")) == ("200000 100000", "50")
        assert (host.read("_acme", "memory.low"), host.read("_acme", "cpu.weight")) == (str(64 << 20), "100")
        told = [event.detail for event in host.journal._ring.after(last)]
        for file, text in (("cpu.idle", "1"), ("cpu.weight", "0")):
            Path(host.tree.path("_acme"), file).write_text(text)
        await inspection.groups()
        assert (host.read("_acme", "cpu.idle"), host.read("_acme", "cpu.weight")) == ("0", "100")
        assert len(told) == 4 and all(each.startswith("group acme: ") and each.endswith("put right") for each in told)

    run(story())


def test_what_is_refused_changes_nothing(host, monkeypatch):
    async def story():
        await host.groups.create("acme", "", {"cpu-guarantee": "1"})
        for name, parent, texts, error in (
                ("acme", "", {}, GroupExists), ("x", "missing", {}, NoSuchGroup),
                ("x", "", {"cpu-guarantee": "3.5"}, Overcommitted), ("x", "", {"io-read": "1M/s"}, NotEnforceable)):
            with pytest.raises(error):
                await host.groups.create(name, parent, texts)
        monkeypatch.setattr(module, "protection_recurses", lambda: False)
        with pytest.raises(NotEnforceable, match="memory_recursiveprot"):
            await host.groups.set("acme", {"memory-guarantee": "1G"})
        monkeypatch.setattr(host.groups._store, "save", fail)
        await host.start("web1", "acme")
        with pytest.raises(SystemFailure):
            await host.groups.set("acme", {"cpus": "2", "cpu-guarantee": "2"})
        assert host.read("_acme", "cpu.max") in ("max", "max 100000")
        assert host.promises.ledger.promised("cpus") == 1000
        with pytest.raises(GroupInUse, match="VE web1"):
            await host.groups.remove("acme")
        assert list(host.promises.groups) == ["acme"]

    run(story())


def fail(_group):
    raise SystemFailure("no")


def test_a_group_that_cannot_be_limited_leaves_nothing(host, monkeypatch):
    async def story():
        await host.groups.create("acme", "", {"pids": "50"})
        monkeypatch.setitem(FILES, "pids.max", "max")
        monkeypatch.setattr(host.limits, "apply", failing)
        with pytest.raises(SystemFailure):
            await host.start("web1", "acme")
        assert "web1" not in host.tree and host.tree.groups() == [] and host.promises.running == {}
        with pytest.raises(NoSuchGroup):
            await host.groups.prepare("web1", "missing")

    async def failing(_name, _settings):
        raise SystemFailure("no")

    run(story())


def test_a_group_goes_when_nothing_is_in_it(host):
    async def story():
        await host.groups.create("acme", "", {"cpu-guarantee": "1"})
        await host.groups.create("team", "acme", {})
        with pytest.raises(GroupInUse, match="group team"):
            await host.groups.remove("acme")
        await host.groups.remove("team")
        await host.groups.remove("acme")
        assert host.groups.list() == [] and host.promises.ledger.promised("cpus") == 0
        assert Groups(host, host.instances)._store.load() == []

    run(story())
