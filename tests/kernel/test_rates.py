# SPDX-License-Identifier: GPL-2.0-or-later
"""Rates of VEs' links: in force both ways, changed live, and gone with the VE. How exact they are scripts/bench-limits
tells; here they only have to be far from the hundreds of Mbit/s of a free link."""

import json
import subprocess

import pytest

# Sends zeros to a port for some seconds; or takes what comes there and prints bit/s from the second half on.
TALK = """
import socket, sys, time
role, address, port, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
if role == "take":
    with socket.create_server((address, port)) as listener:
        print("listening", flush=True)
        peer = listener.accept()[0]
        began, total, first = time.monotonic(), 0, None
        while data := peer.recv(65536):
            now = time.monotonic() - began
            if first is None and now > seconds / 2:
                first, total = now, 0
            elif first is not None:
                total += len(data)
            last = now
        print(int(total * 8 / (last - first)), flush=True)
else:
    with socket.create_connection((address, port)) as peer:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            peer.sendall(bytes(16384))
"""
# Packets at once, more than may wait.
BURST = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
    for _ in range(1000):
        ours.sendto(bytes(1400), (sys.argv[1], 9))
"""
RATE = 20_000_000


class Wire:
    """Traffic between two VEs of the same network."""

    def __init__(self, vemgr):
        self.vemgr = vemgr

    def python(self, ve, *words, program=TALK):
        pid = self.vemgr.show(ve)["pid"]
        return subprocess.Popen(["nsenter", "-t", str(pid), "-n", "/usr/bin/python3", "-c", program, *map(str, words)],
                                stdout=subprocess.PIPE, text=True)

    def burst(self, sender, taker):
        with self.python(sender, self.vemgr.show(taker)["address"], program=BURST) as send:
            assert send.wait(60) == 0

    def dropped(self, ve):
        """Packets, to it and from it."""
        (found,) = self.vemgr.json("stats", ve)
        failures = {row["resource"]: row["failures"] for row in found["counters"]}
        return failures["net-in"], failures["net-out"]

    def measure(self, sender, taker):
        """bit/s of TCP from one VE to another."""
        address = self.vemgr.show(taker)["address"]
        with self.python(taker, "take", address, 7000, 1.5) as take:
            assert take.stdout.readline() == "listening\n"
            with self.python(sender, "send", address, 7000, 1.5) as send:
                assert send.wait(60) == 0
            return int(take.stdout.readline())

    def detours(self):
        return [name for name in self.vemgr.links() if name.startswith("vi")]


@pytest.fixture
def wire(vemgr):
    if vemgr("create", "probe", "--template", "bb", "--network-rate", "1M", code=None).returncode == 5:
        pytest.skip("this kernel has no tbf, ifb, ingress, u32 or mirred")
    vemgr("destroy", "probe")
    # A daemon keeps a system call filter for each kind of VE that it has started: those of other tests are to be none
    # of a picture that is compared with another daemon's.
    vemgr.kill(vemgr.daemon_pid())
    vemgr("list")
    before = vemgr.traces()
    yield Wire(vemgr)
    for ve in vemgr.json("list"):
        vemgr("destroy", "--force", ve["name"])
    vemgr.assert_traces(before)


def started(vemgr, *options):
    ve = vemgr.create(*options)
    vemgr("start", ve)
    return ve


def test_rates_hold_both_ways_and_change_live(vemgr, wire):
    limited, free = started(vemgr, "--network-rate", "20M"), started(vemgr)
    assert len(wire.detours()) == 1
    for sender, taker in ((limited, free), (free, limited)):
        assert RATE / 4 < wire.measure(sender, taker) < RATE * 1.5
    usage = vemgr.show(limited)["usage"]
    assert usage["network.in"] > 1_000_000 and usage["network.out"] > 1_000_000
    vemgr("set", limited, "--network-rate", "20M:in")
    assert wire.detours() == []
    assert wire.measure(limited, free) > RATE * 2


def test_what_a_rate_has_no_room_for_is_counted(vemgr, wire):
    limited, free = started(vemgr, "--network-rate", "1M"), started(vemgr)
    wire.burst(free, limited)
    incoming, outgoing = wire.dropped(limited)
    assert incoming > 500 and outgoing < 100
    wire.burst(limited, free)
    assert wire.dropped(limited)[1] > 500 and wire.dropped(free) == (0, 0)


def test_what_was_made_for_a_rate_goes_with_the_ve(vemgr, wire):
    ve = started(vemgr, "--network-rate", "20M")
    vemgr("restart", ve)
    assert len(wire.detours()) == 1
    vemgr.kill(vemgr.daemon_pid())
    assert json.loads(vemgr.out("list", "--json"))[0]["state"] == "running"
    assert len(wire.detours()) == 1, "the next daemon leaves it to its VE"


def test_a_rate_that_is_none_is_refused(vemgr):
    assert "network-rate" in vemgr("create", "x", "--template", "bb", "--network-rate", "fast", code=21).stderr


def test_rates_are_verified_with_a_real_stream(vemgr, wire):
    vemgr("create", "asked", "--template", "bb", "--network-rate", "8M:in", "--network-rate", "12M:out")
    vemgr("start", "asked")
    command = ("limits", "verify", "asked", "--resource", "network", "--seconds", "1")
    assert [line.partition(" asked")[0] for line in vemgr.out(*command).splitlines()] == [
        "network-rate:in: enforced:", "network-rate:out: enforced:"]
    port = next(name for name in vemgr.links() if name.startswith("ve"))
    subprocess.run(["ip", "netns", "exec", vemgr.netns, "tc", "qdisc", "del", "dev", port, "root"], check=True,
                   timeout=20)
    found = {each["setting"]: each for each in json.loads(vemgr.out(*command, "--json", code=6))}
    assert found["network-rate:in"]["outcome"] == "exceeded" and found["network-rate:out"]["outcome"] == "enforced"
