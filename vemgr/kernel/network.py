# SPDX-License-Identifier: GPL-2.0-or-later
"""The VEs' bridge and the links on it, over rtnetlink.

Nothing here changes the daemon's namespace. What is done to the host is idempotent, so that a daemon which was killed
anywhere can do it again.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from ipaddress import IPv4Interface, IPv6Interface, ip_address
from types import TracebackType
from typing import Any, Self

from pyroute2 import AsyncIPRoute
from pyroute2.netlink import NLM_F_DUMP_INTR
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import rt_type

from vemgr.core.errors import BadValue, KernelLacks, PermissionDenied, SystemFailure, VemgrError
from vemgr.kernel import netlink, veth
from vemgr.kernel.sysctl import has_setting, write_setting
from vemgr.kernel.veth import IFA_F_NODAD, End, mac_for

#: What a link dump leaves out: statistics are half of each message.
RTEXT_FILTER_SKIP_STATS = 1 << 3
DEFAULT_MTU = 1500
#: Routes this wide are a default route in disguise (a VPN's 0.0.0.0/1 and 128.0.0.0/1), not a claim on addresses.
WIDEST_CLAIM = 8
#: A dump that links came or went under is torn, and marked so by the kernel.
DUMP_ATTEMPTS = 10


class BridgeNetwork:
    """One bridge of the host and the VEs' links on it. Belongs to the event loop it was opened in.

    `prefix` is what the names of our host ends begin with. The methods raise SystemFailure where the kernel refuses,
    with its errno among the facts, and PermissionDenied for EPERM.
    """

    def __init__(self, bridge: str, prefix: str = "ve") -> None:
        if not 0 < len(bridge) < 16 or not all(c.isascii() and (c.isalnum() or c in "-_") for c in bridge):
            raise BadValue("bridge", bridge, "not an interface name of at most 15 letters, digits, - and _")
        self.bridge = bridge
        self.prefix = prefix
        self.mac = mac_for(bridge, "bridge")
        self._index = 0
        self._ipr: Any = None

    @property
    def opened(self) -> bool:
        return self._ipr is not None

    async def open(self) -> None:
        # groups=0: membership in multicast groups would queue every event of the host for a reader we do not have.
        try:
            self._ipr = AsyncIPRoute(groups=0, ext_ack=True)
            await self._ipr.setup_endpoint()
        except (NetlinkError, OSError) as error:
            self.close()
            raise _failed("open a netlink socket for", self.bridge, error) from error

    def close(self) -> None:
        if self._ipr is not None:
            self._ipr.close()
            self._ipr = None

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def ensure_bridge(self, gateway: str, prefixlen: int) -> None:
        """Have the bridge, up, with exactly this IPv4 address, and with settings that protect the host from VEs.

        Raises BadValue if there is an interface of that name which is not ours.
        """
        mtu = await self.uplink_mtu()
        link = await self._link(self.bridge)
        if link is None:
            # The fixed MAC also keeps the bridge from taking that of the lowest port, a change each VE would notice.
            await self._do(
                "link", "add", ifname=self.bridge, kind="bridge", address=self.mac, br_stp_state=0, br_forward_delay=0
            )
            link = await self._link(self.bridge)
        self._index = self._own_bridge(link)["index"]
        self._protect_host()
        self._guard_bridge()
        await self._do("link", "set", index=self._index, mtu=mtu)
        await self._set_address(IPv4Interface(f"{gateway}/{prefixlen}"))
        await self._do("link", "set", index=self._index, state="up")

    async def ensure_ipv6(self, gateway: str, prefixlen: int) -> None:
        """Have this IPv6 address on the bridge besides. After `ensure_bridge`, which leaves IPv6 off.

        Raises KernelLacks where the host has no IPv6.
        """
        settings = f"net/ipv6/conf/{self.bridge}"
        if not has_setting(settings):
            raise KernelLacks("this host has no IPv6", remedy=f"set subnet6 of the network on {self.bridge} to 'off'")
        # The link-local address too is ours alone: nobody on the bridge may send from another's address.
        for name, value in (("accept_dad", 0), ("accept_redirects", 0), ("autoconf", 0), ("disable_ipv6", 0)):
            write_setting(f"{settings}/{name}", value)
        await self._set_address(IPv6Interface(f"{gateway}/{prefixlen}"))

    def gone(self) -> bool:
        """Whether somebody has deleted the bridge since `ensure_bridge`. Costs a few microseconds."""
        try:
            return socket.if_nametoindex(self.bridge) != self._index
        except OSError:
            return True

    async def make_way(self, host_ifname: str) -> None:
        """Delete a host end of that name, left over of a VE whose namespace the kernel is still taking down."""
        try:
            socket.if_nametoindex(host_ifname)
        except OSError:
            return
        await self._remove_leftover(host_ifname)

    def birth(self, host_ifname: str, end: End) -> bytes:
        """The message that makes a veth pair: host end on the bridge and up, `end` in a VE's namespace. Needs a
        successful `ensure_bridge` in this object's life."""
        if not self._index:
            raise SystemFailure(f"there is no bridge {self.bridge} to attach {host_ifname} to")
        return veth.birth(host_ifname, host_index=veth.random_host_index(), bridge_index=self._index, end=end)

    async def detach(self, host_ifname: str) -> None:
        """Delete a host end, and with it the VE's; not an error when it is gone.

        Takes about 16 ms, in a thread, because the kernel does it inside the system call. When the VE's namespace
        goes away anyway, so does its link: then only call this to be sure.
        """
        try:
            await asyncio.to_thread(netlink.send_batch, [veth.death(host_ifname)])
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise _failed("delete link", host_ifname, error) from None

    async def links(self) -> list[str]:
        """The host ends of ours that exist, sorted; empty when there is no bridge."""
        link = await self._link(self.bridge)
        if link is None:
            return []
        ports = await self._dump("link", master=link["index"], ext_mask=RTEXT_FILTER_SKIP_STATS)
        # The kernel filters by master, except old ones, which ignore what they do not know.
        names = [port.get("ifname") for port in ports if port.get("master") == link["index"]]
        return sorted(name for name in names if name.startswith(self.prefix))

    async def remove_bridge(self) -> None:
        """Delete the bridge if it is there and ours. Links on it stay, without a network."""
        link = await self._link(self.bridge)
        if link is not None:
            await self._do("link", "del", index=self._own_bridge(link)["index"])
        self._index = 0

    async def uplink_mtu(self) -> int:
        """The MTU in bytes of the interface of the default route with the lowest metric; 1500 without one."""
        routes = [r for r in await self._dump("route", family=socket.AF_INET) if r["dst_len"] == 0]
        routes = [r for r in routes if r.get("table") == veth.RT_TABLE_MAIN and r.get("oif")]
        if not routes:
            return DEFAULT_MTU
        best = min(routes, key=lambda route: route.get("priority") or 0)
        links = await self._do("link", "get", index=best.get("oif"))
        return int(links[0].get("mtu"))

    async def foreign_subnets(self) -> list[str]:
        """The IPv4 subnets ("a.b.c.d/n") that are configured or routed on this host, except on our bridge, sorted.

        All routing tables count: policy routing and VPNs keep theirs out of the main one.
        """
        ours = await self._link(self.bridge)
        index = ours["index"] if ours is not None else 0
        found = {
            str(IPv4Interface(f"{a.get('address')}/{a['prefixlen']}").network)
            for a in await self._dump("addr", family=socket.AF_INET)
            if a["index"] != index
        }
        ignored = {rt_type["local"], rt_type["broadcast"], rt_type["multicast"]}
        for route in await self._dump("route", family=socket.AF_INET):
            if route["dst_len"] >= WIDEST_CLAIM and route["type"] not in ignored and route.get("oif") != index:
                found.add(f"{route.get('dst')}/{route['dst_len']}")
        return sorted(found)

    def allow_loopback_redirect(self, allowed: bool) -> None:
        """Whether packets from the bridge may be redirected to 127.0.0.0/8 (by `vemgr.kernel.firewall`).

        Only after the firewall is in place: it drops what VEs themselves address to the host's loopback.
        """
        write_setting(f"net/ipv4/conf/{self.bridge}/route_localnet", int(allowed))

    def _protect_host(self) -> None:
        ipv4 = f"net/ipv4/conf/{self.bridge}"
        # A VE must not speak with an address of another network, and not change the host's routes by redirects.
        write_setting(f"{ipv4}/rp_filter", 1)
        write_setting(f"{ipv4}/accept_redirects", 0)
        ipv6 = f"net/ipv6/conf/{self.bridge}"
        if has_setting(ipv6):
            # A router advertisement from the bridge would become the host's default route (CVE-2020-13401).
            write_setting(f"{ipv6}/accept_ra", 0)

    def _guard_bridge(self) -> None:
        try:
            netlink.send_batch([veth.bridge_guard(self._index)])
        except OSError as error:
            raise _failed("guard bridge", self.bridge, error) from None

    async def disable_ipv6(self) -> None:
        """For a network without IPv6: the host's services would be reachable by the bridge's link-local address."""
        ipv6 = f"net/ipv6/conf/{self.bridge}"
        if has_setting(ipv6):
            write_setting(f"{ipv6}/disable_ipv6", 1)

    async def _set_address(self, wanted: IPv4Interface | IPv6Interface) -> None:
        """Have this address of its family and no other, apart from link-local ones of IPv6."""
        family = socket.AF_INET if wanted.version == 4 else socket.AF_INET6
        present = set()
        for address in await self._dump("addr", family=family):
            if address["index"] == self._index:
                found = address.get("local") or address.get("address")
                if not ip_address(found).is_link_local:
                    present.add(f"{found}/{address['prefixlen']}")
        for other in present - {str(wanted)}:
            found, _, prefixlen = other.partition("/")
            await self._do("addr", "del", index=self._index, address=found, prefixlen=int(prefixlen), family=family)
        if str(wanted) not in present:
            more: dict[str, Any] = {"flags": IFA_F_NODAD}
            if isinstance(wanted, IPv4Interface):
                more = {"broadcast": str(wanted.network.broadcast_address)}
            await self._do("addr", "add", index=self._index, address=str(wanted.ip), family=family,
                           prefixlen=wanted.network.prefixlen, **more)

    async def enslave(self, host_ifname: str) -> None:
        """Make a host end a port of the bridge again, after somebody has deleted the bridge. Does nothing to one that
        is. Raises SystemFailure when the host end is gone."""
        link = await self._link(host_ifname)
        if link is None:
            raise SystemFailure(f"interface {host_ifname} is gone; restart the VE", interface=host_ifname)
        if link.get("master") != self._index:
            await self._do("link", "set", index=link["index"], master=self._index, state="up")

    async def _remove_leftover(self, host_ifname: str) -> None:
        """Delete a veth that is in the way, unless somebody else uses it on another bridge."""
        link = await self._link(host_ifname)
        if link is None:
            return
        kind = link.get(("linkinfo", "kind"))
        if kind != "veth" or link.get("master") not in (None, self._index):
            raise BadValue("network.interface", host_ifname, f"there is an interface ({kind}) which is not vemgr's")
        await self.detach(host_ifname)

    def _own_bridge(self, link: Any) -> Any:
        """`link` if it is our bridge. The MAC address derived from its name is what we know it by."""
        if link is None or link.get(("linkinfo", "kind")) != "bridge" or link.get("address") != self.mac:
            raise BadValue(
                "bridge", self.bridge, "there is an interface of this name which is not vemgr's",
                remedy="set bridge to another name",
            )
        return link

    async def _link(self, name: str) -> Any:
        """The link of that name, or None."""
        try:
            found = await self._ipr.link("get", ifname=name)
        except (NetlinkError, OSError) as error:
            if _code(error) == errno.ENODEV:
                return None
            raise _failed("look up link", name, error) from None
        return found[0]

    async def _do(self, area: str, command: str, **arguments: Any) -> Any:
        try:
            return await getattr(self._ipr, area)(command, **arguments)
        except (NetlinkError, OSError) as error:
            what = str(arguments.get("ifname", self.bridge))
            raise _failed(f"{command} {area}", what, error) from None

    async def _dump(self, area: str, **arguments: Any) -> list[Any]:
        """All objects of a kind. The kernel marks a list that changed while it was read: then read it again.

        `dump_filter=None` keeps pyroute2 from filtering, so that `arguments` go to the kernel, which is faster.
        """
        for _ in range(DUMP_ATTEMPTS):
            try:
                dump = await getattr(self._ipr, area)("dump", dump_filter=None, **arguments)
                found = [message async for message in dump]
            except (NetlinkError, OSError) as error:
                raise _failed(f"list {area}", self.bridge, error) from None
            if not any(message["header"]["flags"] & NLM_F_DUMP_INTR for message in found):
                break
        return found


def _code(error: NetlinkError | OSError) -> int | None:
    """The kernel's verdict, or why it could not be asked (no buffer space, no descriptor)."""
    return error.code if isinstance(error, NetlinkError) else error.errno


def _failed(what: str, name: str, error: NetlinkError | OSError) -> VemgrError:
    code = _code(error)
    why = error.args[-1]
    if code == errno.EPERM:
        return PermissionDenied(f"cannot {what} {name}: {why}", remedy="vemgr needs CAP_NET_ADMIN", interface=name)
    return SystemFailure(f"cannot {what} {name}: {why}", call=what, interface=name, errno=code)
