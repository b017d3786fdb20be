# SPDX-License-Identifier: GPL-2.0-or-later
"""A VE that has used up its memory, its processes, its disk: an event says so, a neighbour works as fast as before, and
the VE is well again when it has freed something."""

import json
import statistics
import time

import pytest

# Some work with memory and system calls, the same each time; prints its seconds.
WORK = """
import os, time
began = time.monotonic()
for _ in range(600):
    sum(range(3000)); os.stat("/"); bytes(200000)
print(time.monotonic() - began)
"""
HOG = """
import time
hoard = []
while True:
    hoard.append(b"x" * (1 << 20))
"""
BOMB = """
import os, time
while True:
    try:
        if not os.fork():
            time.sleep(1000)
    except OSError:
        break
time.sleep(1000)
"""
FILL = """
import errno, os, time
for name in ("/root/fill", "/root/rest"):
    try:
        with open(name, "wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
print("full", flush=True)
time.sleep(1000)
"""


def seconds(ve, times=3):
    return statistics.median(float(ve.exec("/usr/bin/python3", "-c", WORK).stdout) for _ in range(times))


def kinds(ve):
    lines = ve.vemgr("events", ve.name, "--json").stdout.splitlines()
    return {json.loads(line)["kind"] for line in lines}


@pytest.fixture(scope="module")
def neighbour(module_ves):
    return module_ves("neighbour", template="host", cpus=1)


CASES = {
    "memory": ({"memory": "96M", "swap": "0"}, HOG, "oom-kill", []),
    "processes": ({"pids": 60}, BOMB, "pids-max", []),
    "disk": ({"disk": "64M"}, FILL, "disk-full", ["/root/fill", "/root/rest"]),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_nobody_elses_trouble(make_ve, neighbour, until, figure, case):
    settings, program, kind, files = CASES[case]
    ve = make_ve(f"full-{case}", template="host", cpus=1, **settings)
    solo = seconds(neighbour)
    process = ve.spawn("/usr/bin/python3", "-c", program)
    until(lambda: kind in kinds(ve), 90, f"an event {kind}")
    beside = seconds(neighbour)
    figure(f"neighbour's work beside a VE that is out of {case}: {beside / solo:.2f} of its time alone")
    assert beside < 2 * solo, "on an emulated machine nothing is measured more exactly"
    assert neighbour.show()["state"] == "running"
    assert not {"oom", "oom-kill", "pids-max", "disk-full"} & kinds(neighbour)

    assert ve.show()["state"] == "running", "a full VE goes on"
    process.kill()  # the command line; what runs inside is ended by the VE's own means
    if case == "processes":
        ve.set(pids=200)  # room for a command
    ve.exec("/bin/sh", "-c", "pkill -9 python3; sleep 0.2; exit 0")
    if files:
        ve.exec("rm", *files)
    deadline = time.monotonic() + 30
    again = "echo works >/root/again && sync && cat /root/again"
    while ve.exec("/bin/sh", "-c", again, status=None).stdout != "works\n":
        assert time.monotonic() < deadline, "it does not recover"
    assert seconds(ve) < 3 * solo
