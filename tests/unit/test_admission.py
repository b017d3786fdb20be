# SPDX-License-Identifier: GPL-2.0-or-later
"""Admission: whatever is started, changed and stopped in whatever order, no more is promised than there is."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vemgr.core.config import parse_settings
from vemgr.core.errors import Overcommitted
from vemgr.core.scheduling import Policy, parse_scheduler
from vemgr.runtime.scheduling.promises import Promises
from vemgr.scheduler.admission import Capacity, Ledger, Promise, capacities, promise_of
from vemgr.scheduler.knobs import MOST_WEIGHT
from vemgr.scheduler.shares import cpu_shares

MIB, GIB = 1 << 20, 1 << 30


def promises(cpus=4000, memory=8 * GIB, **config):
    return Promises(parse_scheduler({"reserve-cpus": "0%/0/0", "reserve-memory": "0%/0/0", **config}), cpus, memory)


def settings(guarantee="0", memory_guarantee="0", **more):
    return parse_settings({"cpu-guarantee": guarantee, "memory-guarantee": memory_guarantee, **more})


@pytest.mark.parametrize("policy", Policy)
def test_ten_thousand_steps_never_promise_more_than_there_is(policy):
    host = promises(policy=policy)
    chance = random.Random(policy)
    ves = [f"ve{number}" for number in range(30)]
    refused = admitted = 0
    for step in range(10_000):
        ve = chance.choice(ves)
        if chance.random() < 0.3:
            host.release(ve)
        else:  # a start or a change; sometimes it fails on the way
            wish = settings(f"{chance.choice([0, 0.25, 0.5, 1, 3.9])}", f"{chance.choice([0, 64, 512, 3000])}M",
                            **({"cpus": "4", "memory": "3000M"} if chance.random() < 0.2 else {}))
            before = dict(host.running), dict(host.ledger.held)
            try:
                with host.admitted(ve, wish):
                    if chance.random() < 0.1:
                        raise KeyError
                admitted += 1
            except Overcommitted:
                refused += 1
                assert (host.running, host.ledger.held) == before
            except KeyError:
                assert (host.running, host.ledger.held) == before
        for resource, capacity in host.ledger.capacity.items():
            held = sum(getattr(promise_of(found, policy), resource) for found in host.running.values())
            assert held == host.ledger.promised(resource) <= capacity.promisable, step
            assert host.ledger.free(resource) == capacity.promisable - held
    assert refused > 500 and admitted > 500, "both must have been tried"


def test_a_refusal_says_who_holds_what_and_what_would_fit():
    host = Promises(parse_scheduler({"reserve-cpus": "5%/0.1/1"}), 4000, 8 * GIB)
    for number in range(7):
        host.adopt(f"web{number}", settings("0.5" if number else "0.3", "1G" if number == 3 else "0"))
    with pytest.raises(Overcommitted) as refused:
        host.check("db1", settings("2"))
    error = refused.value
    assert (error.exit_code, error.identifier) == (36, "Overcommitted")
    assert str(error) == (
        "VE db1 cannot be guaranteed 2 CPUs: the host has 4 CPUs, keeps 0.2 CPUs for itself, and can promise 3.8 CPUs; "
        "promised to others: 3.3 CPUs (web1 0.5 CPUs, web2 0.5 CPUs, web3 0.5 CPUs, web4 0.5 CPUs, web5 0.5 CPUs and "
        "2 more); 0.5 CPUs would fit: ask for that, or stop or change one of the others")
    assert {key: error.facts[key] for key in ("field", "ve", "asked", "promised", "fits")} == {
        "field": "cpu-guarantee", "ve": "db1", "asked": "2000", "promised": "3300", "fits": "500"}
    assert error.facts["holders"].endswith("web6=500,web0=300")
    host.check("db1", settings(f"{int(error.facts['fits']) / 1000}"))
    with pytest.raises(Overcommitted, match=r"cannot be guaranteed 7000M.*\(web3 1024M\); 6676M would fit"):
        host.check("db1", settings("0", "7000M"))


def test_a_change_counts_only_what_it_adds():
    host = promises()
    host.adopt("web1", settings("3"))
    host.adopt("web2", settings("1"))
    host.check("web1", settings("3"))
    host.check("web1", settings("2"))
    with pytest.raises(Overcommitted, match="3 CPUs would fit"):
        host.check("web1", settings("3.1"))


def test_less_is_never_refused_though_the_host_has_shrunk():
    host = promises(cpus=1000)
    host.adopt("web1", settings("3"))
    assert host.ledger.free("cpus") == 0
    host.check("web1", settings("2"))
    host.check("idle", settings())
    with pytest.raises(Overcommitted, match="0 CPUs would fit"):
        host.check("web2", settings("0.01"))


@pytest.mark.parametrize(("policy", "texts", "promise"), [
    ("balanced", {"cpus": "2", "memory": "1G"}, Promise()), ("guaranteed", {}, Promise()),
    ("guaranteed", {"cpus": "2", "memory": "1G"}, Promise(2000, GIB)),
    ("guaranteed", {"cpus": "2", "cpu-guarantee": "1", "memory": "1G"}, Promise(1000, GIB)),
    ("dense", {"cpus": "2", "memory-guarantee": "1M"}, Promise(0, MIB)),
])
def test_what_a_policy_takes_for_a_promise(policy, texts, promise):
    assert promise_of(parse_settings(texts), Policy(policy)) == promise


def test_overcommit():
    config = parse_scheduler({"policy": "dense", "overcommit-cpus": 1.5})
    found = capacities(config, 4000, 8 * GIB)
    assert found["cpus"] == Capacity(4000, 200, 1500) and found["cpus"].promisable == 5700
    with pytest.raises(Overcommitted, match=r"can promise 5\.7 CPUs, 1\.5 times over"):
        Ledger(found).check("web1", Promise(5701))


def test_over_a_restart_the_promise_is_kept():
    host = promises()
    host.adopt("web1", settings("3"))
    with host.kept("web1", lambda: True):
        host.release("web1")  # it has stopped
        with pytest.raises(Overcommitted):
            host.check("web2", settings("2"))
        with host.admitted("web1", settings("4")):
            pass
    assert host.ledger.promised("cpus") == 4000
    with pytest.raises(KeyError), host.kept("web1", lambda: False):
        host.release("web1")
        raise KeyError
    assert host.ledger.promised("cpus") == 0 and host.running == {}


# weights

SETTINGS = st.builds(lambda guarantee, more, weight: parse_settings({
    "cpu-guarantee": f"{guarantee / 100:.2f}" if guarantee else "0", "cpu-weight": str(weight),
    "cpus": f"{(guarantee + more) / 100:.2f}" if more else "unlimited"}),
    st.integers(0, 100), st.integers(0, 200), st.integers(1, 10000))


@given(st.integers(100, 4000), st.lists(SETTINGS, max_size=12))
def test_weights_as_the_kernel_fills_them_keep_every_guarantee(capacity, found):
    """The kernel, with all VEs busy, shares by weight and fills what a limit leaves over: as `fill` does without
    guarantees."""
    ves = {f"ve{number}": each for number, each in enumerate(found)}
    shares = cpu_shares(capacity, ves, Policy.BALANCED)
    if not any(each.cpu_guarantee for each in found):
        assert shares.weights == {ve: each.cpu_weight for ve, each in ves.items()}
        return
    if sum(each.cpu_guarantee for each in found) > capacity:
        return
    left, busy, got = float(capacity), dict(ves), dict.fromkeys(ves, 0.0)
    while busy:
        total = sum(shares.weights[ve] for ve in busy)
        full = {ve for ve, each in busy.items() if each.cpus is not None
                and each.cpus <= left * shares.weights[ve] / total + 1e-9}
        for ve in full or busy:
            limit = ves[ve].cpus
            got[ve] = float(limit) if full and limit is not None else left * shares.weights[ve] / total
        if not full:
            break
        left -= sum(got[ve] for ve in full)
        for ve in full:
            del busy[ve]
    for ve, each in ves.items():
        assert got[ve] >= each.cpu_guarantee * (1 - 2 * len(ves) / MOST_WEIGHT) - 1e-6
        assert got[ve] >= shares.entitled[ve] / 1000 * 0.99 - capacity * len(ves) / MOST_WEIGHT


def test_a_guarantee_beside_ten_heavy_neighbours():
    ves = {"good": settings("0.5"), **{f"bad{n}": parse_settings({"cpu-weight": "10000"}) for n in range(10)}}
    found = cpu_shares(2000, ves, Policy.BALANCED).weights
    assert found["good"] / sum(found.values()) * 2 >= 0.5
    assert len({found[f"bad{n}"] for n in range(10)}) == 1


def test_who_has_what_others_leave_is_promised_no_cpu_and_takes_no_weight():
    ves = {name: parse_settings(texts) for name, texts in {
        "kept": {"cpu-guarantee": "1"}, "one": {}, "two": {"cpu-weight": "200"},
        "rest": {"cpu-weight": "idle", "cpus": "2"}}.items()}
    assert promise_of(ves["rest"], Policy.GUARANTEED) == Promise()
    found = cpu_shares(4000, ves, Policy.BALANCED)
    without = cpu_shares(4000, {name: each for name, each in ves.items() if name != "rest"}, Policy.BALANCED)
    assert "rest" not in found.weights
    assert found.entitled["rest"] < 4_000  # of 4,000,000: the kernel has 3 for it where weight 100 is 1024
    for name, weight in without.weights.items():
        assert abs(found.weights[name] - weight) <= weight * 0.002 + 1
    plain = cpu_shares(4000, {"one": ves["one"], "rest": ves["rest"]}, Policy.BALANCED)
    assert plain.weights == {"one": 100} and plain.entitled["one"] > 3_980_000
