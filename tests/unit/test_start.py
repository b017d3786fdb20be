# SPDX-License-Identifier: GPL-2.0-or-later
"""A start with fakes behind it: whatever step fails, what was done before is undone, in reverse, and nothing else."""

import asyncio
import contextlib
import os
from types import SimpleNamespace

import pytest

from vemgr.core.errors import (
    AddressInUse,
    Locked,
    NotEnforceable,
    NotRunning,
    Overcommitted,
    StartFailed,
    SystemFailure,
    TemplateNotFound,
    VEExists,
    VemgrError,
)
from vemgr.core.host import HostConfig
from vemgr.core.layers import Template, Tree
from vemgr.core.lifecycle import State
from vemgr.core.networks import NetworkConfig
from vemgr.kernel.veth import loopback_messages
from vemgr.runtime import stopping
from vemgr.runtime.counters import Counters
from vemgr.runtime.disks import Disks
from vemgr.runtime.file_jobs import FileJobs
from vemgr.runtime.hooks import Hooks
from vemgr.runtime.instances import Parts
from vemgr.runtime.journal import Journal
from vemgr.runtime.launcher import Child
from vemgr.runtime.logs import Logs
from vemgr.runtime.manager import Manager
from vemgr.runtime.network.networking import Networking
from vemgr.runtime.profiles import Profiles
from vemgr.runtime.reconcile import adopt
from vemgr.runtime.scheduling.promises import Promises
from vemgr.runtime.store import Store
from vemgr.runtime.views import Views
from vemgr.runtime.volumes import Volumes

STEPS = ["limits.check", "templates.show", "networking.prepare", "networking.check_addresses", "tree.create",
         "tree.open", "devices.attach", "limits.apply", "networking.connect", "launcher.start"]
ERRORS = {"limits.check": NotEnforceable("cpus", "why", "remedy"), "templates.show": TemplateNotFound("bb"),
          "launcher.start": StartFailed("no")}
OS_STEPS = ("tree.create", "tree.open", "devices.attach")


class FakeTree:
    """The VEs' cgroups as a set of names."""

    base = "/nowhere"

    def __init__(self, world):
        self.create, self.open, self.remove, self._world = world.create, world.open, world.remove, world

    def __contains__(self, ve):
        return ve in self._world.cgroups

    def names(self):
        return sorted(self._world.cgroups)

    def path(self, ve):
        return f"{self.base}/{ve}"

    place = path

    def leave(self, ve):
        pass

    def groups(self):
        return []

    def tidy_groups(self):
        pass

    def group_of(self, _ve):
        return ""

    def remove_empty(self, ve):
        return ve not in self._world.cgroups  # what is left of a failed start is in it


class World:
    """Remembers what is done to it; the step named `fails` fails."""

    def __init__(self, directory):
        self.done, self.fails, self.cgroups, self.fds = [], "", set(), set()
        self.wait = None
        config = HostConfig(state_dir=f"{directory}/state", run_dir=f"{directory}/run",
                            networks=(NetworkConfig(subnet="10.77.0.0/24"), NetworkConfig("lan", "b1", "10.78.0.0/24")))
        self.parts = Parts(
            config=config, hooks=Hooks("/nowhere", 1, Store(f"{directory}/state/ve")),
            store=Store(f"{directory}/state/ve"),
            templates=SimpleNamespace(show=lambda name: self.step("templates.show") or Template(
                name=name, trees=[Tree("/", ["/t"])])),
            tree=FakeTree(self),
            limits=SimpleNamespace(check=lambda _settings: self.step("limits.check"), apply=self.later("limits.apply"),
                                   controllers=frozenset(),
                                   in_force=lambda _ve: {}),
            devices=SimpleNamespace(attach=lambda _fd, _rules: self.step("devices.attach")),
            networking=Networking(config), logs=Logs(f"{directory}/run"),
            filters=SimpleNamespace(fd=lambda _allow: -1), disks=Disks(f"{directory}/state/ve"),
            promises=Promises(config.scheduler, 4000, 8 << 30),
            file_jobs=FileJobs(f"{directory}/run"), journal=Journal(), counters=Counters(Journal()),
            views=Views("off", "/nowhere", str(directory)), profiles=Profiles("/nowhere"),
            volumes=Volumes("/nowhere"))
        for name, result in (("prepare", None), ("check_addresses", None), ("connect", ([], loopback_messages())),
                             ("disconnect", None)):
            setattr(self.parts.networking, name, self.later(f"networking.{name}", result))

    def step(self, name):
        self.done.append(name)
        if name == self.fails:
            raise ERRORS.get(name) or (OSError(5, "Input/output error", name) if name in OS_STEPS
                                       else SystemFailure("no"))

    def later(self, name, result=None):
        async def call(*_arguments):
            await asyncio.sleep(0)
            self.step(name)
            return result
        return call

    def create(self, ve, _owner):
        self.step("tree.create")
        self.cgroups.add(ve)

    def open(self, _ve):
        self.step("tree.open")
        fd = os.open("/", os.O_RDONLY | os.O_CLOEXEC)
        self.fds.add(fd)
        return fd

    def remove(self, ve):
        self.step("tree.remove")
        self.cgroups.discard(ve)

    async def start(self, plan, _cgroup_fd, _filter_fd, connect):
        """As `Launcher.start`; the step is the keeper's answer."""
        await connect()
        self.step("launcher.start")
        await asyncio.sleep(0)
        if self.wait:
            await self.wait.wait()
        return Child("init", plan.name, 4711, 1, None)


@pytest.fixture
def world(tmp_path, monkeypatch):
    found = World(tmp_path)

    async def kill_all(_tree, _ve):
        found.step("kill")

    monkeypatch.setattr(stopping, "kill_all", kill_all)
    yield found
    found.parts.imports.shutdown()
    found.parts.purges.shutdown()
    for fd in found.fds:
        with pytest.raises(OSError):
            os.fstat(fd)  # closed on every path


@pytest.fixture
def manager(world):
    return Manager(world.parts, SimpleNamespace(start=world.start))


def run(work):
    return asyncio.run(asyncio.wait_for(work, 20), debug=False)


def create(manager, name="web1", **texts):
    run(manager.create(name, "bb", texts))


def test_a_start_does_its_steps_in_order(world, manager):
    create(manager)
    world.done.clear()
    run(manager.start("web1"))
    assert world.done == STEPS
    instance = manager.instances.get("web1")
    assert (instance.state, instance.pid, world.cgroups) == (State.RUNNING, 4711, {"web1"})
    assert world.parts.store.load("web1").started


@pytest.mark.parametrize("step", STEPS)
def test_a_failure_at_each_step_is_undone(world, manager, step):
    create(manager)
    before = world.parts.store.load("web1")
    world.done.clear()
    world.fails = step
    with pytest.raises(VemgrError) as failure:
        run(manager.start("web1"))
    if step in ERRORS:
        assert failure.value is ERRORS[step]
    done = world.done[:world.done.index(step) + 1]
    undone = world.done[len(done):]
    expected = []
    if "networking.connect" in done:
        expected.append("networking.disconnect")
    if "tree.create" in done[:-1]:
        expected += ["kill", "tree.remove"]
    assert (done, undone) == (STEPS[:STEPS.index(step) + 1], expected)
    instance = manager.instances.get("web1")
    assert (instance.state, instance.pid, instance.verb, world.cgroups) == (State.STOPPED, 0, "", set())
    assert world.parts.store.load("web1") == before
    world.fails = ""
    run(manager.start("web1"))


def test_what_cannot_be_promised_is_refused_before_anything_happens(world, manager):
    """The fakes' host has 4 CPUs and keeps 0.2 of them."""
    create(manager, "web1", **{"cpu-guarantee": "3"})
    create(manager, "web2", **{"cpu-guarantee": "1"})
    run(manager.start("web1"))
    world.done.clear()
    for verb in (manager.start, manager.plan):
        with pytest.raises(Overcommitted, match=r"VE web2 cannot be guaranteed 1 CPU:.*web1 3 CPUs.*0.8 CPUs would"):
            run(verb("web2"))
    assert world.done == ["limits.check"] * 2
    assert manager.instances.get("web2").state == State.STOPPED and manager.instances.get("web2").verb == ""
    before = world.parts.store.load("web1")
    world.done.clear()
    with pytest.raises(Overcommitted):
        run(manager.set("web1", {"cpu-guarantee": "3.81"}))
    assert world.done == ["limits.check"] and world.parts.store.load("web1") == before
    assert manager.instances.get("web1").definition == before
    run(manager.set("web1", {"cpu-guarantee": "2"}))
    run(manager.start("web2"))
    assert world.parts.promises.ledger.promised("cpus") == 3000


@pytest.mark.parametrize("step", STEPS)
def test_a_failed_start_or_change_gives_back_what_it_was_promised(world, manager, step):
    create(manager, **{"cpu-guarantee": "3"})
    world.fails = step
    with pytest.raises(VemgrError):
        run(manager.start("web1"))
    assert world.parts.promises.ledger.promised("cpus") == 0 and not world.parts.promises.running
    world.fails = ""
    run(manager.start("web1"))
    if step == "limits.apply":
        world.fails = step
        with pytest.raises(VemgrError):
            run(manager.set("web1", {"cpu-guarantee": "3.5"}))
    assert world.parts.promises.ledger.promised("cpus") == 3000


def test_a_hook_runs_after_the_promise_and_loses_it_when_it_fails(world, manager):
    create(manager, "web1", **{"cpu-guarantee": "3"})
    create(manager, "web2", **{"cpu-guarantee": "1"})
    seen = []

    async def hook(stage, definition, **_more):
        seen.append((str(stage), definition.name, world.parts.promises.ledger.promised("cpus")))
        if len(seen) == 1:
            raise SystemFailure("the hook says no")

    world.parts.hooks = SimpleNamespace(run=hook, try_=hook)
    with pytest.raises(SystemFailure):
        run(manager.start("web1"))
    assert seen == [(seen[0][0], "web1", 3000)] and world.parts.promises.ledger.promised("cpus") == 0
    run(manager.start("web1"))
    seen[1:] = []
    with pytest.raises(Overcommitted):
        run(manager.start("web2"))
    assert len(seen) == 1, "nothing happens before a refusal"


def test_a_new_daemon_knows_what_was_promised(world, manager):
    create(manager, **{"cpu-guarantee": "3"})
    world.parts.limits.settle, world.parts.limits.adopt = lambda _ve: None, lambda _ve, _settings: None
    world.parts.tree = type("Tree", (dict,), {
        "path": lambda _self, ve: ve, "group_of": lambda _self, _ve: ""})(web1=SimpleNamespace(freeze=False))

    async def adopted():
        adopt(manager, world.parts, "web1", Child("init", "web1", 4711, 1, None))

    run(adopted())
    assert manager.instances.get("web1").running
    assert world.parts.promises.ledger.promised("cpus") == 3000


def test_of_two_starts_at_the_same_time_one_gets_what_there_is(world, manager):
    for name in ("web1", "web2"):
        create(manager, name, **{"memory-guarantee": "5G"})

    async def both():
        return await asyncio.gather(manager.start("web1"), manager.start("web2"), return_exceptions=True)

    outcomes = run(both())
    assert outcomes.count(None) == 1 and sum(isinstance(each, Overcommitted) for each in outcomes) == 1


def test_a_cancelled_start_is_undone(world, manager):
    create(manager)

    async def cancel():
        world.wait = asyncio.Event()
        task = asyncio.create_task(manager.start("web1"))
        while "networking.connect" not in world.done:
            await asyncio.sleep(0.001)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    run(cancel())
    assert world.cgroups == set() and manager.instances.get("web1").state == State.STOPPED


def test_without_a_network_nothing_of_it_is_touched(world, manager):
    create(manager, network="none")
    world.parts.networking.loopback_only = lambda: world.step("loopback") or []
    world.done.clear()
    run(manager.start("web1"))
    assert not [step for step in world.done if step.startswith("networking.")] and "loopback" in world.done


def test_a_verb_in_progress_refuses_another(world, manager):
    create(manager)

    async def both():
        world.wait = asyncio.Event()
        first = asyncio.create_task(manager.start("web1"))
        while "networking.connect" not in world.done:
            await asyncio.sleep(0.001)
        for verb in (manager.start, manager.stop, manager.destroy, manager.suspend, manager.restart):
            with pytest.raises(Locked, match="'start' is in progress") as locked:
                await verb("web1")
            assert locked.value.exit_code == 9
        with pytest.raises(Locked):
            await manager.set("web1", {"description": "x"})
        assert manager.instances.get("web1").summary()["verb"] == "start"
        world.wait.set()
        await first

    run(both())
    assert manager.instances.get("web1").verb == ""


def test_of_two_creates_of_a_name_one_wins(world, manager):
    async def both():
        return await asyncio.gather(*(manager.create("web1", "bb", {}) for _ in range(5)), return_exceptions=True)

    outcomes = run(both())
    assert outcomes.count(None) == 1 and sum(isinstance(o, VEExists) for o in outcomes) == 4


def test_addresses_and_ids_are_given_once(world, manager):
    async def many():
        await asyncio.gather(*(manager.create(f"web{n}", "bb", {}) for n in range(20)))

    run(many())
    definitions = [instance.definition for instance in manager.instances]
    assert len({d.address for d in definitions}) == len({d.id_base for d in definitions}) == 20
    with pytest.raises(AddressInUse, match="web"):
        run(manager.create("late", "bb", {"address": definitions[0].address}))
    assert "late" not in manager.instances and "late" not in world.parts.store.names()


def test_a_refused_create_leaves_nothing(world, manager):
    for step in ("limits.check", "templates.show"):
        world.fails = step
        with pytest.raises(VemgrError):
            create(manager)
    assert world.parts.store.names() == [] and list(manager.instances) == []


def test_verbs_that_need_a_running_ve(world, manager):
    create(manager)
    for verb in (manager.stop, manager.suspend, manager.resume, manager.restart):
        with pytest.raises(NotRunning):
            run(verb("web1"))
