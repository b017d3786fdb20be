# SPDX-License-Identifier: GPL-2.0-or-later
"""vemgr's nftables table, judged by what gets through. Scenarios run in namespaces of their own (network_stage)."""

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vemgr.core.errors import BadValue, SystemFailure
from vemgr.kernel.elements import own_elements
from vemgr.kernel.firewall import Firewall
from vemgr.kernel.network import BridgeNetwork
from vemgr.kernel.ruleset import Rules, Zone, ruleset
from vemgr.kernel.sysctl import enable_forwarding, enable_forwarding6
from vemgr.kernel.veth import inside_messages

# With --import-mode=importlib the directory of a test is not on the path.
_spec = importlib.util.spec_from_file_location("network_stage", Path(__file__).with_name("network_stage.py"))
stage = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(stage)

TABLE = "vetest"
OTHER_MAC = "02:00:00:00:00:03"
RESOLVER = "127.0.0.53"
ZONE = Zone(stage.BRIDGE, stage.SUBNET, stage.GATEWAY, stage.SUBNET6, stage.GATEWAY6)
PLAIN = Rules((ZONE,), "ve")
REDIRECTED = Rules((ZONE,), "ve", RESOLVER)
OWN = own_elements("ve1", stage.MAC, (stage.VE, stage.VE6))

#: Answers over TCP and UDP with the address it was asked from. Arguments by format: address, port.
ECHO_SERVER = """
import socket, threading
tcp = socket.create_server(("{0}", {1}))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("{0}", {1}))
def answer():
    while True:
        data, peer = udp.recvfrom(99)
        try:
            udp.sendto(peer[0].encode(), peer)
        except OSError:
            pass  # no way back, where nothing is masqueraded
threading.Thread(target=answer, daemon=True).start()
print("ready", flush=True)
while True:
    connection, peer = tcp.accept()
    connection.sendall(peer[0].encode())
    connection.close()
"""

#: Prints what the server says, or the error; arguments: protocol, address, port.
ASK = """
import socket, sys
kind, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
with socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as s:
    s.settimeout(0.7)
    try:
        s.connect((address, port))
        s.send(b"?")
        print(s.recv(99).decode())
    except OSError as error:
        print(type(error).__name__)
"""


def nft(*command):
    return subprocess.run(["nft", *command], capture_output=True, text=True, check=True).stdout


@contextlib.asynccontextmanager
async def host_with_a_ve():
    """The stage in full: the world outside, the bridge, a VE on it, forwarding on. Servers end with the namespace."""
    with stage.outside() as world, contextlib.closing(stage.Namespace()) as ve:
        enable_forwarding()
        async with BridgeNetwork(stage.BRIDGE) as net:
            await net.ensure_bridge(stage.GATEWAY, stage.PREFIXLEN)
            await net.ensure_ipv6(stage.GATEWAY6, 64)
            enable_forwarding6()
            end = stage.end(address6=f"{stage.VE6}/64", gateway6=stage.GATEWAY6)
            await stage.attach(net, "ve1", ve, end)
            stage.send_inside(ve, inside_messages([end]))
            yield world, ve, net


@contextlib.contextmanager
def serving(address, port, namespace=None):
    command = [sys.executable, "-c", ECHO_SERVER.format(address, port)]
    if namespace is not None:
        command = ["nsenter", f"--net={namespace.path}", *command]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout.readline() == "ready\n"
            yield
        finally:
            server.kill()


def ask(ve, kind, address, port):
    answer = ve.python(ASK, kind, address, str(port))
    print(f"{kind} {address}:{port} -> {answer}")
    return answer


async def ves_reach_outside_with_the_host_s_address():
    async with host_with_a_ve() as (world, ve, _):
        with serving(stage.OUTSIDE, 7000, world):
            assert [ask(ve, kind, stage.OUTSIDE, 7000) for kind in ("tcp", "udp")] == ["TimeoutError"] * 2
            Firewall(TABLE).ensure(PLAIN, OWN)
            assert [ask(ve, kind, stage.OUTSIDE, 7000) for kind in ("tcp", "udp")] == [stage.UPLINK] * 2
            ve.run("ping", "-c1", "-W2", stage.OUTSIDE)


async def ves_see_each_other_s_own_addresses():
    """Within the subnet nothing is masqueraded, neither VE to VE nor VE to host."""
    async with host_with_a_ve() as (_, ve, net):
        firewall = Firewall(TABLE)
        firewall.ensure(REDIRECTED, OWN)
        with contextlib.closing(stage.Namespace()) as other:
            await another(net, firewall, other)
            with serving("10.77.0.3", 7000, other), serving(stage.GATEWAY, 7000):
                assert ask(ve, "tcp", "10.77.0.3", 7000) == stage.VE
                assert ask(ve, "tcp", stage.GATEWAY, 7000) == stage.VE


async def another(net, firewall, other):
    """A second VE on the bridge."""
    end = stage.end(mac=OTHER_MAC, address="10.77.0.3/20", address6="fd77::3/64", gateway6=stage.GATEWAY6)
    await stage.attach(net, "ve2", other, end)
    stage.send_inside(other, inside_messages([end]))
    assert firewall.add(own_elements("ve2", OTHER_MAC, ("10.77.0.3", "fd77::3")))


async def host_reaches_its_own_gateway_address_unmasked():
    async with host_with_a_ve():
        Firewall(TABLE).ensure(PLAIN, OWN)
        with serving(stage.GATEWAY, 7000):
            run = subprocess.run(
                [sys.executable, "-c", ASK, "tcp", stage.GATEWAY, "7000"], capture_output=True, text=True, check=True
            )
            assert run.stdout.strip() == stage.GATEWAY


async def questions_reach_the_resolver_on_the_loopback():
    async with host_with_a_ve() as (_, ve, net):
        firewall = Firewall(TABLE)
        with serving(RESOLVER, 53):
            firewall.ensure(PLAIN, OWN)
            assert ask(ve, "tcp", stage.GATEWAY, 53) == "ConnectionRefusedError"
            firewall.ensure(REDIRECTED, OWN)
            net.allow_loopback_redirect(True)
            assert [ask(ve, kind, stage.GATEWAY, 53) for kind in ("udp", "tcp")] == [stage.VE] * 2
            # Only what is asked of the gateway: other resolvers stay reachable as such.
            assert ask(ve, "tcp", stage.UPLINK, 53) == "ConnectionRefusedError"
            net.allow_loopback_redirect(False)
            assert ask(ve, "udp", stage.GATEWAY, 53) == "TimeoutError"


def turn_against_the_loopback(ve):
    """As root in a VE: make packets to 127.0.0.0/8 leave by eth0."""
    ve.run("sh", "-ec", """
        echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet
        ip addr del 127.0.0.1/8 dev lo
        ip route add 127.0.0.0/8 via 10.77.0.1 dev eth0 src 10.77.0.2
    """)


async def ves_do_not_reach_the_host_s_loopback():
    async with host_with_a_ve() as (_, ve, net):
        firewall = Firewall(TABLE)
        firewall.ensure(REDIRECTED, OWN)
        net.allow_loopback_redirect(True)
        turn_against_the_loopback(ve)
        with serving("127.0.0.1", 7000), serving(RESOLVER, 53):
            attack = [("tcp", "127.0.0.1", 7000), ("udp", "127.0.0.1", 7000), ("udp", RESOLVER, 53)]
            # The attack works but for the guard: else this test would prove nothing.
            nft("flush", "chain", "inet", TABLE, "guard")
            assert [ask(ve, *target) for target in attack] == [stage.VE] * 3
            firewall.ensure(REDIRECTED, OWN)
            assert [ask(ve, *target) for target in attack] == ["TimeoutError"] * 3
            assert ask(ve, "udp", stage.GATEWAY, 53) == stage.VE


async def a_foreign_source_address_is_dropped():
    """By the bridge's rp_filter: a VE that claims an address outside the subnet is not routed, even without tables."""
    async with host_with_a_ve() as (_, ve, _):
        ve.run("ip", "addr", "add", "203.0.113.9/32", "dev", "eth0")
        nft("add table inet watch { chain c { type filter hook forward priority 0; ip saddr 203.0.113.9 counter; }; }")
        for rp_filter, seen in ((0, "packets 1 "), (1, "packets 0 ")):
            nft("flush chain inet watch c; add rule inet watch c ip saddr 203.0.113.9 counter")
            with open(f"/proc/sys/net/ipv4/conf/{stage.BRIDGE}/rp_filter", "w") as file:
                file.write(str(rp_filter))
            ve.run("ping", "-c1", "-W1", "-I", "203.0.113.9", stage.OUTSIDE, code=1)
            assert seen in nft("list", "table", "inet", "watch")


#: As root in a VE: frames to all addresses that a bridge treats apart, each from the MAC address of another VE: an ARP
#: request and a UDP packet from an address that is nobody's here. Then a word that says that it is done.
NEIGHBOUR_FRAMES = """
import socket, struct, sys
gateway, stranger, mac = socket.inet_aton(sys.argv[1]), socket.inet_aton("192.0.2.9"), bytes.fromhex(sys.argv[2])
udp = struct.pack("!HHHH", 53, 7000, 13, 0) + b"false"
ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, stranger, gateway)
total = sum(struct.unpack("!10H", ip))
ip = ip[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xffff) + ip[12:]
arp = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, mac, stranger, bytes(6), gateway)
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
    raw.bind(("eth0", 0))
    for last in range(16):
        for kind, content in ((0x0800, ip + udp), (0x0806, arp)):
            raw.send(bytes((1, 0x80, 0xc2, 0, 0, last)) + mac + struct.pack("!H", kind) + content.ljust(46, b"\\0"))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
    plain.sendto(b"done", (sys.argv[1], 7000))
"""


async def frames_to_the_bridge_s_neighbours_meet_the_rules():
    """The kernel takes them in before the bridge's prerouting: past the rules against false addresses."""
    async with host_with_a_ve() as (_, ve, net):
        Firewall(TABLE).ensure(PLAIN, OWN)

        def effects():
            """What the host receives, whom it thinks to be there, and where the other VE's frames would go."""
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host:
                host.bind(("0.0.0.0", 7000))
                host.settimeout(5)
                ve.python(NEIGHBOUR_FRAMES, stage.GATEWAY, OTHER_MAC.replace(":", ""))
                received = set()
                while b"done" not in received:
                    received.add(host.recv(99))
            neighbours, learned = (
                subprocess.run(command, capture_output=True, text=True, check=True).stdout
                for command in (["ip", "neigh", "show", "192.0.2.9"], ["bridge", "fdb", "show"])
            )
            return b"false" in received, bool(neighbours), OTHER_MAC in learned

        assert effects() == (False, False, False)
        await net.ensure_bridge(stage.GATEWAY, stage.PREFIXLEN)
        assert effects() == (False, False, False)
        # The rules keep them out where the bridge does not help, but for what it learns.
        stage.ip("link", "set", stage.BRIDGE, "type", "bridge", "group_fwd_mask", "0")
        assert effects() == (False, True, False)
        nft("flush", "chain", "inet", TABLE, "guard")
        stage.ip("link", "set", stage.BRIDGE, "type", "bridge", "no_linklocal_learn", "0")
        assert effects() == (True, True, True)


async def ensure_twice_is_ensure_once():
    firewall = Firewall(TABLE)
    assert not firewall.present()
    assert firewall.listing() == ""
    firewall.ensure(REDIRECTED)
    once = nft("list", "ruleset")
    firewall.ensure(REDIRECTED)
    assert nft("list", "ruleset") == once
    assert firewall.listing() in once
    assert firewall.present()
    firewall.ensure(PLAIN)
    assert RESOLVER not in nft("list", "ruleset")


async def remove_leaves_nothing():
    firewall = Firewall(TABLE)
    firewall.remove()
    firewall.ensure(REDIRECTED)
    firewall.remove()
    assert nft("list", "ruleset") == ""
    assert not firewall.present()


async def tables_of_others_stay():
    nft("add table inet other { chain c { type filter hook forward priority 0; }; }")
    nft("add table ip vetest { chain c { type filter hook input priority 0; }; }")
    before = nft("list", "ruleset")
    one, two = Firewall(TABLE), Firewall("vetest2")
    one.ensure(PLAIN)
    two.ensure(REDIRECTED)
    one.remove()
    assert two.present()
    two.remove()
    assert nft("list", "ruleset") == before


async def foreign_table_of_our_name_is_refused():
    firewall = Firewall(TABLE)
    # The marker somewhere inside does not make a table ours.
    nft(f'add table inet {TABLE} {{ comment "mine" ; chain c {{ comment "managed by vemgr" ; }} ; }}')
    before = nft("list", "ruleset")
    for refused in (lambda: firewall.ensure(PLAIN), firewall.remove):
        with pytest.raises(BadValue, match="not vemgr's"):
            refused()
    assert not firewall.present()
    assert nft("list", "ruleset") == before


async def a_refused_transaction_changes_nothing():
    firewall = Firewall(TABLE)
    firewall.ensure(PLAIN)
    before = nft("list", "ruleset")
    with pytest.raises(SystemFailure, match="nftables refused table vetest: "):
        firewall._run(ruleset(TABLE, REDIRECTED) + "add rule inet vetest nosuchchain accept\n")
    assert nft("list", "ruleset") == before


async def no_descriptor_is_left():
    firewall = Firewall(TABLE)
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        firewall.ensure(REDIRECTED)
        with pytest.raises(SystemFailure):
            firewall._run("nonsense")
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.skipif(not stage.can_play(), reason="cannot make network namespaces and links in them")
@pytest.mark.parametrize("scenario", [
    ves_reach_outside_with_the_host_s_address, ves_see_each_other_s_own_addresses,
    host_reaches_its_own_gateway_address_unmasked, questions_reach_the_resolver_on_the_loopback,
    ves_do_not_reach_the_host_s_loopback, a_foreign_source_address_is_dropped,
    frames_to_the_bridge_s_neighbours_meet_the_rules, ensure_twice_is_ensure_once,
    remove_leaves_nothing, tables_of_others_stay, foreign_table_of_our_name_is_refused,
    a_refused_transaction_changes_nothing, no_descriptor_is_left,
], ids=lambda scenario: scenario.__name__)
def test_firewall(scenario):
    stage.play(__file__, scenario.__name__)


@pytest.mark.parametrize("change", [
    {"bridge": 'a" accept; "'}, {"bridge": ""}, {"subnet": "10.77.0.0/20; drop"}, {"subnet": "10.77.0.1/20"},
    {"gateway": "gateway"}, {"gateway": "fd00::1"}, {"subnet6": "10.77.0.0/20"}, {"gateway6": "10.77.0.1"},
])
def test_zones_take_values_only(change):
    with pytest.raises(BadValue):
        Zone(**{"bridge": "br0", "subnet": "10.77.0.0/20", "gateway": "10.77.0.1"} | change)


@pytest.mark.parametrize("change", [
    {"resolver": "192.0.2.1"}, {"resolver": "::1"}, {"resolver": ""}, {"port_prefix": ""}, {"port_prefix": 've" x'},
])
def test_rules_take_values_only(change):
    with pytest.raises(BadValue):
        Rules(**{"zones": (), "port_prefix": "ve", "resolver": "127.0.0.1"} | change)


@pytest.mark.parametrize("name", ["", "x" * 33, "a b", "a;b", "1a", "a{"])
def test_a_table_name_that_is_none(name):
    with pytest.raises(BadValue):
        Firewall(name)
