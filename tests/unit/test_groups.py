# SPDX-License-Identifier: GPL-2.0-or-later
"""Groups of VEs: what is promised in them, what they are entitled to, and where their cgroups are."""

import contextlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vemgr.core.config import parse_settings
from vemgr.core.errors import BadParameter, BadValue, NoSuchGroup, Overcommitted
from vemgr.core.groups import MOST_LEVELS, Group, group_key, line_of, parse_group_settings
from vemgr.core.scheduling import Policy, parse_scheduler
from vemgr.kernel.cgroups import CgroupTree
from vemgr.runtime.group_store import GroupStore
from vemgr.runtime.scheduling.promises import Promises
from vemgr.scheduler.admission import Promise, promise_of
from vemgr.scheduler.control import GroupMemory, Standing, in_groups
from vemgr.scheduler.shares import cpu_shares, memory_shares

MIB, GIB = 1 << 20, 1 << 30


def host(cpus=4000, memory=8 * GIB, **config):
    return Promises(parse_scheduler({"reserve-cpus": "0%/0/0", "reserve-memory": "0%/0/0", **config}), cpus, memory)


def group(name, parent="", **texts):
    return Group(name, parent, parse_group_settings({key.replace("_", "-"): text for key, text in texts.items()}))


def settings(name="", **texts):
    return parse_settings({"group": name or "none", **{key.replace("_", "-"): text for key, text in texts.items()}})


# admission

NAMES = ("a", "b", "c")
WISHES = st.sampled_from(["0", "0.25", "0.5", "1", "2", "3"])
STEPS = st.lists(st.one_of(
    st.tuples(st.just("group"), st.sampled_from(NAMES), st.sampled_from(["0", "0", "0.5", "2"]),
              st.sampled_from(["unlimited", "0.5", "2"])),
    st.tuples(st.just("start"), st.integers(0, 5), WISHES, st.sampled_from(("", *NAMES))),
    st.tuples(st.just("stop"), st.integers(0, 5)), st.tuples(st.just("remove"), st.sampled_from(NAMES)),
), min_size=5, max_size=60)


@given(STEPS, st.sampled_from(Policy))
def test_promises_never_exceed_what_the_host_or_a_group_has(steps, policy):
    """`c` is in `b`. Everything is added up anew after each step."""
    found = host(cpus=3000, policy=policy)
    for step, *what in steps:
        with contextlib.suppress(Overcommitted, NoSuchGroup, BadValue):
            if step == "group":
                name, guarantee, limit = what
                parent = "b" if name == "c" else ""
                if not parent or parent in found.groups:
                    found.admit_group(group(name, parent, cpu_guarantee=guarantee, cpus=limit))
            elif step == "start":
                number, guarantee, name = what
                with found.admitted(f"ve{number}", settings(name, cpu_guarantee=guarantee)):
                    pass
            elif step == "stop":
                found.release(f"ve{what[0]}")
            elif what[0] in found.groups and not [each for each in (*found.running.values(), *found.groups.values())
                                                  if what[0] in (getattr(each, "group", ""),
                                                                 getattr(each, "parent", ""))]:
                found.drop_group(what[0])
        check_sums(found, policy)


def check_sums(found, policy):
    inside = dict.fromkeys(["", *found.groups], 0)
    for each in found.running.values():
        inside[each.group] += promise_of(each, policy).cpus
    for name in sorted(found.groups, reverse=True):  # `c`, which is in `b`, comes first
        each = found.groups[name]
        own = promise_of(each.settings, policy).cpus
        assert inside[name] == found.ledger.promised("cpus", group_key(name))
        assert not own or inside[name] <= own, "no more than the group was promised"
        assert each.settings.cpus is None or inside[name] <= each.settings.cpus, "nor than it may have"
        inside[each.parent] += max(own, inside[name])
    capacity = found.ledger.capacity["cpus"].promisable
    assert inside[""] == found.ledger.promised("cpus") <= capacity
    assert found.ledger.free("cpus") == capacity - inside[""]


@given(STEPS, st.sampled_from(("", *NAMES)), st.integers(1, 3000))
def test_what_is_free_is_what_is_admitted(steps, name, amount):
    found = host(cpus=3000)
    for step, *what in steps:
        with contextlib.suppress(Overcommitted, NoSuchGroup, BadValue):
            if step == "group" and (what[0] != "c" or "b" in found.groups):
                found.admit_group(group(what[0], "b" if what[0] == "c" else "", cpu_guarantee=what[1], cpus=what[2]))
            elif step == "start":
                found.check(f"ve{what[0]}", settings(what[2], cpu_guarantee=what[1]))
                found.adopt(f"ve{what[0]}", settings(what[2], cpu_guarantee=what[1]))
    if name and name not in found.groups:
        return
    key, before = group_key(name), dict(found.ledger.held)
    free = found.ledger.free("cpus", key)
    if amount <= free:
        found.ledger.check("new", Promise(amount), key)
    else:
        with pytest.raises(Overcommitted) as refused:
            found.ledger.check("new", Promise(amount), key)
        assert refused.value.facts["fits"] == str(free)
    assert found.ledger.held == before, "to look changes nothing"


def test_a_group_keeps_its_guarantee_though_nothing_runs_in_it():
    found = host()
    found.admit_group(group("acme", cpu_guarantee="3"))
    with pytest.raises(Overcommitted, match=r"promised to others: 3 CPUs \(group acme 3 CPUs\); 1 CPU would fit"):
        found.check("web1", settings(cpu_guarantee="2"))
    found.check("web1", settings("acme", cpu_guarantee="2"))
    assert found.ledger.fitting(Promise(1000), "_acme") == (3, "cpus")


def test_a_refusal_names_the_group_that_is_full():
    found = host()
    found.admit_group(group("acme", cpu_guarantee="2"))
    found.adopt("web1", settings("acme", cpu_guarantee="1.5"))
    with pytest.raises(Overcommitted) as refused:
        found.check("web2", settings("acme", cpu_guarantee="1"))
    assert refused.value.exit_code == 36 and refused.value.facts["group"] == "acme"
    assert str(refused.value).startswith(
        "VE web2 cannot be guaranteed 1 CPU: group acme is guaranteed 2 CPUs; promised to others: 1.5 CPUs (web1 1.5 "
        "CPUs); 0.5 CPUs would fit")
    with pytest.raises(Overcommitted, match=r"group acme cannot have 1 CPU: 1\.5 CPUs are promised in it \(web1"):
        found.admit_group(group("acme", cpu_guarantee="1"))
    with pytest.raises(Overcommitted, match="group acme cannot be guaranteed 5 CPUs: the host has 4 CPUs"):
        found.admit_group(group("acme", cpu_guarantee="5"))
    assert found.groups["acme"].settings.cpu_guarantee == 2000


def test_a_limit_bounds_what_is_promised_in_a_group_without_guarantee():
    found = host()
    found.admit_group(group("acme", cpus="1"))
    found.admit_group(group("team", "acme"))
    found.adopt("web1", settings("team", cpu_guarantee="0.75"))
    assert found.ledger.claimed("_acme", "cpus") == found.ledger.promised("cpus") == 750
    with pytest.raises(Overcommitted, match="group acme is limited to 1 CPU"):
        found.check("web2", settings("team", cpu_guarantee="0.5"))


def test_a_ve_that_moves_takes_its_promise_with_it():
    found = host()
    for name in ("a", "b"):
        found.admit_group(group(name, cpu_guarantee="2"))
    found.adopt("web1", settings("a", cpu_guarantee="2"))
    with found.admitted("web1", settings("b", cpu_guarantee="2")):
        pass
    assert [found.ledger.promised("cpus", key) for key in ("_a", "_b", "")] == [0, 2000, 4000]
    found.release("web1")
    assert [found.ledger.promised("cpus", key) for key in ("_a", "_b", "")] == [0, 0, 4000]


def test_a_group_that_is_not_there():
    found = host()
    with pytest.raises(NoSuchGroup) as refused:
        found.check("web1", settings("acme"))
    assert refused.value.exit_code == 14
    found.adopt("web1", settings("acme", cpu_guarantee="1"))  # but one that runs goes on
    assert found.ledger.promised("cpus") == found.ledger.promised("cpus", "_acme") == 1000


def test_memory_is_protected_only_for_groups_in_which_something_runs():
    found = host()
    found.admit_group(group("acme", memory_guarantee="4G"))
    found.admit_group(group("idle", memory_guarantee="1G"))
    found.adopt("web1", settings("acme"))
    found.adopt("web2", settings(memory_guarantee="512M"))
    assert found.protected() == {"": 4 * GIB + 512 * MIB, "_acme": 4 * GIB}


def test_a_policy_counts_limits_of_groups_too():
    found = host()
    found.admit_group(group("acme", cpus="3"))
    found.adopt("web1", settings(cpu_guarantee="2"))
    with pytest.raises(Overcommitted):
        found.switch(Policy.GUARANTEED)
    found.release("web1")
    found.switch(Policy.GUARANTEED)
    assert found.ledger.promised("cpus") == 3000


# entitlement

def test_a_group_shares_what_is_its():
    groups = {"a": group("a", cpus="1"), "b": group("b", cpu_weight="300"), "c": group("c", "b")}
    ves = {"a1": settings("a"), "a2": settings("a", cpu_weight="300"), "b1": settings("b"), "c1": settings("c"),
           "alone": settings()}
    found = cpu_shares(5000, ves, Policy.BALANCED, groups)
    assert {ve: share // 1000 for ve, share in found.entitled.items()} == {
        "_a": 1000, "a1": 250, "a2": 750, "_b": 3000, "b1": 1500, "_c": 1500, "c1": 1500, "alone": 1000}
    assert found.weights == {"_a": 100, "a1": 100, "a2": 300, "_b": 300, "b1": 100, "_c": 100, "c1": 100, "alone": 100}
    assert not any(found.derived.values())


def test_weights_keep_a_groups_guarantee_beside_a_flood():
    groups = {"a": group("a", cpu_guarantee="0.5"), "b": group("b", cpu_weight="10000")}
    ves = {"good": settings("a"), **{f"bad{n}": settings("b", cpu_weight="10000") for n in range(10)}}
    found = cpu_shares(2000, ves, Policy.BALANCED, groups)
    assert found.weights["_a"] / (found.weights["_a"] + found.weights["_b"]) * 2 >= 0.5
    assert found.derived[""] and not found.derived["_a"] and not found.derived["_b"]
    assert found.weights["bad0"] == 10000, "in the group weights are as they were given"


@given(st.lists(st.tuples(st.sampled_from(("", *NAMES)), st.integers(0, 90), st.integers(1, 10000)), min_size=1,
                max_size=12))
def test_what_ves_of_groups_are_entitled_to_adds_up(found):
    groups = {"a": group("a", cpu_guarantee="1"), "b": group("b", cpus="0.5"), "c": group("c", "a")}
    ves = {f"ve{number}": parse_settings({"group": name or "none", "cpu-weight": str(weight),
                                          "cpu-guarantee": f"{guarantee / 100}" if guarantee else "0"})
           for number, (name, guarantee, weight) in enumerate(found)}
    shares = cpu_shares(4000, ves, Policy.BALANCED, groups).entitled
    assert sum(shares[ve] for ve in ves) <= 4_000_000
    assert sum(shares[ve] for ve in ves if ves[ve].group == "b") <= 500_000
    memory = memory_shares(GIB, ves, Policy.BALANCED, groups)
    assert GIB - len(memory) ** 2 <= sum(memory[ve] for ve in ves) <= GIB


# the control loop

def test_ves_keep_together_what_their_group_was_promised():
    standings = {ve: Standing(0, GIB, None) for ve in ("a1", "a2", "alone")}
    current = {"a1": 900 * MIB, "a2": 300 * MIB, "alone": GIB}
    found = in_groups(standings, current, [GroupMemory(("a1", "a2"), 1000 * MIB, None)])
    assert found["alone"] == standings["alone"]
    spare = {ve: current[ve] - found[ve].promised for ve in ("a1", "a2")}
    assert spare == {"a1": 100 * MIB, "a2": 100 * MIB}
    below = in_groups(standings, current, [GroupMemory(("a1", "a2"), 2000 * MIB, None)])
    assert all(below[ve].promised >= current[ve] for ve in ("a1", "a2")), "nothing to give"


def test_a_ve_whose_group_is_at_its_limit_is_at_its_limit():
    standings = {"a1": Standing(0, GIB, 2 * GIB), "a2": Standing(0, GIB, None)}
    found = in_groups(standings, {"a1": 700 * MIB, "a2": 300 * MIB}, [GroupMemory(("a1", "a2"), 0, 1000 * MIB)])
    assert found == {"a1": Standing(0, GIB, 700 * MIB), "a2": Standing(0, GIB, 300 * MIB)}


# definitions

@pytest.mark.parametrize(("texts", "error"), [
    ({"hostname": "x"}, BadParameter), ({"group": "b"}, BadParameter), ({"cpu-mask": "0"}, BadParameter),
    ({"nonsense": "1"}, BadParameter), ({"cpus": "much"}, BadValue), ({"cpus": "1", "cpu-guarantee": "2"}, BadValue),
])
def test_what_a_group_cannot_have(texts, error):
    with pytest.raises(error):
        parse_group_settings(texts)


def test_groups_on_disk(tmp_path, caplog):
    store = GroupStore(str(tmp_path / "group"))
    assert store.load() == []
    found = [group("acme", cpus="2", memory="1G", memory_guarantee="512M", description='a "line"'),
             group("a-team", "acme", cpu_weight="300")]
    for each in found:
        store.save(each)
    assert store.load() == found
    (tmp_path / "group/broken.toml").write_text("format = 1\nparent = [")
    (tmp_path / "group/orphan.toml").write_text('format = 1\nparent = "missing"\n')
    (tmp_path / "group/self.toml").write_text('format = 1\nparent = "self"\n')
    (tmp_path / "group/future.toml").write_text("format = 2\n")
    assert store.load() == found
    (tmp_path / "group/acme.toml.new").write_text("form")  # by a daemon that was killed
    assert store.load() == found and not (tmp_path / "group/acme.toml.new").exists()
    assert all(f"{name}.toml" in caplog.text for name in ("broken", "orphan", "self", "future"))
    store.remove("a-team")
    store.remove("a-team")
    assert store.load() == found[:1]


def test_groups_in_a_ring_have_an_end():
    ring = {"a": Group("a", "b"), "b": Group("b", "a")}
    assert len(line_of(ring, "a")) <= MOST_LEVELS
    assert [each.name for each in line_of({"b": Group("b"), "a": Group("a", "b")}, "a")] == ["b", "a"]


# cgroups: directories here

def test_where_the_cgroups_of_ves_in_groups_are(tmp_path):
    top = str(tmp_path)
    tree = CgroupTree(top)
    os.mkdir(f"{top}/ve/alone")
    tree.settle("web1", ["_acme", "_team"])
    assert tree.make_group("_acme", []) and tree.make_group("_team", ["_acme"])
    assert not tree.make_group("_acme", [])
    assert "web1" not in tree
    os.mkdir(tree.path("web1"))
    assert tree.path("web1") == f"{top}/ve/_acme/_team/web1" and "web1" in tree and "alone" in tree
    assert (tree.group_of("web1"), tree.group_of("alone")) == ("_team", "")
    assert tree.names() == ["alone", "web1"] and tree.groups() == ["_acme", "_team"]
    again = CgroupTree(top)  # an other daemon
    assert again.path("web1") == tree.path("web1") and again.group_of("web1") == "_team"
    assert (again.names(), again.groups()) == (tree.names(), tree.groups())
    assert tree.remove_empty("web1")
    tree.leave("web1")
    assert os.listdir(f"{top}/ve") == ["alone"] and tree.groups() == []
    assert tree.place("web1") == "web1"


def test_a_group_stays_while_a_ve_is_about_to_come(tmp_path):
    tree = CgroupTree(str(tmp_path))
    for ve in ("a", "b"):
        tree.settle(ve, ["_acme"])
        tree.make_group("_acme", [])
    tree.leave("a")
    assert "_acme" in tree
    tree.leave("b")
    tree.leave("b")
    assert "_acme" not in tree


def test_what_a_crash_has_left_of_groups_goes(tmp_path):
    for path in ("_empty/_inner", "_used/web1/inside"):
        os.makedirs(f"{tmp_path}/ve/{path}")
    tree = CgroupTree(str(tmp_path))
    assert tree.names() == ["web1"] and tree.groups() == ["_empty", "_inner", "_used"]
    tree.tidy_groups()
    assert tree.groups() == ["_used"] and os.listdir(f"{tmp_path}/ve") == ["_used"]
