# SPDX-License-Identifier: GPL-2.0-or-later
"""How VEs end when something fails on the way: nothing stays that should go, and nothing is told that is not so."""

import asyncio
import contextlib
import errno
import os
import signal
import threading
from types import SimpleNamespace

import pytest

from vemgr.core.config import Definition, Settings, parse_settings
from vemgr.core.errors import Locked, NoSpace, SystemFailure, TemplateInUse, TemplateNotFound
from vemgr.core.host import HostConfig
from vemgr.core.layers import HOST_TEMPLATE, Template
from vemgr.core.lifecycle import State
from vemgr.kernel import durable
from vemgr.runtime import commands, ending, stopping, subids
from vemgr.runtime.counters import Counters
from vemgr.runtime.ending import REBOOT, Ender, describe_exit
from vemgr.runtime.file_jobs import FileJobs
from vemgr.runtime.hooks import Hooks
from vemgr.runtime.instances import Instances, TemplateVerbs
from vemgr.runtime.journal import Journal
from vemgr.runtime.launcher import Child
from vemgr.runtime.manager import Manager
from vemgr.runtime.ordering import Order
from vemgr.runtime.reconcile import start_on_boot
from vemgr.runtime.store import Store
from vemgr.runtime.workers import started_pool

DEFINITION = Definition(name="web1", template="bb", id_base=1 << 20, created="now")


class World:
    """An ender with fakes about it; `failing` names what fails."""

    def __init__(self, monkeypatch, **definition):
        self.failing, self.done, self.journal = set(), [], Journal()
        self.instances = Instances()
        self.instance = self.instances.admit(Definition(**{**vars(DEFINITION), **definition}))
        self.instance.began(4711, ready=True)
        store = SimpleNamespace(remove=self.remove, purge=lambda path: self.step("purge") or path)
        parts = SimpleNamespace(tree=None, file_jobs=FileJobs("/nowhere"), store=store, purges=None,
                                logs=SimpleNamespace(remove=lambda _name: None),
                                networking=SimpleNamespace(released=lambda _name: None),
                                hooks=Hooks("/nowhere", 1, SimpleNamespace(path=lambda name: f"/nowhere/{name}")),
                                limits=SimpleNamespace(check=lambda _settings: None),
                                promises=SimpleNamespace(release=lambda _name: self.done.append("promise released"),
                                                         admitted=lambda *_which: contextlib.nullcontext()),
                                journal=self.journal, counters=Counters(self.journal))
        launcher = SimpleNamespace(taken=lambda child: self.done.append("taken"), forget=lambda _name: None)
        starter = SimpleNamespace(remove_cgroup=self.remove_cgroup, template=self.template, start=self.start)
        self.ender = Ender(parts, launcher, self.instances, starter,
                           SimpleNamespace(reload=self.reload))
        monkeypatch.setattr(stopping, "kill", self.kill)
        monkeypatch.setattr(ending, "_DISCARD_DELAY", 0.01)
        self.ends_when_killed = True

    def step(self, name):
        self.done.append(name)
        if name in self.failing:
            raise SystemFailure(f"{name} fails")

    def remove(self, _name):
        self.step("remove")
        return "/gone"

    async def remove_cgroup(self, _name):
        self.step("remove cgroup")

    async def template(self, _name):
        if "template" in self.failing:
            raise SystemFailure("no descriptor")
        raise TemplateNotFound("bb")

    async def reload(self, instance):
        instance.definition = self.instance.definition

    async def start(self, instance):
        self.step("start")
        instance.began(4712, ready=True)

    def kill(self, _tree, _name):
        if self.ends_when_killed:
            self.instance.ended.set()  # as when its end is reported while the verb is at work, which is to tidy up
        self.step("kill")

    def exit(self, status, kind="init"):
        return Child(kind, "web1", 4711, 1, status)

    async def drained(self):
        await self.ender.drain(10)


@pytest.fixture
def world(monkeypatch):
    return World(monkeypatch)


def run(work):
    return asyncio.run(asyncio.wait_for(work, 20))


def test_a_poweroff_that_fails_takes_no_more_than_the_time_of_the_stop(world, monkeypatch):
    """A hostile one could fail until all its time has passed, and then be gone."""
    asked = []

    async def template(_name):
        return Template(name="bb", init="/sbin/init", init_kind="sysvinit")

    async def power_off(_parts, _launcher, _instance):
        await asyncio.sleep(1)
        raise SystemFailure("no poweroff")

    async def ask_to_end(_pid, _pidfd, _signum, timeout, _ended, spent):
        asked.append(timeout - spent)
        return "it does not end"

    world.ender._starter.template = template
    monkeypatch.setattr(commands, "power_off", power_off)
    monkeypatch.setattr(stopping, "ask_to_end", ask_to_end)
    world.instance.began(os.getpid(), ready=True)
    assert run(world.ender.stop(world.instance, 2.0)) == "killed: it does not end"
    assert asked[0] <= 1.0


def test_a_stop_that_fails_after_the_end_tidies_up(world):
    world.failing.add("kill")
    with pytest.raises(SystemFailure):
        run(world.ender.stop(world.instance, 0.0))
    assert world.instance.state == State.STOPPED, "no process of it is left, whatever else has failed"
    assert world.done == ["kill", "remove cgroup", "promise released"]


def test_a_stop_that_fails_before_the_end_leaves_it_running(world):
    world.ends_when_killed = False
    world.failing.add("kill")
    with pytest.raises(SystemFailure):
        run(world.ender.stop(world.instance, 0.0))
    assert world.instance.state == State.RUNNING and not world.instance.stopping
    assert "remove cgroup" not in world.done


def test_it_is_killed_unasked_only_where_its_template_is_gone(world, monkeypatch):
    assert run(world.ender.stop(world.instance, 5.0)).startswith("killed: its template is gone")
    other = World(monkeypatch)
    other.failing.add("template")  # it is there, and cannot be read just now
    with pytest.raises(SystemFailure, match="no descriptor"):
        run(other.ender.stop(other.instance, 5.0))
    assert other.instance.running and other.done == []


def test_an_ephemeral_ve_goes_in_the_end(monkeypatch):
    world = World(monkeypatch, ephemeral=True)
    world.ender.purge = lambda _gone: asyncio.sleep(0)
    world.failing.add("remove")

    async def end():
        await world.ender.discard("web1")
        assert "web1" in world.instances and world.instance.state == State.STOPPED
        await asyncio.sleep(0.05)
        assert world.done.count("remove") > 1
        world.failing.clear()
        await world.drained()

    run(end())
    assert "web1" not in world.instances


def test_what_cannot_be_deleted_goes_with_the_next(world):
    deleted = {"/first": False, "/second": True}
    world.ender._parts.store.purge = lambda path: deleted[path]

    async def purge():
        await world.ender.purge("/first")
        assert world.ender._doomed == {"/first"}
        deleted["/first"] = True
        await world.ender.purge("/second")

    run(purge())
    assert world.ender._doomed == set()


def test_a_reboot_from_inside_starts_it_again(world):
    async def reboot():
        world.ender.on_exit(world.exit(int(REBOOT)))
        await world.drained()

    run(reboot())
    assert world.done == ["remove cgroup", "promise released", "start", "taken"]
    assert world.instance.pid == 4712 and world.instance.verb == ""


def test_a_reboot_that_fails_leaves_it_stopped(world):
    world.failing.add("start")

    async def reboot():
        world.ender.on_exit(world.exit(int(REBOOT)))
        await world.drained()

    run(reboot())
    assert (world.instance.state, world.instance.verb, world.instance.restarting) == (State.STOPPED, "", False)
    assert not world.instance.lock.locked()


def test_the_end_of_another_process_changes_nothing(world):
    async def end():
        world.ender.on_exit(Child("init", "web1", 1, 1, 9))  # of an earlier life
        world.ender.on_exit(Child("init", "nobody", 4711, 1, 9))
        await world.drained()

    run(end())
    assert world.instance.running and world.done == ["taken", "taken"]


@pytest.mark.parametrize(("status", "text"), [
    (int(REBOOT), "rebooted"), (int(signal.SIGINT), "powered off"), (9, "killed by signal 9"),
    (3 << 8, "exited with 3")])
def test_exits(status, text):
    assert describe_exit(status) == text


# templates that go while VEs come


def test_a_template_is_held_for_one_verb():
    verbs = TemplateVerbs()
    with verbs.held("bb", "remove"):
        for check in (verbs.check_stays, lambda name: verbs.held(name, "import").__enter__()):
            with pytest.raises(Locked, match="'remove' is in progress"):
                check("bb")
        verbs.check_stays("other")
    with verbs.held("bb", "import"):
        verbs.check_stays("bb")  # an import takes nothing away


def test_host_is_not_made_anew_under_a_ve_that_is_being_started():
    refreshed = []
    parts = SimpleNamespace(config=HostConfig(), template_verbs=TemplateVerbs(), promises=SimpleNamespace(),
                            templates=SimpleNamespace(refresh_host=refreshed.append))
    manager = Manager(parts, SimpleNamespace())
    instance = manager.instances.admit(Definition(**{**vars(DEFINITION), "template": HOST_TEMPLATE}))

    async def refresh():
        await manager.refresh_host_template()
        async with instance.lock:
            await manager.refresh_host_template()

    run(refresh())
    assert refreshed == [[], ["web1"]], "the store refuses while there are any"
    assert TemplateInUse(HOST_TEMPLATE, refreshed[1]).exit_code == 9


# a disk that cannot have its new size


def test_what_was_set_with_the_size_is_taken_back(tmp_path):
    applied, published = [], []

    async def apply(_name, settings, _before):
        applied.append(settings)

    def resize(_after, *, running):
        raise NoSpace("no space", remedy="free some")

    store = Store(str(tmp_path / "ve"))
    parts = SimpleNamespace(config=HostConfig(), template_verbs=TemplateVerbs(), store=store, imports=None,
                            promises=SimpleNamespace(), disks=SimpleNamespace(resize=resize),
                            limits=SimpleNamespace(apply=apply),
                            networking=SimpleNamespace(publish=lambda _name, what: published.append(what)))
    manager = Manager(parts, SimpleNamespace())
    instance = manager.instances.admit(DEFINITION)
    store.create(DEFINITION)
    instance.began(1, ready=True)
    before, after = DEFINITION.settings, parse_settings({"memory": "64M", "disk": "1G"})
    with pytest.raises(NoSpace):
        run(manager._apply_and_save(instance, Definition(**{**vars(DEFINITION), "settings": after}), sized=True))
    assert applied == [after, before] and published == [after.publish, before.publish]
    assert instance.in_force == before and store.load("web1").settings == before
    assert os.listdir(store.path("web1")) == ["config.toml"]


# on boot


def test_one_that_does_not_start_keeps_no_other_from_it(tmp_path):
    started = []

    async def start(name):
        started.append(name)
        if name == "a":
            raise SystemFailure("no")
        instances.get(name).began(1, ready=True)

    instances = Instances()
    for name, settings in (("a", {"on_boot": True}), ("b", {"on_boot": True, "after": ("a", "nobody")}), ("c", {}),
                           ("d", {"on_boot": True})):
        instances.admit(Definition(**{**vars(DEFINITION), "name": name, "settings": Settings(**settings)}))
    instances.get("d").began(1, ready=True)

    async def boot():
        order = Order(instances, start, None, None, 8, 100)
        await start_on_boot(SimpleNamespace(instances=instances, order=order, ending=False), str(tmp_path))

    for _ in range(2):  # a second daemon since boot starts none
        run(boot())
    assert started == ["a", "b"]


# threads and files


def test_a_started_pool_needs_no_thread_later(monkeypatch):
    pool = started_pool(3, "test")
    monkeypatch.setattr(threading.Thread, "start", lambda _self: pytest.fail("a thread is started"))
    assert [future.result(5) for future in [pool.submit(os.getpid) for _ in range(20)]] == [os.getpid()] * 20
    pool.shutdown()


def test_threads_that_cannot_be_started(monkeypatch):
    begun = threading.Thread.start
    left = iter([True, True])

    def start(self):
        if not next(left, False):
            raise RuntimeError("can't start new thread")
        begun(self)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(SystemFailure, match="cannot start 4 threads: can't start new thread"):
        started_pool(4, "test")


@contextlib.contextmanager
def failing_sync(monkeypatch, *, of_directories):
    whole = os.fsync

    def fsync(fd):
        if os.path.isdir(f"/proc/self/fd/{fd}") == of_directories:
            raise OSError(errno.EIO, "Input/output error")
        whole(fd)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        yield


@pytest.mark.parametrize("of_directories", [True, False])
def test_a_replacement_that_fails_leaves_the_old_file(tmp_path, monkeypatch, of_directories):
    path, fresh = tmp_path / "file", tmp_path / "fresh"
    path.write_text("old")
    with failing_sync(monkeypatch, of_directories=of_directories):
        for target in (path, fresh):
            with pytest.raises(OSError, match="Input/output"):
                durable.replace_file(str(target), "new")
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {"file": "old"}


def test_a_rename_that_does_not_last_is_taken_back(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    with failing_sync(monkeypatch, of_directories=True), pytest.raises(OSError, match="Input/output"):
        durable.rename_durably(str(tmp_path / "a"), str(tmp_path / "b"))
    assert os.listdir(tmp_path) == ["a"]


def test_an_exchange_that_does_not_last_is_taken_back(tmp_path, monkeypatch):
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("old")
    new.write_text("new")
    with failing_sync(monkeypatch, of_directories=True), pytest.raises(OSError, match="Input/output"):
        durable.exchange_durably(str(new), str(old))
    assert (old.read_text(), new.read_text()) == ("old", "new")
    durable.exchange_durably(str(new), str(old))
    assert (old.read_text(), new.read_text()) == ("new", "old")


def test_ids_are_not_given_where_others_may_have_them(tmp_path):
    assert subids.foreign_ranges((str(tmp_path / "nothing"),)) == []
    with pytest.raises(SystemFailure, match="cannot read"):
        subids.foreign_ranges((str(tmp_path),))
