# SPDX-License-Identifier: GPL-2.0-or-later
"""What the control loop decides: from whom memory is taken, from whom it is not, and which guarantee is not kept."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from vemgr.core.config import MIB
from vemgr.scheduler.control import Cpu, Memory, Reclaimer, Shortfalls, Snapshot, Standing

RESERVE = 512 * MIB


def standing(promised=0, entitled=1000, limit=None):
    return Standing(promised * MIB, entitled * MIB, limit and limit * MIB)


def memory(current, idle=0, refaults=0, stalled=0):
    return Memory(current * MIB, idle * MIB, refaults, stalled)


class Host:
    def __init__(self, **standings):
        self.reclaimer, self.standings, self.time = Reclaimer(), standings, 0.0

    def tick(self, available, seconds=2.0, stalled=0.0, **ves):
        """Takes by VE, in MiB; None when it was not worth to look."""
        self.time += seconds
        if not self.reclaimer.is_due(available * MIB, RESERVE, stalled):
            return None
        takes = self.reclaimer.decide(Snapshot(self.time, available * MIB, ves), self.standings)
        self.reasons = {take.ve: take.reason for take in takes}
        return {take.ve: take.amount // MIB for take in takes}


def test_with_memory_to_spare_nobody_is_looked_at():
    assert Host().tick(4096) is None


def test_idle_memory_goes_first_and_only_above_the_guarantee():
    host = Host(idle=standing(), busy=standing(), safe=standing(promised=400), part=standing(promised=350))
    ves = {"idle": memory(400, 400), "busy": memory(900, 0), "safe": memory(400, 400), "part": memory(400, 400)}
    assert host.tick(100, **ves) == {"idle": 100, "part": 12}
    assert host.reasons["idle"] == "400M idle above its guarantee; the host has 100M left"


def test_shortage_ends_only_when_there_is_plenty():
    host = Host(a=standing())
    ves = {"a": memory(400, 400)}
    assert host.tick(600, **ves) is None
    assert host.tick(500, **ves) == {"a": 100}
    assert host.tick(600, **ves) == {"a": 100}
    assert host.tick(800, **ves) is None
    assert host.tick(600, **ves) is None


def test_a_ve_that_waits_is_helped_by_the_idle_and_loses_nothing_itself():
    host = Host(starved=standing(), idle=standing())
    first, later = memory(300, 300, stalled=0), memory(300, 300, stalled=400_000)
    assert host.tick(4096, stalled=0.2, starved=first, idle=memory(200, 200)) == {}
    assert host.tick(4096, stalled=0.2, starved=later, idle=memory(200, 200)) == {"idle": 50}
    assert host.reasons["idle"].endswith("VE starved waits for memory 20% of the time")


def test_a_ve_that_waits_at_its_own_limit_is_not_helped():
    host = Host(full=standing(limit=300), idle=standing())
    for stalled in (0, 400_000):
        assert host.tick(4096, stalled=0.2, full=memory(299, stalled=stalled), idle=memory(200, 200)) == {}


def test_what_is_above_entitlement_goes_only_to_those_below_theirs():
    host = Host(starved=standing(entitled=500), leak=standing(entitled=500))
    for stalled in (0, 400_000):
        found = host.tick(4096, stalled=0.2, starved=memory(300, stalled=stalled), leak=memory(900))
    assert found == {"leak": 50} and "above what it is entitled to" in host.reasons["leak"]
    satisfied = Host(starved=standing(entitled=200), leak=standing(entitled=500))
    for stalled in (0, 400_000):
        found = satisfied.tick(4096, stalled=0.2, starved=memory(300, stalled=stalled), leak=memory(900))
    assert found == {}


def test_who_reads_it_back_is_left_alone_longer_each_time():
    host = Host(a=standing())
    refaults, given_at = 0, []
    while host.time < 200:
        if host.tick(100, a=memory(400, 400, refaults)):
            given_at.append(host.time)
            refaults += 100 * MIB // 4096
    rests = [later - earlier for earlier, later in pairwise(given_at)]
    assert rests == sorted(rests) and rests[0] >= 10 and rests[-1] >= 40


def test_a_new_ve_of_the_same_name_does_not_inherit_the_rest():
    host = Host(a=standing())
    host.tick(100, a=memory(400, 400))
    assert host.tick(100, a=memory(400, 400, refaults=10**6)) == {}
    host.tick(100)
    assert host.tick(100, a=memory(400, 400)) == {"a": 100}


readings = st.builds(memory, st.integers(0, 4000), st.integers(0, 4000), st.integers(0, 10**6),
                     st.integers(0, 10**7))
standings = st.builds(standing, st.integers(0, 2000), st.integers(0, 2000), st.none() | st.integers(8, 4000))


@given(st.lists(st.tuples(st.integers(0, 4000), st.dictionaries(st.sampled_from("abc"), readings)), max_size=6),
       st.fixed_dictionaries({"a": standings, "b": standings, "c": standings}))
def test_nothing_is_taken_from_below_a_guarantee(ticks, known):
    host = Host(**known)
    for available, ves in ticks:
        for ve, amount in (host.tick(available, stalled=1.0, **ves) or {}).items():
            assert 0 < amount <= 256
            assert ves[ve].current - amount * MIB >= known[ve].promised


def test_a_guarantee_that_is_not_kept_is_told_once():
    shortfalls, promised = Shortfalls(), {"a": 500}

    def look(second, used, waited=1.0, throttled=0):
        return shortfalls.look(float(second), {"a": Cpu(int(used * 1e6), int(second * waited * 1e6), throttled)},
                               promised)

    assert look(1, 0.0) == look(3, 0.6) == {}
    assert look(5, 1.2) == {"a": "guaranteed 0.5 CPUs, got 0.300, waited 100% of the time"}
    assert look(7, 1.8) == {}, "told already"
    assert look(9, 2.8) == look(11, 3.4) == {}, "it was kept meanwhile"
    assert "got 0.300" in look(13, 4.0)["a"]


def test_who_does_not_want_more_or_is_limited_itself_is_not_short():
    for waited, throttled in ((0.1, 0), (1.0, 1)):
        shortfalls = Shortfalls()
        for second in range(1, 20, 2):
            cpu = Cpu(second * 100_000, int(second * waited * 1e6), second * throttled)
            assert shortfalls.look(float(second), {"a": cpu}, {"a": 500}) == {}
