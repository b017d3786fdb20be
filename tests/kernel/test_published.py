# SPDX-License-Identifier: GPL-2.0-or-later
"""Networks, addresses and published ports of real VEs, seen from inside, from the host and from a neighbour."""

import json
import os
import subprocess
import sys
import time

import pytest

NEIGHBOUR, UPLINK, NEIGHBOUR6, UPLINK6 = "198.51.100.1", "198.51.100.2", "2001:db8::1", "2001:db8::2"
NETWORKS = """
subnet = "10.77.0.0/20"
subnet6 = "fd77::/64"
[network.lan]
subnet = "10.50.0.0/24"
subnet6 = "fd50::/64"
mode = "routed"
bridge = "vtlan{tag}"
[network.quiet]
subnet = "10.60.0.0/24"
mode = "isolated"
bridge = "vtiso{tag}"
"""
#: Answers with the address that it was asked from, over TCP and UDP, IPv4 and IPv6. Argument: the port.
SERVER = """
import socket, sys, threading
port = int(sys.argv[1])
tcp = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
udp.bind(("", port))
def answer():
    while True:
        data, peer = udp.recvfrom(99)
        udp.sendto(peer[0].encode(), peer)
threading.Thread(target=answer, daemon=True).start()
print("ready", flush=True)
while True:
    connection, peer = tcp.accept()
    connection.sendall(peer[0].encode())
    connection.close()
"""
#: Prints what is answered, or the error; arguments: protocol, address, port.
ASK = """
import socket, sys
kind, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
with socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as s:
    s.settimeout(float(sys.argv[4]))
    try:
        s.connect((address, port))
        s.send(b"?")
        print(s.recv(99).decode().removeprefix("::ffff:"))
    except OSError as error:
        print(type(error).__name__)
"""


class Net:
    """An instance with three networks, and a neighbour of its host."""

    def __init__(self, vemgr):
        self.vemgr = vemgr
        self.world = f"{vemgr.netns}-w"

    def ip(self, *arguments, netns=None):
        subprocess.run(["ip", "-n", netns or self.vemgr.netns, *arguments], check=True, timeout=20)

    def ask(self, kind, address, port, *, netns=None, timeout=5):
        run = subprocess.run(
            ["nsenter", f"--net=/run/netns/{netns or self.vemgr.netns}", sys.executable, "-c", ASK, kind, address,
             str(port), str(timeout)], capture_output=True, text=True, timeout=30, check=True)
        return run.stdout.strip()

    def ask_from(self, ve, kind, address, port, *, timeout=5):
        return self.vemgr.out("exec", ve, "--", "python3", "-c", ASK, kind, address, str(port), str(timeout)).strip()

    def serve(self, ve, port=80):
        """A server in the VE; ends with it."""
        server = self.vemgr.popen("exec", ve, "--", "python3", "-c", SERVER, str(port))
        assert server.stdout.readline() == "ready\n", server.stderr.read()
        return server

    def ve(self, *options, serve=True):
        name = self.vemgr.create(*options, template="host")
        self.vemgr("start", name)
        if serve:
            self.servers.append(self.serve(name))
        return name

    def kill_daemon(self):
        self.vemgr.kill(self.vemgr.daemon_pid())

    def link(self, ve, interface="eth0"):
        (found,) = (link for link in self.vemgr.show(ve)["network"] if link["interface"] == interface)
        return found


@pytest.fixture(scope="module")
def instance(make_instance):
    with make_instance(template=False) as vemgr:
        vemgr.config.write_text(vemgr.config.read_text() + NETWORKS.format(tag=vemgr.tag))
        net = Net(vemgr)
        subprocess.run(["ip", "netns", "add", net.world], check=True)
        try:
            net.ip("link", "add", "uplink", "type", "veth", "peer", "name", "world", "netns", net.world)
            for netns, device, addresses in ((vemgr.netns, "uplink", (f"{UPLINK}/24", f"{UPLINK6}/64")),
                                             (net.world, "world", (f"{NEIGHBOUR}/24", f"{NEIGHBOUR6}/64"))):
                for address in addresses:
                    net.ip("addr", "add", address, "dev", device, *(["nodad"] if ":" in address else []), netns=netns)
                net.ip("link", "set", device, "up", netns=netns)
            for subnet in ("10.77.0.0/20", "10.50.0.0/24", "10.60.0.0/24"):
                net.ip("route", "add", subnet, "via", UPLINK, netns=net.world)
            net.ip("-6", "route", "add", "fd77::/64", "via", UPLINK6, netns=net.world)
            net.ip("-6", "route", "add", "fd50::/64", "via", UPLINK6, netns=net.world)
            yield net
            net.ip("link", "del", "uplink")
        finally:
            subprocess.run(["ip", "netns", "del", net.world], check=True)


@pytest.fixture
def net(instance):
    """Destroys the VEs and servers that a test has made."""
    instance.servers = []
    yield instance
    names = [ve["name"] for ve in instance.vemgr.json("list")]
    if names:
        instance.vemgr("destroy", "--force", *names)
    for server in instance.servers:
        server.communicate(timeout=20)


def test_what_the_definition_does_not_publish_is_not_published_by_the_next_daemon(net):
    """A daemon that is killed in the midst of `set` may have let a port through and not have said so to the disk."""
    ve = net.ve(serve=False)
    note = net.vemgr.run / "network" / ve
    before = net.vemgr.ruleset()
    net.vemgr("set", ve, "--publish", "8099:80")
    published = note.read_text()
    net.vemgr("set", ve, "--publish", "")
    net.kill_daemon()
    note.write_text(published)
    net.vemgr("list")
    assert json.loads(note.read_text())["publish"] != json.loads(published)["publish"]
    assert "8099" not in net.vemgr.ruleset() and "8099" not in before


def test_a_published_port_is_reached_from_everywhere(net):
    ve = net.ve("--publish", "8080:80", "--publish", "5353:80/udp", "--publish", "127.0.0.1:8081:80",
                "--publish", f"[{UPLINK6}]:8082:80")
    other = net.ve(serve=False)
    gateway, gateway6 = "10.77.0.1", "fd77::1"
    assert net.ask("tcp", UPLINK, 8080, netns=net.world) == NEIGHBOUR
    assert net.ask("udp", UPLINK, 5353, netns=net.world) == NEIGHBOUR
    assert net.ask("tcp", UPLINK6, 8080, netns=net.world) == NEIGHBOUR6
    assert net.ask("tcp", UPLINK6, 8082, netns=net.world) == NEIGHBOUR6
    assert net.ask("tcp", "127.0.0.1", 8080) == gateway
    assert net.ask("udp", "127.0.0.1", 5353) == gateway
    assert net.ask("tcp", "127.0.0.1", 8081) == gateway
    assert net.ask("tcp", UPLINK, 8080) == UPLINK
    assert net.ask("tcp", UPLINK6, 8080) == UPLINK6
    for address in (gateway, UPLINK):
        assert net.ask_from(other, "tcp", address, 8080) == gateway
    assert net.ask_from(other, "tcp", gateway6, 8080) == gateway6
    assert net.link(other)["address"] == net.ask_from(other, "tcp", net.link(ve)["address"], 80), "directly too"
    # What is not for them.
    assert net.ask("tcp", UPLINK, 8081, netns=net.world) == "ConnectionRefusedError"
    assert net.ask("tcp", UPLINK, 8082, netns=net.world) == "ConnectionRefusedError"
    assert net.ask("tcp", "::1", 8080) == "ConnectionRefusedError"


def test_a_port_that_is_for_the_host_alone_is_not_reached_by_its_neighbour(net):
    """Who sends packets for 127.0.0.1 to the host must not get where 127.0.0.1 leads on the host."""
    net.ve("--publish", "127.0.0.1:8081:80")
    subprocess.run(["nsenter", f"--net=/run/netns/{net.world}", "sh", "-ec", f"""
        echo 1 > /proc/sys/net/ipv4/conf/world/route_localnet
        ip addr del 127.0.0.1/8 dev lo 2>/dev/null || true
        ip route replace 127.0.0.0/8 via {UPLINK} dev world src {NEIGHBOUR}
    """], check=True)
    try:
        assert net.ask("tcp", "127.0.0.1", 8081, netns=net.world, timeout=1) == "TimeoutError"
        assert net.ask("tcp", "127.0.0.1", 8081) == "10.77.0.1"
    finally:
        net.ip("route", "del", "127.0.0.0/8", netns=net.world)


def test_publishing_on_a_running_ve_and_taking_it_back(net):
    ve = net.ve()
    assert net.ask("tcp", UPLINK, 8080, netns=net.world) == "ConnectionRefusedError"
    net.vemgr("set", ve, "--publish", "8080:80", "--publish", "127.0.0.1:9090:80")
    assert net.ask("tcp", UPLINK, 8080, netns=net.world) == NEIGHBOUR
    assert "8080:80, 127.0.0.1:9090:80" in net.vemgr.out("list")
    net.vemgr("set", ve, "--publish", "9090:80")
    assert net.ask("tcp", UPLINK, 8080, netns=net.world) == "ConnectionRefusedError"
    assert net.ask("tcp", UPLINK, 9090, netns=net.world) == NEIGHBOUR
    net.vemgr("set", ve, "--publish", "default")
    assert net.ask("tcp", UPLINK, 9090, netns=net.world) == "ConnectionRefusedError"
    assert net.vemgr.show(ve)["publish"] == []


def test_published_ports_stay_over_the_end_of_the_daemon_and_of_the_ve(net):
    ve = net.ve("--publish", "8080:80")
    net.kill_daemon()
    assert net.ask("tcp", UPLINK, 8080, netns=net.world) == NEIGHBOUR, "without a daemon"
    assert net.vemgr.state_of(ve) == "running"
    assert net.ask("tcp", UPLINK, 8080, netns=net.world) == NEIGHBOUR
    net.vemgr("restart", "--timeout", "0", ve)
    net.servers.append(net.serve(ve))
    assert net.ask("tcp", UPLINK, 8080, netns=net.world) == NEIGHBOUR
    net.vemgr("stop", "--kill", ve)
    assert net.ask("tcp", UPLINK, 8080, netns=net.world) == "ConnectionRefusedError"


@pytest.mark.parametrize("first", ["8080:80", "127.0.0.1:8080:80", "[::]:8080:80", "[fd77::1]:8080:81"])
def test_a_port_has_one_ve(net, first):
    net.ve("--publish", "7070:70", serve=False)
    owner = net.vemgr.create("--publish", first, template="host")
    for state in ("stopped", "running"):
        refused = net.vemgr("create", "refused", "--template", "host", "--publish", "8080:88", code=78)
        assert f"port 8080/tcp of the host is taken by VE {owner}" in refused.stderr, state
        net.vemgr("start", owner, code=None)
    net.vemgr.create("--publish", "8080:80/udp", template="host")


def test_a_port_that_a_service_of_the_host_has_is_refused(net):
    ve = net.ve(serve=False)
    command = ["nsenter", f"--net=/run/netns/{net.vemgr.netns}", sys.executable, "-c", SERVER, "8080"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout.readline() == "ready\n"
            for arguments in (("create", "refused", "--template", "host"), ("set", ve)):
                for publication in ("8080:80", "127.0.0.1:8080:80", "8080:53/udp"):
                    refused = net.vemgr(*arguments, "--publish", publication, code=78)
                    assert f"(process {service.pid})" in refused.stderr
            assert net.vemgr.show(ve)["publish"] == []
        finally:
            service.kill()
    net.vemgr("set", ve, "--publish", "8080:80")
    # And the other way round: what a running VE has, no service can take.
    run = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert "Address already in use" in run.stderr
    assert "not an address of this host" in net.vemgr("set", ve, "--publish", "192.0.2.9:80:80", code=21).stderr


@pytest.mark.parametrize("value", ["80", "80:", "80:0", "65536:80", "80:80/sctp", "x:80:80", "[::1]:80:80",
                                   "224.0.0.1:80:80", "80:80 80:81", "fe80::1%eth0:80:80"])
def test_what_is_no_published_port(net, value):
    refused = net.vemgr("create", "refused", "--template", "host", "--publish", value, code=21)
    assert "for publish" in refused.stderr


def test_what_the_modes_let_through(net):
    nat = net.ve()
    routed = net.ve("--network", "lan")
    isolated = net.ve("--network", "quiet")
    server = subprocess.Popen(["nsenter", f"--net=/run/netns/{net.world}", sys.executable, "-c", SERVER, "80"],
                              stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout.readline() == "ready\n"
        # Out: with the host's address, as they are, and not at all.
        assert net.ask_from(nat, "tcp", NEIGHBOUR, 80) == UPLINK
        assert net.ask_from(nat, "tcp", NEIGHBOUR6, 80) == UPLINK6
        assert net.ask_from(routed, "tcp", NEIGHBOUR, 80) == net.link(routed)["address"]
        assert net.ask_from(routed, "tcp", NEIGHBOUR6, 80) == net.link(routed)["address6"]
        assert net.ask_from(isolated, "tcp", NEIGHBOUR, 80) in ("OSError", "ConnectionRefusedError")
    finally:
        server.kill()
        server.communicate()
    # In: the neighbour has a route to all of them.
    for address in (net.link(nat)["address"], net.link(nat)["address6"], net.link(isolated)["address"]):
        assert net.ask("tcp", address, 80, netns=net.world, timeout=1) == "TimeoutError"
    assert net.ask("tcp", net.link(routed)["address"], 80, netns=net.world) == NEIGHBOUR
    assert net.ask("tcp", net.link(routed)["address6"], 80, netns=net.world) == NEIGHBOUR6
    # Between them, and from the host.
    assert net.ask_from(routed, "tcp", net.link(nat)["address"], 80, timeout=1) == "TimeoutError"
    assert net.ask_from(nat, "tcp", net.link(routed)["address"], 80) == "10.50.0.1"
    assert net.ask_from(nat, "tcp", net.link(isolated)["address"], 80, timeout=1) == "TimeoutError"
    assert net.ask("tcp", net.link(isolated)["address"], 80) == "10.60.0.1"
    assert "isolated" in net.vemgr("set", isolated, "--publish", "8080:80", code=21).stderr


def test_several_links(net):
    ve = net.ve("--network", "quiet", "--network", "lan:address=10.50.0.77,mac=02:00:00:00:00:77",
                "--network", "bridge", "--publish", "8080:80")
    links = {name: net.link(ve, name) for name in ("eth0", "eth1", "eth2")}
    assert [link["network"] for link in links.values()] == ["quiet", "lan", "bridge"]
    inside = {each["ifname"]: each for each in json.loads(net.vemgr.out("exec", ve, "--", "ip", "-j", "addr"))}
    for name, link in links.items():
        assert inside[name]["address"] == link["mac"]
        found = {a["local"] for a in inside[name]["addr_info"]}
        assert {link["address"], link["address6"]} - {""} <= found
        assert all("tentative" not in a for a in inside[name]["addr_info"])
    assert (links["eth1"]["address"], links["eth1"]["mac"]) == ("10.50.0.77", "02:00:00:00:00:77")
    assert links["eth0"]["address6"] == "" and not any(":" in a["local"] for a in inside["eth0"]["addr_info"])
    routes = net.vemgr.out("exec", ve, "--", "ip", "route", "show", "default")
    assert routes.split()[:5] == ["default", "via", "10.50.0.1", "dev", "eth1"], "the first that leads outside"
    assert net.ask("tcp", UPLINK, 8080, netns=net.world) == NEIGHBOUR
    net.vemgr("stop", "--kill", ve)
    assert [net.link(ve, name) for name in links] == list(links.values()), "kept"
    net.vemgr("set", ve, "--network", "lan:address=10.50.0.77,mac=02:00:00:00:00:77")
    assert [link["network"] for link in net.vemgr.show(ve)["network"]] == ["lan"]


def test_a_network_that_is_not_there(net):
    refused = net.vemgr("create", "refused", "--template", "host", "--network", "nowhere", code=21)
    assert "there is no network of this name; choose from bridge, lan, quiet" in refused.stderr
    assert [network["name"] for network in net.vemgr.json("network", "list")] == ["bridge", "lan", "quiet"]


def test_addresses_and_macs_have_one_ve_also_while_a_change_is_pending(net):
    ve = net.ve("--address", "10.77.0.50", "--mac", "02:00:00:00:00:50", serve=False)
    net.vemgr("set", ve, "--address", "10.77.0.51", "--mac", "02:00:00:00:00:51")
    for kill in (False, True):
        if kill:
            net.kill_daemon()
        for option, value in (("--address", "10.77.0.50"), ("--address", "10.77.0.51"), ("--mac", "02:00:00:00:00:50"),
                              ("--mac", "02:00:00:00:00:51")):
            refused = net.vemgr("create", "refused", "--template", "host", option, value, code=78)
            assert f"taken by VE {ve}" in refused.stderr
        shown = net.vemgr.show(ve)
        assert [link["address"] for link in shown["network"]] == ["10.77.0.51"]
        assert [link["address"] for link in shown["networkInUse"]] == ["10.77.0.50"]
        assert "(in use: 10.77.0.50" in net.vemgr.out("show", ve)
        net.vemgr("exec", ve, "--", "ping", "-c1", "-W2", "10.77.0.1")
    net.vemgr("restart", "--timeout", "0", ve)
    assert net.vemgr.show(ve)["networkInUse"] == net.vemgr.show(ve)["network"]
    net.vemgr("exec", ve, "--", "ping", "-c1", "-W2", "10.77.0.1")
    net.vemgr.create("--address", "10.77.0.50", template="host")
    for option, value in (("--mac", "01:00:00:00:00:01"), ("--mac", "x"), ("--address", "fd77::1"),
                          ("--address", "fd99::5"), ("--network", "quiet:address=fd77::9")):
        net.vemgr("create", "refused", "--template", "host", option, value, code=21)


def well(net, ve):
    return net.ask("tcp", UPLINK, 8080, netns=net.world, timeout=1) == NEIGHBOUR and (
        net.ask_from(ve, "tcp", NEIGHBOUR, 99, timeout=1) == "ConnectionRefusedError")


def wait_until_well(net, ve):
    deadline = time.monotonic() + 20
    while not well(net, ve):
        assert time.monotonic() < deadline, net.vemgr.ruleset()


def nft(net, *arguments):
    subprocess.run(["nsenter", f"--net=/run/netns/{net.vemgr.netns}", "nft", *arguments], check=True, timeout=20)


def test_rules_that_a_firewall_flushes_come_back_by_themselves(net):
    ve = net.ve("--publish", "8080:80")
    nft(net, "add table inet theirs { chain c { type filter hook input priority 0; } ; }")
    before = net.vemgr.ruleset()
    nft(net, "flush", "ruleset")
    wait_until_well(net, ve)
    nft(net, "flush", "chain", "bridge", f"vt{net.vemgr.tag}", "own")
    wait_until_well(net, ve)
    after = net.vemgr.ruleset()
    assert "theirs" in before and "theirs" not in after
    assert after.count(net.link(ve)["mac"]) == before.count(net.link(ve)["mac"]) > 0


def test_everything_comes_back_after_a_crash(net):
    ve = net.ve("--publish", "8080:80", "--network", "bridge", "--network", "lan")
    nft(net, "add table inet theirs { chain c { type filter hook input priority 0; } ; }")
    net.kill_daemon()
    nft(net, "flush", "ruleset")
    nft(net, "add table inet theirs { chain c { type filter hook input priority 0; } ; }")
    for bridge in (f"vt{net.vemgr.tag}", f"vtlan{net.vemgr.tag}"):
        net.ip("link", "del", bridge)
    assert not well(net, ve)
    begun = time.monotonic()
    net.vemgr("list")
    took = time.monotonic() - begun
    wait_until_well(net, ve)
    net.vemgr("exec", ve, "--", "ping", "-c1", "-W2", "10.50.0.1")
    assert "theirs" in net.vemgr.ruleset()
    assert took < 15, took
    nft(net, "delete table inet theirs")


def test_a_bridge_that_was_deleted_comes_back(net):
    ve = net.ve("--publish", "8080:80")
    net.ip("link", "del", f"vt{net.vemgr.tag}")
    other = net.ve(serve=False)  # the start meets it, and puts it right
    net.vemgr("exec", other, "--", "ping", "-c1", "-W2", net.link(ve)["address"])
    net.ip("link", "del", f"vt{net.vemgr.tag}")
    assert not well(net, ve)
    net.vemgr("network", "restore")
    wait_until_well(net, ve)


def test_hairpin_without_br_netfilter(net):
    """Whether bridged packets pass the firewall's IP hooks is a setting of the host; both ways work."""
    setting = "net/bridge/bridge-nf-call-iptables"
    if not os.path.exists(f"/proc/sys/{setting}"):
        pytest.skip("br_netfilter is not loaded")
    ve, other = net.ve("--publish", "8080:80"), net.ve(serve=False)
    for value in (0, 1):
        subprocess.run(["nsenter", f"--net=/run/netns/{net.vemgr.netns}", "sh", "-c",
                        f"echo {value} > /proc/sys/{setting}"], check=True)
        assert net.ask_from(other, "tcp", "10.77.0.1", 8080) == "10.77.0.1", value
        assert net.ask_from(other, "tcp", net.link(ve)["address"], 80) == net.link(other)["address"], value
