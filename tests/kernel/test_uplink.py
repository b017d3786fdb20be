# SPDX-License-Identifier: GPL-2.0-or-later
"""Shares of the host's uplink: kept against neighbours that flood it, changed live, refused where they cannot be had,
and gone with the last VE that has one."""

import contextlib
import json
import re
import subprocess

import pytest

from tests.kernel.conftest import eventually

RATE, GUARANTEE = 20_000_000, 10_000_000
# Takes packets on the ports that are given, and prints the bytes that came on each during some seconds.
TAKE = """
import select, socket, sys, time
ports, seconds = [int(word) for word in sys.argv[2:]], float(sys.argv[1])
sockets = {}
for port in ports:
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.bind(("198.51.100.1", port))
    one.setblocking(False)
    sockets[one] = port
print("ready", flush=True)
def take(seconds):
    found, end = dict.fromkeys(ports, 0), time.monotonic() + seconds
    while time.monotonic() < end:
        for one in select.select(list(sockets), [], [], 0.05)[0]:
            for _ in range(64):
                try:
                    found[sockets[one]] += len(one.recv(2048))
                except BlockingIOError:
                    break
    return found
while not all(take(0.3).values()):  # all of them are sending
    pass
began = time.monotonic()
found = take(seconds)
print(*(int(found[port] * 8 / (time.monotonic() - began)) for port in ports), flush=True)
"""
# Sends more than the uplink carries.
SEND = """
import socket, sys, time
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    for _ in range(8):
        try:
            one.sendto(bytes(1400), ("198.51.100.1", int(sys.argv[1])))
        except OSError:
            pass
    time.sleep(0.002)
"""


class Host:
    """A vemgr whose host has an uplink, up0, to a world of one address."""

    def __init__(self, vemgr):
        self.vemgr = vemgr
        self.world = f"{vemgr.netns}-w"

    def ip(self, *words):
        subprocess.run(["ip", *words], check=True, timeout=20)

    def tc(self, *words):
        return self.inside("tc", *words)

    def inside(self, *words):
        return subprocess.run(["nsenter", f"--net=/run/netns/{self.vemgr.netns}", *words], check=True, timeout=20,
                              capture_output=True, text=True).stdout

    def open(self):
        self.ip("netns", "add", self.world)
        self.link()

    def link(self):
        own = self.vemgr.netns
        self.ip("-n", own, "link", "add", "up0", "type", "veth", "peer", "name", "w0", "netns", self.world)
        for where, device, address in ((own, "up0", "198.51.100.2/24"), (self.world, "w0", "198.51.100.1/24")):
            self.ip("-n", where, "addr", "add", address, "dev", device)
            self.ip("-n", where, "link", "set", device, "up")
        self.ip("-n", own, "route", "add", "default", "via", "198.51.100.1")

    def close(self):
        # Its pair, and so the link of ours, goes with it, but in the kernel's own time.
        subprocess.run(["ip", "-n", self.vemgr.netns, "link", "del", "up0"], timeout=20)
        self.ip("netns", "del", self.world)

    def started(self, *options):
        ve = self.vemgr.create(*options)
        self.vemgr("start", ve)
        return ve

    def roots(self):
        """Kind and handle of what is at the root of the uplink."""
        return [line.split()[1:3] for line in self.tc("qdisc", "show", "dev", "up0").splitlines() if " root" in line]

    def classes(self):
        """Of VEs."""
        minors = [line.split()[2].split(":")[1] for line in self.tc("class", "show", "dev", "up0").splitlines()]
        return sorted(set(minors) - {"ffff", "fffe", "fffd"})

    def measure(self, *ves, seconds=1.0):
        """bit/s that come from each when all send as much as they can."""
        ports = [str(9000 + number) for number in range(len(ves))]
        take = subprocess.Popen(["nsenter", f"--net=/run/netns/{self.world}", "/usr/bin/python3", "-c", TAKE,
                                 str(seconds), *ports], stdout=subprocess.PIPE, text=True)
        senders = []
        with contextlib.ExitStack() as stack:
            stack.callback(lambda: [sender.communicate() for sender in (*senders, take)])
            stack.callback(lambda: [sender.kill() for sender in (*senders, take)])
            assert take.stdout.readline() == "ready\n"
            for ve, port in zip(ves, ports, strict=True):
                pid = self.vemgr.show(ve)["pid"]
                enter = ["nsenter", "-t", str(pid), "-n"]
                senders.append(subprocess.Popen([*enter, "/usr/bin/python3", "-c", SEND, port]))
            return [int(word) for word in take.stdout.readline().split()]


@pytest.fixture(scope="module")
def whole(make_instance):
    with make_instance(template=False) as vemgr:
        with vemgr.config.open("a") as file:
            file.write(f'[uplink]\nrate = "{RATE // 10**6}M"\n')
        host = Host(vemgr)
        host.open()
        try:
            vemgr.import_busybox()
            yield host
        finally:
            host.close()


@pytest.fixture
def host(whole):
    yield whole
    for ve in whole.vemgr.json("list"):
        whole.vemgr("destroy", "--force", ve["name"])


def test_a_guarantee_is_kept_against_neighbours_and_changes_live(host):
    ve, *others = (host.started("--network-guarantee", "10M"), *(host.started() for _ in range(2)))
    got, *rest = host.measure(ve, *others)
    assert got > GUARANTEE * 0.85 and all(each > 0 for each in rest)
    assert got + sum(rest) < RATE * 1.3
    (found,) = host.vemgr.json("stats", ve)
    assert {row["resource"]: row["failures"] for row in found["counters"]}["net-out"] > 0
    host.vemgr("set", ve, "--network-guarantee", "0", "--network-weight", "1")
    assert host.measure(ve, *others)[0] < GUARANTEE * 0.6
    host.vemgr("set", ve, "--network-weight", "default")
    eventually(lambda: not host.classes(), host.classes)


def test_shares_go_with_the_last_ve_that_has_one(host):
    vemgr = host.vemgr
    bridge = f"vt{vemgr.tag}"
    before = host.roots()
    ve, other = host.started("--network-guarantee", "5M"), host.started("--network-weight", "200")
    assert host.roots()[0][0] == "htb" and len(host.classes()) == 2
    vemgr("stop", "--kill", other)
    eventually(lambda: len(host.classes()) == 1, host.classes)
    vemgr("restart", ve)
    assert len(host.classes()) == 1
    assert re.search(rf'"{bridge}" : 7[0-9a-f]{{3}}:fffd', vemgr.ruleset())
    vemgr("destroy", "--force", ve, other)
    eventually(lambda: host.roots() == before, host.roots)
    eventually(lambda: not re.search(r" : 7[0-9a-f]{3}:", vemgr.ruleset()), vemgr.ruleset)


def test_a_daemon_that_comes_puts_shares_right(host):
    vemgr = host.vemgr
    other = [host.started("--network-guarantee", rate) for rate in ("5M", "3M")][1]
    vemgr.kill(vemgr.daemon_pid())
    host.tc("qdisc", "del", "dev", "up0", "root")
    assert len(vemgr.json("list")) == 2
    eventually(lambda: len(host.classes()) == 2, host.classes)
    subprocess.run(["kill", "-9", str(vemgr.show(other)["pid"])], check=True, timeout=20)
    eventually(lambda: len(host.classes()) == 1, host.classes)
    host.tc("qdisc", "del", "dev", "up0", "root")
    vemgr("network", "restore")
    assert len(host.classes()) == 1


def test_shares_are_made_anew_where_somebody_has_taken_them_away(host):
    """With the next change: the root of the uplink has been removed, or the link itself has gone and come back."""
    first = host.started("--network-guarantee", "5M")
    (minor,) = host.classes()
    host.tc("qdisc", "del", "dev", "up0", "root")
    host.vemgr("set", first, "--network-guarantee=4M")
    assert host.classes() == [minor]
    host.tc("qdisc", "del", "dev", "up0", "root")
    second = host.started("--network-guarantee", "5M")
    assert len(host.classes()) == 2 and minor in host.classes(), "that of the other one too"
    host.ip("-n", host.vemgr.netns, "link", "del", "up0")
    host.link()
    host.vemgr("set", second, "--network-guarantee=6M")
    assert len(host.classes()) == 2 and minor in host.classes()
    host.tc("qdisc", "del", "dev", "up0", "root")
    host.tc("qdisc", "add", "dev", "up0", "root", "handle", "77:", "pfifo")
    try:
        assert "take-over" in host.vemgr("set", second, "--network-guarantee=7M", code=5).stderr
        assert host.roots() == [["pfifo", "77:"]], "what somebody else has put there stays"
    finally:
        host.tc("qdisc", "del", "dev", "up0", "root")


def test_what_cannot_be_promised_is_refused_with_the_sums(host):
    vemgr = host.vemgr
    host.started("--network-guarantee", "15M")
    other = vemgr.create("--network-guarantee", "5M")
    assert "15Mbit/s" in vemgr("start", other, code=36).stderr
    assert len(host.classes()) == 1
    (row,) = [each for each in json.loads(vemgr.out("scheduler", "capacity", "--json"))["resources"]
              if each["resource"] == "network"]
    assert (row["total"], row["reserve"], row["promised"]) == (RATE, RATE // 20, 15_000_000)
    assert vemgr.out("scheduler", "plan", "--network", "2M").startswith("2 more (network")
    shares = json.loads(vemgr.out("scheduler", "explain", "--json", other))["shares"]
    assert [share["guarantee"] for share in shares if share["resource"] == "network"] == ["5M"]


def test_a_queueing_discipline_of_somebody_else_is_left_alone(host):
    vemgr = host.vemgr
    host.tc("qdisc", "replace", "dev", "up0", "root", "handle", "77:", "pfifo")
    try:
        assert "take-over" in vemgr("create", "x", "--template", "bb", "--network-guarantee", "5M", code=5).stderr
        assert host.roots() == [["pfifo", "77:"]]
    finally:
        host.tc("qdisc", "del", "dev", "up0", "root")


def test_without_a_rate_there_is_no_guarantee(vemgr):
    assert "default route" in vemgr("create", "x", "--template", "bb", "--network-guarantee", "5M", code=5).stderr
