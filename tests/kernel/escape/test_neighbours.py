# SPDX-License-Identifier: GPL-2.0-or-later
"""A VE that says on the bridge that it is another. Control: the same with the rules against it out of force."""

import json
import subprocess

import pytest

PYTHON = "/usr/bin/python3"
PORT = 9753

# argv: own address, the neighbour's, the gateway's. Sends datagrams as itself and as the neighbour, and says by ARP
# that the neighbour's address is here.
IMPOSTOR = r"""
import socket, struct, sys
own, other, gateway = sys.argv[1:4]
def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
def send(source, text):
    udp = struct.pack("!HHHH", 5000, PORT, 8 + len(text), 0) + text
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, socket.inet_aton(source),
                       socket.inet_aton(gateway))
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    raw.sendto(head + udp, (gateway, 0))
with open("/sys/class/net/eth0/address") as file:
    mac = bytes.fromhex(file.read().strip().replace(":", ""))
packet = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
packet.bind(("eth0", 0))
for _ in range(3):
    for operation in (1, 2):
        packet.send(b"\xff" * 6 + mac + b"\x08\x06" + struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
                    + mac + socket.inet_aton(other) + b"\0" * 6 + socket.inet_aton(gateway))
    send(other, b"as the neighbour")
    send(own, b"as itself")
send(own, b"the end")
""".replace("PORT", str(PORT))

LISTENER = r"""
import json, socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
    listener.bind(("", PORT))
    listener.settimeout(20)
    print("ready", flush=True)
    heard = []
    while not heard or heard[-1][1] != "the end":
        data, (source, _) = listener.recvfrom(100)
        heard.append((source, data.decode()))
print(json.dumps(heard))
""".replace("PORT", str(PORT))


def within(vemgr, *command):
    return ["nsenter", f"--net=/run/netns/{vemgr.netns}", *command]


def attack(vemgr, attacker, victim):
    """What the host hears, and which address it then holds for the neighbour."""
    addresses = [vemgr.show(name)["address"].split()[0].split("/")[0] for name in (attacker, victim)]
    gateway = vemgr.out("exec", attacker, "--", "ip", "-4", "route", "show", "default").split()[2]
    vemgr("exec", victim, "--", "ping", "-c1", "-W5", gateway)  # so that the host holds the true one
    with subprocess.Popen(within(vemgr, PYTHON, "-c", LISTENER), stdout=subprocess.PIPE, text=True) as listener:
        assert listener.stdout.readline() == "ready\n"
        vemgr("exec", attacker, "--", PYTHON, "-c", IMPOSTOR, *addresses, gateway)
        heard = json.loads(listener.communicate(timeout=30)[0])
    assert [addresses[0], "as itself"] in heard, "the way is open"
    macs = {name: vemgr.out("exec", name, "--", "cat", "/sys/class/net/eth0/address").strip()
            for name in (attacker, victim)}
    held = subprocess.run(within(vemgr, "ip", "neigh", "show", addresses[1]), capture_output=True, text=True,
                          check=True).stdout
    taken = next((name for name, mac in macs.items() if mac in held), None)
    return [addresses[1], "as the neighbour"] in heard, taken


@pytest.fixture
def instance(make_instance):
    """One of this test's own: its rules are taken away."""
    with make_instance(template=False) as vemgr:
        yield vemgr


def _let_everything_pass(instance):
    """Rules that are taken away the daemon would put back; but it leaves alone what an administrator adds."""
    table = f"vt{instance.tag}"
    listed = subprocess.run(within(instance, "nft", "-j", "list", "table", "bridge", table), capture_output=True,
                            text=True, check=True).stdout
    for entry in json.loads(listed)["nftables"]:
        if "hook" in entry.get("chain", {}):
            subprocess.run(within(instance, "nft", "insert", "rule", "bridge", table, entry["chain"]["name"], "accept"),
                           check=True)


def test_a_neighbours_address_cannot_be_taken(instance):
    attacker, victim = (instance.create(template="host") for _ in range(2))
    instance("start", attacker, victim)
    assert attack(instance, attacker, victim) == (False, victim)
    _let_everything_pass(instance)
    assert attack(instance, attacker, victim) == (True, attacker)
    instance("destroy", "--force", attacker, victim)
