# SPDX-License-Identifier: GPL-2.0-or-later
"""CPUs that are chosen for VEs: near each other, in whole cores, where least is pinned; and moves that end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vemgr.core.config import parse_settings
from vemgr.kernel import topology as kernel
from vemgr.runtime.scheduling.placements import Placements
from vemgr.scheduler import placement as rules
from vemgr.scheduler.placement import WHOLE, Pinned, Place, better, demand_of, loads, place


def machine(nodes=1, cores=4, threads=1):
    """Numbered as Linux does: the first threads of all cores, then the second ones."""
    per_node = cores // nodes
    return {cpu: Place(cpu % cores // per_node, cpu % cores) for cpu in range(cores * threads)}


def chosen(where, count, **load):
    found = dict.fromkeys(where, 0) | {int(cpu[1:]): amount for cpu, amount in load.items()}
    return sorted(place(where, count, found).cpus)


@pytest.mark.parametrize(("where", "count", "load", "wanted"), [
    (machine(cores=4), 2, {}, [0, 1]),
    (machine(cores=4), 2, {"c0": 1000}, [1, 2]),
    (machine(cores=4), 2, {"c0": 500, "c1": 500, "c2": 400}, [2, 3]),
    (machine(cores=4, threads=2), 2, {}, [0, 4]),  # the two threads of one core
    (machine(cores=4, threads=2), 2, {"c4": 100}, [1, 5]),
    (machine(cores=4, threads=2), 1, {"c0": 1000}, [1]),  # not 4, the other thread of a core that works
    (machine(cores=4, threads=2), 3, {}, [0, 1, 4]),
    (machine(nodes=2, cores=8), 2, {"c0": 100}, [4, 5]),  # an empty node before one that is not
    (machine(nodes=2, cores=8), 4, {"c0": 100}, [4, 5, 6, 7]),
    (machine(nodes=2, cores=8), 3, {"c0": 100, "c4": 100, "c5": 100}, [1, 2, 3]),
    (machine(nodes=2, cores=8), 6, {"c0": 100}, [1, 2, 4, 5, 6, 7]),
    (machine(cores=2), 2, {"c0": 5000, "c1": 9000}, [0, 1]),  # there is no other
])
def test_where_a_ve_goes(where, count, load, wanted):
    assert chosen(where, count, **load) == wanted


def test_the_reason_names_what_was_decided():
    where = machine(nodes=2, cores=8, threads=2)
    assert place(where, 2, dict.fromkeys(where, 0)).reason == (
        "2 CPUs on 1 core of node 0; nothing was pinned to them")
    assert place(where, 16, dict.fromkeys(where, 500)).reason == (
        "16 CPUs on 8 cores of 2 nodes, since none has so many; what may use 0.5 of one was pinned to them")


@pytest.mark.parametrize(("texts", "demand"), [
    ({"cpu-mask": "auto:2"}, 1000), ({"cpu-mask": "auto:2", "cpus": "1"}, 500),
    ({"cpu-mask": "0-3", "cpus": "9"}, 1000),
])
def test_what_a_ve_may_use_of_each_cpu(texts, demand):
    assert demand_of(parse_settings(texts)) == demand


machines = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 2)).map(
    lambda found: machine(found[0], found[0] * found[1], found[2]))


@st.composite
def hosts(draw):
    """A machine, and VEs that are pinned somewhere on it."""
    where = draw(machines)
    pinned = {}
    for number in range(draw(st.integers(0, 8))):
        cpus = frozenset(draw(st.sets(st.sampled_from(sorted(where)), min_size=1, max_size=len(where))))
        pinned[f"ve{number}"] = Pinned(cpus, draw(st.integers(10, WHOLE)), draw(st.booleans()))
    return where, pinned


@given(hosts(), st.data())
def test_a_place_is_on_the_machine_and_no_node_is_left_without_need(host, data):
    where, pinned = host
    count = data.draw(st.integers(1, len(where)))
    found = place(where, count, loads(where, pinned)).cpus
    assert len(found) == count and found <= where.keys()
    sizes = [list(each.node for each in where.values()).count(node) for node in {each.node for each in where.values()}]
    if max(sizes) >= count:
        assert len({where[cpu].node for cpu in found}) == 1


@given(machines, st.integers(1, 12))
def test_equal_ves_are_spread(where, count):
    """One after the other, of one CPU each: no CPU has two more than another."""
    pinned = {}
    for number in range(count):
        pinned[str(number)] = Pinned(place(where, 1, loads(where, pinned)).cpus, WHOLE, movable=True)
    found = loads(where, pinned).values()
    assert max(found) - min(found) <= WHOLE


@given(hosts())
def test_moves_gain_something_stay_in_their_nodes_and_come_to_an_end(host):
    where, pinned = host
    for _ in range(100):
        move = better(where, pinned)
        if move is None:
            return
        ve, to = move
        before = max(loads(where, pinned)[cpu] for cpu in pinned[ve].cpus)
        assert pinned[ve].movable and len(to.cpus) == len(pinned[ve].cpus)
        assert {where[cpu].node for cpu in to.cpus} <= {where[cpu].node for cpu in pinned[ve].cpus}
        pinned[ve] = Pinned(to.cpus, pinned[ve].demand, movable=True)
        assert max(loads(where, pinned)[cpu] for cpu in to.cpus) <= before - WHOLE // 2
    raise AssertionError("they go on for ever")


def test_a_move_is_made_when_another_has_gone():
    where = machine(cores=2)
    both = {"a": Pinned(frozenset({0}), WHOLE, True), "b": Pinned(frozenset({0}), WHOLE, True)}
    ve, to = better(where, both)
    assert ve == "b" and to.cpus == {1}
    assert better(where, {**both, "b": Pinned(frozenset({1}), WHOLE, True)}) is None
    assert better(where, {"a": Pinned(frozenset({0}), WHOLE, False), "b": Pinned(frozenset({0}), WHOLE, False)}) is None


@given(hosts(), st.data())
def test_who_has_not_the_cpus_that_it_is_to_have_gets_them(host, data):
    """Some went offline, or a change of their number was cut off."""
    where, pinned = host
    pinned = {ve: Pinned(each.cpus, each.demand, each.movable, data.draw(st.integers(0, len(where) + 2)))
              for ve, each in pinned.items()}
    online = data.draw(st.sets(st.sampled_from(sorted(where)), min_size=1))
    where = {cpu: place for cpu, place in where.items() if cpu in online}
    for _ in range(100):
        move = better(where, pinned)
        if move is None:
            break
        ve, to = move
        assert pinned[ve].movable and to.cpus <= online
        pinned[ve] = Pinned(to.cpus, pinned[ve].demand, True, pinned[ve].count)
    else:
        raise AssertionError("they go on for ever")
    for each in pinned.values():
        if each.movable:
            assert each.cpus <= online and len(each.cpus) == min(each.count or len(each.cpus), len(online))


def test_a_ve_whose_cpu_has_gone_stays_in_its_node():
    where = machine(nodes=2, cores=8)
    del where[5]
    load = {"busy": Pinned(frozenset({6, 7}), WHOLE, False), "ve": Pinned(frozenset({4, 5}), WHOLE, True, 2)}
    ve, to = better(where, load)
    assert ve == "ve" and len(to.cpus) == 2 and {where[cpu].node for cpu in to.cpus} == {1}
    assert "those it had were not 2 that VEs can use" in to.reason
    del where[6], where[7]
    assert better(where, load)[1].cpus == {0, 1}, "there are not enough in it any more"


@pytest.mark.parametrize("left", ["0-1", ""])
def test_a_change_that_was_cut_off_is_ended_and_nothing_looked_for_twice(monkeypatch, left):
    looks = []
    monkeypatch.setattr(kernel, "places", lambda cpus: {cpu: (0, cpu) for cpu in cpus})
    monkeypatch.setattr(rules, "better", lambda *given: looks.append(better(*given)) or looks[-1])
    placements = Placements({"a": parse_settings({"cpu-mask": "auto:1"})})
    placements.adopt("a", left)
    ve, to = placements.better({0, 1})
    assert ve == "a" and len(to.cpus) == 1
    placements.move(ve, to)
    assert [placements.better({0, 1}) for _ in range(3)] == [None] * 3 and len(looks) == 2
    assert placements.better({2}) == ("a", looks[-1][1]), "something has changed"


def test_what_is_remembered_of_placements(monkeypatch):
    monkeypatch.setattr(kernel, "places", lambda cpus: {cpu: (0, cpu) for cpu in cpus})
    running = {name: parse_settings({"cpu-mask": text})
               for name, text in (("a", "auto:1"), ("b", "auto:1"), ("c", "0"), ("d", "all"))}
    placements, cpus = Placements(running), {0, 1, 2}
    for name in ("a", "b"):
        placements.choose(name, running[name], cpus)
    assert [placements.resolved(name, running[name]).cpu_mask for name in running] == ["1", "2", "0", None]
    assert placements.proposed("e", parse_settings({"cpu-mask": "auto:2"}), cpus).cpus == {0, 1}
    del running["b"]
    placements.choose("a", parse_settings({"cpu-mask": "auto:2"}), cpus)
    assert placements.of("a").cpus == {1, 2} and placements.of("b") is None
    placements.choose("a", parse_settings({"cpu-mask": "0"}), cpus)
    assert not placements.any
    placements.adopt("a", "0-1")
    assert placements.resolved("a", parse_settings({"cpu-mask": "auto:2"})).cpu_mask == "0-1"


def test_the_machine_is_read(tmp_path):
    for file, text in {
        "cpu/online": "0-3", "node/node0/cpulist": "0,2", "node/node1/cpulist": "1,3", "node/node2/cpulist": "",
        "cpu/cpu0/topology/thread_siblings_list": "0,2", "cpu/cpu2/topology/thread_siblings_list": "0,2",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text + "\n")
    assert kernel.online(tmp_path) == {0, 1, 2, 3}
    assert kernel.places(range(5), tmp_path) == {0: (0, 0), 1: (1, 1), 2: (0, 0), 3: (1, 3), 4: (0, 4)}


def test_this_machine_is_read():
    assert kernel.places(kernel.online()).keys() == kernel.online()
