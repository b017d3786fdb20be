# SPDX-License-Identifier: GPL-2.0-or-later
"""The order of starts and stops, on graphs that nobody thinks of."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vemgr.core.ordering import Node, Sequence, find_cycle, reverse

NAMES = [f"v{number}" for number in range(9)]


@st.composite
def graphs(draw, *, cyclic=True):
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=len(NAMES)))
    return [Node(name, draw(st.integers(-3, 3)),
                 tuple(draw(st.lists(st.sampled_from([*(names if cyclic else names[:place]), "nobody"]),
                                     unique=True, max_size=4))))
            for place, name in enumerate(names)]


def play(sequence, width, choose):
    """Begin as many as may be, let one of them settle by `choose`; returns who began when who was settled."""
    begun, going, settled = [], [], set()
    while sequence.remaining:
        for name in sequence.take(width - len(going)):
            begun.append((name, frozenset(settled)))
            going.append(name)
        assert going, "nothing goes on and nothing may begin"
        assert len(going) <= width
        done = going.pop(choose(len(going)))
        settled.add(done)
        sequence.settled(done)
    assert sequence.take(width) == []
    return begun


@given(graphs(), st.integers(1, 4), st.randoms(use_true_random=False))
def test_each_begins_once_and_after_what_it_waits_for(nodes, width, random):
    sequence = Sequence(nodes)
    begun = play(sequence, width, random.randrange)
    assert sorted(name for name, _ in begun) == sorted(node.name for node in nodes)
    cut = {(cycle[0], cycle[1]) for cycle in sequence.cut}
    there = {node.name for node in nodes}
    for node in nodes:
        settled = dict(begun)[node.name]
        assert {before for before in node.after if before in there and (node.name, before) not in cut} <= settled


@given(graphs(cyclic=False))
def test_without_a_cycle_nothing_is_cut(nodes):
    assert Sequence(nodes).cut == []
    assert all(find_cycle({node.name: node.after for node in nodes}, node.name) == [] for node in nodes)


@given(graphs())
def test_a_cycle_is_found_by_who_is_on_it_and_told_as_it_is(nodes):
    after = {node.name: node.after for node in nodes}
    cycles = {node.name: find_cycle(after, node.name) for node in nodes}
    for name, cycle in cycles.items():
        if cycle:
            assert cycle[0] == cycle[-1] == name and len(cycle) > 1
            assert all(before in after[later] for later, before in itertools.pairwise(cycle))
    assert bool(Sequence(nodes).cut) == any(cycles.values())
    for cycle in Sequence(nodes).cut:
        assert all(before in after[later] for later, before in itertools.pairwise(cycle))


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.integers(-3, 3)), unique_by=lambda pair: pair[0]),
       st.integers(1, 4))
def test_the_more_urgent_begin_first(pairs, width):
    begun = [name for name, _ in play(Sequence(Node(name, priority) for name, priority in pairs), width, lambda _: 0)]
    assert begun == [name for name, _ in sorted(pairs, key=lambda pair: (-pair[1], pair[0]))]


@given(graphs(cyclic=False))
def test_what_an_urgent_one_waits_for_is_urgent_too(nodes):
    """Of two that may begin, the one begins first that the most urgent of all stands behind."""
    by_name = {node.name: node for node in nodes}

    def urgency(name):
        return max([by_name[name].priority, *(urgency(node.name) for node in nodes if name in node.after)])

    sequence = Sequence(nodes)
    while sequence.remaining:
        ready = sequence.take(len(nodes))
        assert ready == sorted(ready, key=lambda name: (-urgency(name), name))
        for name in ready:
            sequence.settled(name)


@given(graphs(cyclic=False))
def test_the_reverse(nodes):
    """Who is stopped has nobody left that came after it."""
    for name, settled in play(Sequence(reverse(nodes)), 2, lambda _: 0):
        assert {node.name for node in nodes if name in node.after} <= settled
    there = {node.name for node in nodes}
    assert {(node.name, node.priority, frozenset(node.after) & there) for node in nodes} == {
        (node.name, node.priority, frozenset(node.after)) for node in reverse(reverse(nodes))}


def test_chains():
    sequence = Sequence([Node("db"), Node("app", after=("db",)), Node("web", after=("app", "db")), Node("log")])
    assert [sequence.chain(name) for name in ("db", "app", "web", "log")] == [3, 2, 1, 1]


def test_a_long_chain_needs_no_deep_stack():
    nodes = [Node("v0"), *(Node(f"v{n}", after=(f"v{n - 1}",)) for n in range(1, 5000))]
    assert Sequence(nodes).chain("v0") == 5000
    assert find_cycle({node.name: node.after for node in nodes}, "v4999") == []


@pytest.mark.parametrize(("after", "cycle"), [
    ({"a": ("a",)}, ["a", "a"]),
    ({"a": ("b",), "b": ("c",), "c": ("a",)}, ["a", "b", "c", "a"]),
    ({"a": ("b", "c"), "b": ("c",), "c": ("a",)}, ["a", "c", "a"]),
    ({"a": ("b",), "b": ("c",), "c": ("b",)}, []),  # there is one, but not by way of a
])
def test_cycles(after, cycle):
    assert find_cycle(after, "a") == cycle
