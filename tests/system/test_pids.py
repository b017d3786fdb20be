# SPDX-License-Identifier: GPL-2.0-or-later
"""The process limit."""

import time

# Every process tries again and again, whatever it is told.
BOMB = """
import os, time
while True:
    try:
        os.fork()
    except OSError:
        time.sleep(0.2)
"""


def peak(ve, seconds):
    most, deadline = 0, time.monotonic() + seconds
    while time.monotonic() < deadline:
        most = max(most, ve.number("pids.current"))
        time.sleep(0.01)
    return most


def test_a_fork_bomb_stops_at_the_limit(make_ve, until, figure):
    ve, neighbour = make_ve("bomb", template="host", pids=50), make_ve("quiet")
    ve.spawn("/usr/bin/python3", "-c", BOMB)
    until(lambda: ve.table("pids.events")["max"] > 0, 60, "the bomb meets the limit")
    most = peak(ve, 4)
    figure(f"a fork bomb under --pids 50 had {most} processes, {ve.table('pids.events')['max']} forks refused")
    assert most == 50
    assert neighbour.exec("sh", "-c", "ls / | wc -l").returncode == 0

    refused = ve.exec("true", status=None)
    assert refused.returncode != 0
    assert "vemgr:" in refused.stderr, "an exec that does not fit is told so"
    assert peak(ve, 0.5) == 50

    ve.set(pids=60)
    assert ve.in_force("pids") == "60"
    until(lambda: ve.number("pids.current") == 60, 30, "the limit goes up while it runs")
    ve.set(pids=50)
    assert ve.in_force("pids") == "50"

    began = time.monotonic()
    ve.vemgr("stop", "--kill", ve.name)
    assert time.monotonic() - began < 10
