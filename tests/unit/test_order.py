# SPDX-License-Identifier: GPL-2.0-or-later
"""Starts and stops of many VEs: who waits for whom, for how long, and who ends that."""

import asyncio
import contextlib

import pytest

from vemgr.core.config import Definition, Settings
from vemgr.core.errors import BadValue, Locked, NotReady, NotRunning, SystemFailure
from vemgr.runtime.instances import Instances
from vemgr.runtime.ordering import Order, check_order


class World:
    """VEs that are up when they are told to be (`up`), or at once; `log` has what is asked for."""

    def __init__(self, at_once=8, all_stops=100, **settings):
        self.instances, self.log, self.failing, self.background = Instances(), [], {}, []
        self.slow = {name for name, keys in settings.items() if keys.pop("slow", False)}
        for name, keys in settings.items():
            self.instances.admit(Definition(name=name, template="bb", id_base=1 << 20, created="",
                                            settings=Settings(**keys)))
        self.order = Order(self.instances, self._start, self._stop,
                           lambda work: self.background.append(asyncio.ensure_future(work)), at_once, all_stops)

    async def _start(self, name):
        self.log.append(name)
        await asyncio.sleep(0)
        if name in self.failing:
            raise self.failing[name]
        self.instances.get(name).began(1, ready=name not in self.slow)

    async def _stop(self, name, timeout, until):
        if name in self.failing:
            raise self.failing.pop(name)
        self.log.append((name, timeout, round(until - asyncio.get_running_loop().time())))
        self.instances.get(name).is_over()
        return "clean"

    async def start(self, names=None):
        return [(o.name, o.step or type(o.error)) async for o in self.order.start(set(names or self.names()))]

    async def stop(self, timeout=None):
        return [(o.name, o.step or type(o.error)) async for o in self.order.stop(self.names(), timeout)]

    def names(self):
        return [instance.name for instance in self.instances]

    async def until(self, condition):
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0)


def run(work):
    return asyncio.run(asyncio.wait_for(work, 20))


def test_who_comes_after_waits_until_it_is_up():
    async def play():
        world = World(a={"after": ("db",)}, db={"slow": True}, c={"boot_priority": 5})
        starting = asyncio.ensure_future(world.start())
        await world.until(lambda: len(world.log) == 2)
        for _ in range(20):
            await asyncio.sleep(0)
        assert world.log == ["c", "db"]
        world.instances.get("db").up.set()
        assert sorted(await starting) == [("a", "up"), ("c", "up"), ("db", "up")] and world.log == ["c", "db", "a"]
    run(play())


def test_who_is_not_up_in_its_time_is_waited_for_no_longer(caplog):
    world = World(a={"after": ("db", "log")}, db={"slow": True, "ready_timeout": 1}, log={})
    world.failing["log"] = SystemFailure("no")
    assert dict(run(world.start())) == {"log": SystemFailure, "db": NotReady, "a": "up"}
    assert "VE a starts although VE db, which it comes after, is not up: VE db runs but has not said within 1 s" in (
        caplog.text)
    assert "VE a starts although VE log, which it comes after, is not up: no" in caplog.text


def test_who_need_not_be_waited_for():
    world = World(a={"after": ("db", "never-made", "stopped")}, db={"slow": True, "ready_timeout": 0}, stopped={})
    assert run(world.start(["a", "db"])) == [("db", "up"), ("a", "up")]


def test_one_that_runs_and_comes_up_already_is_waited_for():
    async def play():
        world = World(a={"after": ("db",)}, db={"slow": True})
        world.instances.get("db").began(1, ready=False)
        starting = asyncio.ensure_future(world.start(["a"]))
        for _ in range(50):
            await asyncio.sleep(0)
        assert world.log == []
        world.instances.get("db").up.set()
        assert await starting == [("a", "up")]
    run(play())


def test_a_bounded_number_at_once():
    async def play():
        world = World(at_once=2, **{f"v{n}": {"slow": True} for n in range(5)})
        starting = asyncio.ensure_future(world.start())
        for started in range(2, 6):
            await world.until(lambda started=started: len(world.log) == started)
            for _ in range(20):
                await asyncio.sleep(0)
            assert len(world.log) == started
            world.instances.get(world.log[started - 2]).up.set()
        world.instances.get("v4").up.set()
        assert len(await starting) == 5
    run(play())


def test_a_circle_that_came_by_another_way_is_cut_and_told(caplog):
    world = World(a={"after": ("b",)}, b={"after": ("a",)})
    assert [name for name, _ in run(world.start())] == ["a", "b"]
    assert "VE a does not wait for VE b, for that would go round: a after b after a" in caplog.text


def test_an_end_of_the_daemon_begins_no_more():
    async def play():
        world = World(a={"slow": True}, b={"after": ("a",)})
        starting = asyncio.ensure_future(world.start())
        await world.until(lambda: world.instances.get("a").running)
        world.order.end_starts()
        assert await starting == [("a", "started")] and world.log == ["a"]
    run(play())


def test_a_reader_that_goes_away_undoes_nothing():
    async def play():
        world = World(a={}, b={"slow": True}, c={"after": ("b",)})
        async with contextlib.aclosing(world.order.start(set(world.names()))) as outcomes:
            assert (await anext(outcomes)).name == "a"
        world.instances.get("b").up.set()
        await asyncio.gather(*world.background)
        assert world.log == ["a", "b"] and world.instances.get("b").running
    run(play())


def test_stops_in_reverse_and_shares_the_time():
    world = World(db={"stop_timeout": 3600}, app={"after": ("db",)}, web={"after": ("app", "db")}, log={})
    for instance in world.instances:
        instance.began(1, ready=True)
    assert sorted(run(world.stop())) == [(name, "clean") for name in ("app", "db", "log", "web")]
    assert world.log == [("log", None, 100), ("web", None, 33), ("app", None, 50), ("db", None, 100)]


def test_a_stop_of_all_waits_for_who_is_busy_and_takes_what_comes():
    world = World(all_stops=2, a={}, b={}, c={})
    world.failing = {"a": Locked("VE a", "start"), "b": NotRunning("b", "stopped"), "c": SystemFailure("no")}
    assert dict(run(world.stop(7.0))) == {"a": "clean", "b": "ended by itself", "c": SystemFailure}
    assert [entry[:2] for entry in world.log] == [("a", 7.0)]


def test_a_circle_is_refused():
    world = World(a={"after": ("b",)}, b={"after": ("c",)}, c={})
    check_order(world.instances, "c", ("nobody",))
    check_order(world.instances, "x", ("a",))
    with pytest.raises(BadValue, match="c after a after b after c"):
        check_order(world.instances, "c", ("x", "a"))
    with pytest.raises(BadValue, match="x after x"):
        check_order(world.instances, "x", ("x",))
