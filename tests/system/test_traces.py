# SPDX-License-Identifier: GPL-2.0-or-later
"""What a hundred VEs leave behind: nothing."""

import contextlib
import os
import struct
import time

import pytest

from vemgr.api.client import Client

CYCLES = 100
WARM_UP = 3  # the bridge, the firewall table and what is cached come with the first


def cycle(client, number):
    """By the API, as the command line does it, without its half second of start-up on this machine."""
    name = f"cycle-{number % 7}"
    client.call("Create", {"name": name, "template": "busybox", "settings": {"memory": "64M", "pids": "50"}})
    client.call("Start", {"name": name})
    if number % 5 == 0:
        run(client, name)
    assert client.call("Stop", {"name": name, "timeout": None, "kill": False}) == {"step": "clean"}
    client.call("Destroy", {"name": name, "force": False})


def run(client, name):
    null = [os.open("/dev/null", os.O_RDWR) for _ in range(3)]
    command = {"argv": ["/bin/sh", "-c", "exit 4"], "env": {}, "cwd": "", "user": "root", "tty": False}
    reply = client.call("Exec", {"name": name, "command": command, "stdio": [0, 1, 2]}, null)
    for fd in null:
        os.close(fd)
    (status,) = reply["descriptors"]
    with os.fdopen(status, "rb") as file:
        assert os.waitstatus_to_exitcode(struct.unpack("=i", file.read(4))[0]) == 4


@pytest.mark.timeout(400)
def test_a_hundred_cycles_leave_no_trace(vemgr, traces, until, figure):
    client = Client("/run/vemgr/vemgr.sock")
    with contextlib.closing(client):
        for number in range(WARM_UP):
            cycle(client, number * 5)
        until(lambda: not traces().links_of_ves, 20)
        before = traces()
        began = time.monotonic()
        for number in range(CYCLES):
            cycle(client, number)
        took = time.monotonic() - began
        # The kernel takes a VE's link down behind our back.
        until(lambda: not traces().links_of_ves, 20)
        after = traces()
    figure(f"{took / CYCLES:.2f} s for create, start, stop, destroy; memory in KiB before and after, "
           f"of the daemon {before.memory['vemgr']}, {after.memory['vemgr']}, "
           f"of the keeper {before.memory['vemgr-keeper']}, {after.memory['vemgr-keeper']}")
    assert after == before
    for unit, kib in after.memory.items():
        assert kib - before.memory[unit] < 8 * 1024, f"{unit} grows with every VE"
