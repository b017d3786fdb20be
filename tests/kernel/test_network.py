# SPDX-License-Identifier: GPL-2.0-or-later
"""The bridge and the links on it, on the real kernel. Each scenario runs in namespaces of its own (network_stage)."""

import asyncio
import contextlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vemgr.core.errors import BadValue, SystemFailure
from vemgr.kernel import sysctl
from vemgr.kernel.network import BridgeNetwork
from vemgr.kernel.veth import host_ifname, inside_messages, loopback_messages

# With --import-mode=importlib the directory of a test is not on the path.
_spec = importlib.util.spec_from_file_location("network_stage", Path(__file__).with_name("network_stage.py"))
stage = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(stage)


def addresses_of(interface):
    lines = subprocess.run(
        ["ip", "-4", "-br", "addr", "show", interface], capture_output=True, text=True, check=True
    ).stdout.split()
    return lines[2:]


def setting(path):
    with open(f"/proc/sys/net/{path}") as file:
        return int(file.read())


async def bridge_is_made_once():
    with stage.outside():
        async with BridgeNetwork(stage.BRIDGE) as net:
            for _ in range(2):
                await net.ensure_bridge(stage.GATEWAY, stage.PREFIXLEN)
                shown = subprocess.run(
                    ["ip", "-d", "link", "show", stage.BRIDGE], capture_output=True, text=True, check=True
                ).stdout
                assert "stp_state 0" in shown
                assert "forward_delay 0" in shown
                assert f"mtu {stage.UPLINK_MTU}" in shown
                assert f"link/ether {net.mac}" in shown
                assert ",UP" in shown
                assert addresses_of(stage.BRIDGE) == ["10.77.0.1/20"]
                await net.disable_ipv6()
            assert setting(f"ipv4/conf/{stage.BRIDGE}/rp_filter") == 1
            assert setting(f"ipv4/conf/{stage.BRIDGE}/accept_redirects") == 0
            assert setting(f"ipv6/conf/{stage.BRIDGE}/accept_ra") == 0
            assert setting(f"ipv6/conf/{stage.BRIDGE}/disable_ipv6") == 1
            await net.ensure_bridge("10.71.0.1", 24)
            assert addresses_of(stage.BRIDGE) == ["10.71.0.1/24"]


async def bridge_of_another_is_refused():
    stage.ip("link", "add", stage.BRIDGE, "type", "bridge")
    async with BridgeNetwork(stage.BRIDGE) as net:
        for refused in (net.ensure_bridge(stage.GATEWAY, stage.PREFIXLEN), net.remove_bridge()):
            with pytest.raises(BadValue, match="not vemgr's"):
                await refused
    assert addresses_of(stage.BRIDGE) == []


async def bridge_is_removed():
    async with BridgeNetwork(stage.BRIDGE) as net:
        await net.remove_bridge()
        await net.ensure_bridge(stage.GATEWAY, stage.PREFIXLEN)
        await net.remove_bridge()
        assert await net.links() == []
        with pytest.raises(SystemFailure, match="no bridge vetest0"):
            net.birth("ve1", stage.end(mtu=1500))
    assert stage.BRIDGE not in os.listdir("/proc/sys/net/ipv4/conf")


async def ve_is_attached():
    async with BridgeNetwork(stage.BRIDGE) as net:
        await net.ensure_bridge(stage.GATEWAY, stage.PREFIXLEN)
        with contextlib.closing(stage.Namespace()) as ve:
            end = stage.end(mtu=1300)
            await stage.attach(net, host_ifname("web1"), ve, end)
            messages = inside_messages([end])
            stage.send_inside(ve, messages)
            assert ve.run("ip", "route", "show", "default") == f"default via {stage.GATEWAY} dev eth0"
            assert ve.run("ip", "-4", "-br", "addr", "show", "eth0").split()[2:] == ["10.77.0.2/20"]
            shown = ve.run("ip", "link", "show", "eth0")
            assert f"link/ether {stage.MAC}" in shown
            assert "mtu 1300" in shown
            ve.run("ping", "-c1", "-W2", stage.GATEWAY)
            ve.run("ping", "-c1", "-W2", "127.0.0.1")
            # What was refused says which message it was, in the kernel's words.
            run = subprocess.run(
                ["nsenter", f"--net={ve.path}", sys.executable, "-c", stage.SEND_BATCH],
                input=messages[2].hex(), capture_output=True, text=True,
            )
            assert "FileExistsError: [Errno 17] RTM_NEWADDR: " in run.stderr
            assert await net.links() == [host_ifname("web1")]
            await net.detach(host_ifname("web1"))
            await net.detach(host_ifname("web1"))
            assert await net.links() == []
            assert "eth0" not in ve.run("ip", "-br", "link")


async def index_of_the_inside_is_ours_with_fallback_devices():
    """Modules such as sit put devices of theirs into each new namespace; dummies stand for them here."""
    async with BridgeNetwork(stage.BRIDGE) as net:
        await net.ensure_bridge(stage.GATEWAY, stage.PREFIXLEN)
        with contextlib.closing(stage.Namespace()) as ve:
            for n in range(12):
                ve.run("ip", "link", "add", f"other{n}", "type", "bridge")
            await stage.attach(net, "ve1", ve, stage.end(mtu=1500))
            stage.send_inside(ve, inside_messages([stage.end(mtu=1500)]))
            ve.run("ping", "-c1", "-W2", stage.GATEWAY)


async def leftover_is_replaced():
    async with BridgeNetwork(stage.BRIDGE) as net:
        await net.ensure_bridge(stage.GATEWAY, stage.PREFIXLEN)
        with contextlib.closing(stage.Namespace()) as old, contextlib.closing(stage.Namespace()) as new:
            await stage.attach(net, "ve1", old, stage.end(mtu=1500))
            await stage.attach(net, "ve1", new, stage.end(mtu=1500))
            assert "eth0" not in old.run("ip", "-br", "link")
            assert "eth0" in new.run("ip", "-br", "link")
            assert await net.links() == ["ve1"]


async def interface_of_another_is_not_deleted():
    stage.ip("link", "add", "other0", "type", "bridge")
    stage.ip("link", "add", "ve1", "type", "bridge")
    stage.ip("link", "add", "ve2", "master", "other0", "type", "veth", "peer", "name", "peer2")
    async with BridgeNetwork(stage.BRIDGE) as net:
        await net.ensure_bridge(stage.GATEWAY, stage.PREFIXLEN)
        with contextlib.closing(stage.Namespace()) as ve:
            for name in ("ve1", "ve2"):
                with pytest.raises(BadValue, match="not vemgr's"):
                    await stage.attach(net, name, ve, stage.end(mtu=1500))
        assert await net.links() == []
    assert {"ve1", "ve2"} <= set(os.listdir("/proc/sys/net/ipv4/conf"))


async def link_goes_with_its_namespace():
    async with BridgeNetwork(stage.BRIDGE) as net:
        await net.ensure_bridge(stage.GATEWAY, stage.PREFIXLEN)
        ve = stage.Namespace()
        await stage.attach(net, "ve1", ve, stage.end(mtu=1500))
        ve.close()
        for _ in range(500):
            if await net.links() == []:
                break
            await asyncio.sleep(0.01)
        else:
            raise AssertionError("the link stayed")
        await net.detach("ve1")


async def links_of_others_are_not_ours():
    async with BridgeNetwork(stage.BRIDGE) as net:
        assert await net.links() == []
        await net.ensure_bridge(stage.GATEWAY, stage.PREFIXLEN)
        stage.ip("link", "add", "guest0", "master", stage.BRIDGE, "type", "veth", "peer", "name", "guest1")
        stage.ip("link", "add", "vex", "type", "veth", "peer", "name", "vey")
        assert await net.links() == []


async def attachments_at_once():
    async with BridgeNetwork(stage.BRIDGE) as net:
        await net.ensure_bridge(stage.GATEWAY, stage.PREFIXLEN)
        with contextlib.ExitStack() as stack:
            ves = [stack.enter_context(contextlib.closing(stage.Namespace())) for _ in range(8)]
            work = [stage.attach(net, f"ve{n}", ve, stage.end(mtu=1500)) for n, ve in enumerate(ves)]
            await asyncio.gather(*work, net.links(), net.foreign_subnets())
            assert len(await net.links()) == 8


async def no_descriptor_is_left():
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        async with BridgeNetwork(stage.BRIDGE) as net:
            await net.ensure_bridge(stage.GATEWAY, stage.PREFIXLEN)
            await net.foreign_subnets()
    await asyncio.sleep(0)
    assert len(os.listdir("/proc/self/fd")) == len(before)


async def uplink_and_foreign_subnets():
    async with BridgeNetwork(stage.BRIDGE) as net:
        assert await net.uplink_mtu() == 1500
        assert await net.foreign_subnets() == []
        with stage.outside():
            await net.ensure_bridge(stage.GATEWAY, stage.PREFIXLEN)
            for route in ("10.71.0.0/16", "0.0.0.0/1", "128.0.0.0/1"):
                stage.ip("route", "add", route, "via", stage.OUTSIDE)
            stage.ip("route", "add", "10.83.0.0/16", "via", stage.OUTSIDE, "table", "1234")
            stage.ip("route", "add", "blackhole", "10.67.0.0/16")
            stage.ip("addr", "add", "192.0.2.7/32", "dev", "lo")
            assert await net.uplink_mtu() == stage.UPLINK_MTU
            assert await net.foreign_subnets() == [
                "10.67.0.0/16", "10.71.0.0/16", "10.83.0.0/16", "127.0.0.0/8", "192.0.2.7/32", "198.51.100.0/24",
            ]


async def forwarding_is_put_back():
    assert sysctl.enable_forwarding() == 0
    assert setting("ipv4/ip_forward") == 1
    assert sysctl.enable_forwarding() == 1
    sysctl.restore_forwarding(1)
    assert setting("ipv4/ip_forward") == 1
    sysctl.restore_forwarding(0)
    assert setting("ipv4/ip_forward") == 0


async def without_a_network_the_loopback_works():
    with contextlib.closing(stage.Namespace()) as ve:
        stage.send_inside(ve, loopback_messages())
        ve.run("ping", "-c1", "-W2", "127.0.0.1")
        assert ve.run("ip", "-4", "route") == ""


@pytest.mark.skipif(not stage.can_play(), reason="cannot make network namespaces and links in them")
@pytest.mark.parametrize("scenario", [
    bridge_is_made_once, bridge_of_another_is_refused, bridge_is_removed, ve_is_attached,
    index_of_the_inside_is_ours_with_fallback_devices, leftover_is_replaced,
    interface_of_another_is_not_deleted, link_goes_with_its_namespace, links_of_others_are_not_ours,
    attachments_at_once, no_descriptor_is_left, uplink_and_foreign_subnets, forwarding_is_put_back,
    without_a_network_the_loopback_works,
], ids=lambda scenario: scenario.__name__)
def test_network(scenario):
    stage.play(__file__, scenario.__name__)


@pytest.mark.parametrize("name", ["", "x" * 16, "a/b", "a b", 'a"b'])
def test_a_bridge_name_that_is_none(name):
    with pytest.raises(BadValue):
        BridgeNetwork(name)
