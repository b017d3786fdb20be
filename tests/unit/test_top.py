# SPDX-License-Identifier: GPL-2.0-or-later
"""What `vemgr top` makes of two looks."""

import pytest

from vemgr.cli.rates import KEYS, Look, rows, sorted_by, table

MIB = 1 << 20


def ve(name, limit=None, **held):
    counters = [{"resource": key.replace("_", "-"), "held": amount, "limit": limit if key == "memory" else None}
                for key, amount in held.items()]
    return {"name": name, "state": "running" if held else "stopped", "counters": counters}


def of(before, now, seconds=2.0):
    return rows(Look(10.0, before), Look(10.0 + seconds, now))


def test_what_was_used_in_a_second():
    (row,) = of([ve("a", cpus=1_000_000, io_read=0, pids=3)],
                [ve("a", limit=64 * MIB, cpus=2_500_000, io_read=4096, pids=4, memory=16 * MIB), ve("off")])
    assert row.amounts == {"cpus": 750_000, "io-read": 2048, "pids": 4, "memory": 16 * MIB}
    heading, line = table([row], 80)
    assert heading.split() == ["NAME", "CPU%", "MEM", "MEM%", "PIDS", "READ/s", "WRITE/s", "IN/s", "OUT/s"]
    assert line.split() == ["a", "75.0", "16M", "25", "4", "2K", "n/a", "n/a", "n/a"]


def test_one_that_was_started_again_or_is_new_has_no_rate_yet():
    again, new = of([ve("a", cpus=100)], [ve("a", cpus=5), ve("b", cpus=5)])
    assert again.amounts == new.amounts == {}


def test_all_fits_into_80_columns_and_long_names_get_what_there_is():
    found = of([], [ve("n" * 63, memory=1)])
    assert [len(line) for line in table(found, 80)] == [80, 80]
    assert table(found, 80)[1].startswith("n" * 20 + "+ ")
    assert table(found, 200)[1].startswith("n" * 63 + " ")
    assert max(map(len, table(found, 30))) == 30


@pytest.mark.parametrize(("key", "first"), [("c", "cpu"), ("m", "mem"), ("i", "disk"), ("n", "net"), ("p", "many")])
def test_sorting(key, first):
    names = {"cpu": "cpus", "mem": "memory", "disk": "io_write", "net": "net_in", "many": "pids"}
    zeros = dict.fromkeys(names.values(), 0)
    now = [ve(name, **{**zeros, resource: 9}) for name, resource in sorted(names.items())]
    found = sorted_by(key, of([ve(name, **zeros) for name in sorted(names)], now))
    assert found[0].name == first and set(KEYS) == set("cminp")
    assert [row.name for row in found[1:]] == sorted(set(names) - {first})
