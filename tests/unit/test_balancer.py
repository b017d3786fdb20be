# SPDX-License-Identifier: GPL-2.0-or-later
"""What follows from all guarantees together is written in the background, and only what has changed."""

import asyncio
from types import SimpleNamespace

import pytest

from vemgr.core.config import parse_settings
from vemgr.core.scheduling import parse_scheduler
from vemgr.kernel.cgroups import CgroupTree
from vemgr.runtime.scheduling import balancer
from vemgr.runtime.scheduling.balancer import Balancer
from vemgr.runtime.scheduling.promises import Promises

GIB = 1 << 30


class Host:
    """VEs' weights as the kernel has them. `slow`: called while weights are written."""

    def __init__(self, controllers=("cpu", "memory")):
        self.weights, self.written, self.protected, self.slow = {}, [], [], lambda: None
        self.limits = SimpleNamespace(controllers=frozenset(controllers), write_cpu_weights=self.write,
                                      protect=lambda amount, group: self.protected.append((group, amount)))
        self.promises = Promises(parse_scheduler({"reserve-cpus": "0%/0/0"}), 2000, 8 * GIB)
        self.tasks = []
        self.balancer = Balancer(self, lambda work: self.tasks.append(asyncio.ensure_future(work)))

    def write(self, weights):
        self.slow()
        self.written.append(dict(weights))
        found = [ve for ve in weights if ve in self.weights]
        self.weights.update({ve: weights[ve] for ve in found})
        return found

    def start(self, ve, **texts):
        settings = parse_settings({key.replace("_", "-"): text for key, text in texts.items()})
        with self.promises.admitted(ve, settings):
            self.weights[ve] = settings.cpu_weight  # as `Limits.apply` does

    def stop(self, ve):
        self.promises.release(ve)
        del self.weights[ve]

    async def rest(self):
        while self.tasks:
            await self.tasks.pop()


def play(host, *steps):
    async def all_steps():
        for step in steps:
            step()
            await host.rest()

    asyncio.run(asyncio.wait_for(all_steps(), 20))


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(balancer, "_DELAY", 0.001)


def test_without_guarantees_nothing_is_written():
    host = Host()
    play(host, lambda: host.start("a"), lambda: host.start("b", cpu_weight="300"), lambda: host.stop("a"))
    assert host.written == [] and host.protected == [] and host.weights == {"b": 300}


def test_a_guarantee_moves_all_and_its_end_brings_them_back():
    host = Host()
    play(host, lambda: host.start("a", cpu_weight="10"), lambda: host.start("b", cpu_weight="30"),
         lambda: host.start("g", cpu_guarantee="1"))
    total = sum(host.weights.values())
    assert host.weights["g"] / total * 2 >= 1 and host.weights["b"] / host.weights["a"] == pytest.approx(3, rel=0.01)
    play(host, lambda: host.stop("g"))
    assert host.weights == {"a": 10, "b": 30}


def test_only_what_has_changed_is_written():
    host = Host()
    play(host, lambda: [host.start(f"ve{n}") for n in range(50)], lambda: host.start("g", cpu_guarantee="1.9"))
    host.written.clear()
    play(host, lambda: host.start("more", cpu_weight="1"))
    assert [set(each) for each in host.written] == [{"more"}]


def test_a_ve_that_starts_again_gets_its_weight_again():
    host = Host()
    play(host, lambda: host.start("g", cpu_guarantee="1"), lambda: host.start("a"))
    before = dict(host.weights)

    def again():
        host.stop("a")
        host.start("a")

    play(host, again)
    assert host.weights == before != {"g": 100, "a": 100}


def test_a_start_that_takes_long_gets_its_weight_in_the_end():
    host = Host()

    async def slowly():
        with host.promises.admitted("g", parse_settings({"cpu-guarantee": "1"})):
            await host.rest()  # its cgroup is not there yet
            host.weights["g"] = 100
        await host.rest()

    asyncio.run(asyncio.wait_for(slowly(), 20))
    assert host.weights == {"g": 10000}


def test_a_change_while_weights_are_written_is_not_lost():
    host = Host()
    play(host, lambda: host.start("g", cpu_guarantee="1"), lambda: host.start("a"))

    def restart_it():
        host.slow = lambda: None
        host.weights["a"] = 100
        host.balancer.wake("a")

    host.slow = restart_it
    play(host, lambda: host.start("b"))
    assert host.weights["a"] == host.weights["b"] != 100


def test_a_new_daemon_writes_what_it_finds():
    host = Host()
    host.weights = {"a": 4711}  # left by one that has died
    play(host, lambda: host.promises.adopt("a", parse_settings({"cpu-weight": "50"})))
    assert host.weights == {"a": 50} and host.protected == [("", 0)]


def test_memory_is_protected_above_the_ves():
    host = Host()
    play(host, lambda: host.start("a", memory_guarantee="1G"), lambda: host.start("b", memory_guarantee="512M"),
         lambda: host.start("c"), lambda: host.stop("a"), lambda: host.stop("b"))
    assert host.protected == [("", amount) for amount in (GIB, 3 * GIB // 2, GIB // 2, 0)]


def test_without_controllers_nothing_is_tried():
    host = Host(controllers=())
    play(host, lambda: host.promises.adopt("a", parse_settings({"cpu-guarantee": "1", "memory-guarantee": "1G"})))
    assert host.written == [] and host.protected == []


def test_a_failure_is_said_and_the_next_change_tries_again(caplog):
    host = Host()

    def fail():
        raise OSError(5, "Input/output error", "/x/cpu.weight")

    host.slow = fail
    play(host, lambda: host.start("g", cpu_guarantee="1"))
    assert "guarantees are not in force: /x/cpu.weight: Input/output error" in caplog.text
    host.slow = lambda: None
    play(host, lambda: host.start("a"))
    assert set(host.written[-1]) == {"g", "a"}


def test_protection_is_raised_above_and_goes_back_to_what_was_there(tmp_path):
    top = tmp_path / "cgroup/system.slice/vemgr-keeper.service"
    top.mkdir(parents=True)
    tree = CgroupTree(str(top))
    found = {"system.slice": "3000\n", "system.slice/vemgr-keeper.service": "0\n",
             "system.slice/vemgr-keeper.service/ve": "0\n"}
    for path, text in found.items():
        for name in ("memory.min", "memory.low"):
            (tmp_path / "cgroup" / path / name).write_text(text)
    # A regular file is not cut by a write, as those of a cgroup are: numbers of the same length.
    tree.protect(5000, 7000)
    for path in found:
        assert (tmp_path / "cgroup" / path / "memory.min").read_text().strip() == "5000"
        assert (tmp_path / "cgroup" / path / "memory.low").read_text().strip() == "7000"
    tree.protect(2000, 2000)
    left = [(tmp_path / "cgroup" / path / "memory.min").read_text().strip() for path in found]
    assert left == ["3000", "2000", "2000"]
