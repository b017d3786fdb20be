# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts on a bridge that are no VEs: which ports they are behind, and that no VE takes an address of theirs."""

import contextlib
import importlib.util
import socket
import subprocess
import time
from pathlib import Path

import pytest

from vemgr.kernel.address_probe import INTERVAL, PROBES, find_holder
from vemgr.kernel.network import BridgeNetwork
from vemgr.kernel.port_watch import PortWatch
from vemgr.kernel.veth import host_ifname, port_prefix

# With --import-mode=importlib the directory of a test is not on the path.
_spec = importlib.util.spec_from_file_location("network_stage", Path(__file__).with_name("network_stage.py"))
stage = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(stage)

HOST_MAC = "52:54:00:00:00:09"


def add_port(name, namespace, inside="lan0"):
    stage.ip("link", "add", name, "type", "veth", "peer", "name", inside, "netns", str(namespace.holder.pid))
    stage.ip("link", "set", name, "up", "master", stage.BRIDGE)
    namespace.run("ip", "link", "set", inside, "address", HOST_MAC, "up")


def told(watch, ports, timeout=10):
    deadline = time.monotonic() + timeout
    while watch.foreign(stage.BRIDGE) != ports:
        assert time.monotonic() < deadline, watch.foreign(stage.BRIDGE)
        time.sleep(0.01)


async def ports_that_are_no_ve_are_known():
    async with BridgeNetwork(stage.BRIDGE) as net:
        await net.ensure_bridge(stage.GATEWAY, stage.PREFIXLEN)
        with contextlib.closing(stage.Namespace()) as host, contextlib.closing(stage.Namespace()) as ve:
            add_port("before0", host, "lan0")
            with contextlib.closing(PortWatch(port_prefix())) as watch:
                told(watch, ["before0"])
                add_port("after0", host, "lan1")
                told(watch, ["after0", "before0"])
                host.run("ip", "link", "set", "lan1", "down")  # no carrier
                told(watch, ["before0"])
                host.run("ip", "link", "set", "lan1", "up")
                told(watch, ["after0", "before0"])
                stage.ip("link", "set", "after0", "nomaster")
                told(watch, ["before0"])
                stage.ip("link", "add", "other0", "up", "type", "bridge")
                stage.ip("link", "set", "after0", "master", "other0")
                assert watch.foreign(stage.BRIDGE) == ["before0"]
                stage.ip("link", "del", "before0")
                told(watch, [])
                # A VE's port comes and goes without a message to us, and is not in a list either.
                await stage.attach(net, host_ifname("web1"), ve, stage.end(mtu=1500))
                with pytest.raises(BlockingIOError):
                    watch._socket.recv(1 << 16)
                with contextlib.closing(PortWatch(port_prefix())) as second:
                    assert second.foreign(stage.BRIDGE) == []
                await net.remove_bridge()
                assert watch.foreign(stage.BRIDGE) == []


async def more_news_than_fit_are_asked_for():
    async with BridgeNetwork(stage.BRIDGE) as net:
        await net.ensure_bridge(stage.GATEWAY, stage.PREFIXLEN)
        with contextlib.closing(stage.Namespace()) as host, contextlib.closing(PortWatch(port_prefix())) as watch:
            watch._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
            for number in range(8):
                add_port(f"lan{number}", host, f"lan{number}")
            stage.ip("link", "del", "lan3")
            told(watch, [f"lan{number}" for number in range(8) if number != 3])
            stage.ip("link", "del", "lan5")  # and the news go on
            told(watch, [f"lan{number}" for number in range(8) if number not in (3, 5)])


async def who_has_an_address_answers():
    async with BridgeNetwork(stage.BRIDGE) as net:
        await net.ensure_bridge(stage.GATEWAY, stage.PREFIXLEN)
        with contextlib.closing(stage.Namespace()) as host:
            add_port("lan0", host)
            host.run("ip", "addr", "add", "10.77.0.9/20", "dev", "lan0")
            host.run("ip", "addr", "add", "fd77::9/64", "dev", "lan0", "nodad")
            for address in ("10.77.0.9", "fd77::9"):
                found = await find_holder(["gone0", "lan0"], net.mac, ["10.77.0.8", "fd77::8", address])
                assert (found.address, found.mac, found.port) == (address, HOST_MAC, "lan0")
            begin = time.monotonic()
            assert await find_holder(["lan0"], net.mac, ["10.77.0.8", "fd77::8"]) is None
            assert time.monotonic() - begin >= PROBES * INTERVAL
            # Nobody can be asked: then nobody is waited for.
            assert await find_holder(["gone0"], net.mac, ["10.77.0.9"]) is None
            stage.ip("link", "set", "lan0", "down")
            assert await find_holder(["lan0"], net.mac, ["10.77.0.9"]) is None
            # On the same wire, but in a VLAN: another network.
            stage.ip("link", "set", "lan0", "up")
            host.run("ip", "addr", "flush", "dev", "lan0")
            for tag, port in (("81000005", None), ("", "lan0")):
                claiming = host.serve(CLAIM.format(tag=tag))
                try:
                    found = await find_holder(["lan0"], net.mac, ["10.77.0.9"])
                    assert (found and found.port) == port
                finally:
                    claiming.kill()
                    claiming.wait()


#: Says ever again that it has 10.77.0.9.
CLAIM = """
import socket, time
frame = bytes.fromhex("ffffffffffff" "525400000009" "{tag}" "0806" "0001080006040002"
                      "525400000009" "0a4d0009" "000000000000" "0a4d0009") + bytes(18)
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as s:
    s.bind(("lan0", 0))
    while True:
        s.send(frame)
        print("ready", flush=True)
        time.sleep(0.02)
"""

SCENARIOS = [ports_that_are_no_ve_are_known, more_news_than_fit_are_asked_for, who_has_an_address_answers]


@pytest.mark.skipif(not stage.can_play(), reason="cannot make network namespaces here")
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_scenario(scenario):
    stage.play(__file__, scenario.__name__)


# with a daemon


class Host:
    """A machine on the VEs' bridge: another network namespace."""

    def __init__(self, vemgr):
        self.vemgr, self.netns, self.bridge = vemgr, f"{vemgr.netns}-w", f"vt{vemgr.tag}"
        subprocess.run(["ip", "netns", "add", self.netns], check=True, timeout=20)

    def ip(self, *arguments, netns=None):
        subprocess.run(["ip", "-n", netns or self.netns, *arguments], check=True, timeout=20)

    def plug_in(self):
        self.ip("link", "add", "lan0", "type", "veth", "peer", "name", "lan0", "netns", self.netns,
                netns=self.vemgr.netns)
        self.ip("link", "set", "lan0", "up", "master", self.bridge, netns=self.vemgr.netns)
        self.ip("link", "set", "lan0", "address", HOST_MAC, "up")

    def unplug(self):
        subprocess.run(["ip", "-n", self.vemgr.netns, "link", "del", "lan0"], timeout=20, check=False,
                       capture_output=True)

    def close(self):
        self.unplug()
        subprocess.run(["ip", "netns", "del", self.netns], check=True, timeout=20)


@pytest.fixture(scope="module")
def lan(make_instance):
    """An instance with a bridge, and a host that can be plugged into that."""
    with make_instance(template=False) as vemgr, contextlib.closing(Host(vemgr)) as host:
        vemgr.config.write_text(vemgr.config.read_text() + 'subnet = "10.77.0.0/20"\nsubnet6 = "fd77::/64"\n')
        vemgr.import_busybox()
        vemgr("run", "--template", "bb", "--", "true")
        yield vemgr, host


def test_an_address_of_a_host_on_the_bridge_is_refused(lan):
    vemgr, host = lan
    ves = {address: vemgr.create("--address", address) for address in ("10.77.0.9", "fd77::9")}
    free = vemgr.create()
    host.plug_in()
    try:
        before = vemgr.traces()
        for address in (*ves, "10.77.0.10", "fd77::10"):
            host.ip("addr", "add", f"{address}/64" if ":" in address else f"{address}/20", "dev", "lan0",
                    *(["nodad"] if ":" in address else []))
        for address, ve in ves.items():
            refused = vemgr("start", ve, code=78).stderr
            assert f"address {address} of VE {ve} is in use by {HOST_MAC}, behind port lan0" in refused
        vemgr.assert_traces(before)
        settings = vemgr.show(free)["settings"]
        vemgr("start", free)  # its own is free
        for address in ("10.77.0.10", "fd77::10"):
            assert HOST_MAC in vemgr("set", free, "--address", address, code=78).stderr
        assert vemgr.show(free)["settings"] == settings
        host.ip("addr", "flush", "dev", "lan0")
        vemgr("set", free, "--address", "10.77.0.10")
        vemgr("start", *ves.values())
    finally:
        host.unplug()
        vemgr("destroy", "--force", free, *ves.values())
