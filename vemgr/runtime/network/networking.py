# SPDX-License-Identifier: GPL-2.0-or-later
"""The VEs' networks as one thing: subnets, bridges, firewall tables, links. Made when the first VE needs them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vemgr.core.config import Definition, Settings, wished_links
from vemgr.core.errors import SHORTAGES, BadValue, SystemFailure, VemgrError
from vemgr.core.host import HostConfig
from vemgr.core.links import Link, Publication
from vemgr.core.networks import Mode
from vemgr.core.rates import Rate
from vemgr.kernel.elements import Element, common_share_elements
from vemgr.kernel.network import BridgeNetwork
from vemgr.kernel.ruleset import Rules, Zone
from vemgr.kernel.small_files import content_of
from vemgr.kernel.sysctl import has_ipv6
from vemgr.kernel.veth import End, host_ifname, inside_messages, loopback_messages, port_prefix
from vemgr.runtime.network.attachments import Attachment, Attachments
from vemgr.runtime.network.foreign_hosts import ForeignHosts
from vemgr.runtime.network.forwarding import Forwarding
from vemgr.runtime.network.published import Published
from vemgr.runtime.network.rates import Rates
from vemgr.runtime.network.resolver import resolv_conf_for
from vemgr.runtime.network.subnets import Subnets, Taken, choose_subnets, known_subnets
from vemgr.runtime.network.tables import Tables
from vemgr.runtime.network.uplink import Uplink, share_of

log = logging.getLogger(__name__)

_RESOLV_CONF = "/etc/resolv.conf"
_UPSTREAM = "/run/systemd/resolve/resolv.conf"


class Networking:
    """`choose` settles the subnets, `prepare` makes what VEs need on the host; both are idempotent."""

    def __init__(self, config: HostConfig) -> None:
        self._config = config
        self._state = f"{config.state_dir}/network.json"
        self._forwarding = Forwarding(config.run_dir)
        self._prefix = port_prefix(config.instance)
        self._bridges = {network.name: BridgeNetwork(network.bridge, self._prefix) for network in config.networks}
        self._tables = Tables(config.table, self._wanted_tables, lambda: bool(self._prepared))
        self._subnets: dict[str, Subnets] = {}
        self._prepared: set[str] = set()  # networks whose bridge is there; with any, the tables are too
        self._changing = asyncio.Lock()  # two first VEs at once: one of them makes the network, the other waits
        self._mtu = 1500
        self._ipv6 = has_ipv6()
        self._published = Published()
        self._foreign = ForeignHosts(self._prefix)
        self.rates = Rates(self._prefix)
        self.uplink = Uplink(config.uplink, config.instance)
        self.uplink.on_empty = lambda: self._tables.release(self._shares_of_others())
        self.attachments = Attachments(f"{config.run_dir}/network")

    # subnets and addresses

    async def choose(self) -> None:
        """Settle every network's subnets: as configured, as chosen before, or such that clash with nothing here."""
        if not self._subnets:
            async with self._changing:
                if not self._subnets:
                    foreign = []
                    if not known_subnets(self._config.networks, self._state):
                        bridge = await self._open(self._config.networks[0].name)
                        foreign = await bridge.foreign_subnets()
                    self._subnets = choose_subnets(self._config.networks, self._state, foreign)

    def subnets(self, network: str) -> Subnets:
        """Raises `BadValue` for a network that is not there."""
        found = self._subnets.get(network)
        if found is None:
            raise BadValue("network", network, "there is no network of this name",
                           remedy=f"choose from {', '.join(self._subnets)}, or describe it in vemgr.toml")
        return found

    def links_for(self, settings: Settings, before: Sequence[Link], taken: Taken) -> tuple[Link, ...]:
        """The links that a VE with these settings gets; what it had `before` it keeps where it may.

        Raises `BadValue`, `AddressInUse`, `NotEnoughResources`. Needs `choose`.
        """
        had = {link.network: link for link in before}
        links = tuple(self.subnets(wish.network).choose(wish, had.get(wish.network), taken)
                      for wish in wished_links(settings))
        self._check_published(settings.publish, links)
        return links

    def suits(self, settings: Settings, links: Sequence[Link]) -> bool:
        """Whether a VE with these settings can go on with these links."""
        wishes = wished_links(settings)
        return len(wishes) == len(links) and all(
            self.subnets(wish.network).fits(wish, link) for wish, link in zip(wishes, links, strict=True))

    def mac_of(self, link: Link) -> str:
        """A link's MAC address, "" on a network that is gone."""
        known = self._subnets.get(link.network)
        return known.mac_of(link) if known else link.mac

    def _check_published(self, publications: Iterable[Publication], links: Sequence[Link]) -> None:
        target = self._way_out(links)
        for publication in publications:
            if target is None:
                raise BadValue("publish", str(publication), "the VE is on isolated networks only")
            if publication.families == (6,) and not links[target].address6:
                raise BadValue("publish", str(publication), "the VE has no IPv6 address",
                               remedy="set subnet6 of its network in vemgr.toml")

    def _way_out(self, links: Sequence[Link]) -> int | None:
        """The first link that leads outside: default route, name servers and published ports are its."""
        return next((number for number, link in enumerate(links)
                     if self.subnets(link.network).config.mode != Mode.ISOLATED), None)

    # what is on the host

    async def _open(self, network: str) -> BridgeNetwork:
        bridge = self._bridges[network]
        if not bridge.opened:
            await bridge.open()
        return bridge

    async def prepare(self, links: Iterable[Link]) -> None:
        """Bridges, forwarding and firewall. Again after a restart of the daemon; nothing of it costs a running VE."""
        wanted = {link.network for link in links}
        if wanted <= self._prepared:
            return
        async with self._changing:
            try:
                await self._make(wanted)
            except BaseException:
                if not self._prepared and not list(self.attachments):  # nobody has a network: not half of one either
                    await self._undo_make()
                raise

    async def _make(self, wanted: set[str]) -> None:
        for network in sorted(wanted - self._prepared):
            await self._make_bridge(self.subnets(network))
        self._tables.install()
        self._foreign.begin()
        for network in sorted(wanted):
            # Only now: the tables drop what VEs themselves would send to the host's loopback.
            self._bridges[network].allow_loopback_redirect(True)
        self._prepared |= wanted

    async def _undo_make(self) -> None:
        self._foreign.close()
        for network in self._config.networks:
            with contextlib.suppress(VemgrError):
                await (await self._open(network.name)).remove_bridge()
        with contextlib.suppress(VemgrError):
            self._tables.remove()
        with contextlib.suppress(VemgrError):
            self._forwarding.restore()

    async def _make_bridge(self, network: Subnets) -> None:
        bridge = await self._open(network.config.name)
        ipv6 = network.pool6 is not None
        if network.config.mode != Mode.ISOLATED:
            # Before the bridge: the kernel resets every interface's settings when this value changes.
            self._forwarding.enable(ipv6=ipv6)
        self._mtu = await bridge.uplink_mtu()
        await bridge.ensure_bridge(network.pool.gateway, network.pool.prefixlen)
        if network.pool6 is not None:
            await bridge.ensure_ipv6(network.pool6.gateway, network.pool6.prefixlen)
        else:
            await bridge.disable_ipv6()

    def _wanted_tables(self) -> tuple[Rules, list[Element]]:
        zones = tuple(_zone(network) for network in self._subnets.values())
        elements = [element for attachment in self.attachments for element in attachment.elements()]
        return Rules(zones, self._prefix, self._resolver()), elements + self._common_shares()

    async def restore(self, more: Iterable[Link] = ()) -> None:
        """Put everything right that somebody else has changed: bridges, ports on them, addresses, tables.

        `more`: links that are about to be made, besides those that there are.
        """
        await self.choose()
        self._prepared.clear()
        await self.uplink.restore()
        links = [*more, *(link for attachment in self.attachments for link in attachment.links)]
        if not links:
            return
        await self.prepare(links)
        for network in sorted({link.network for link in links}):
            await self._enslave(network)

    async def _enslave(self, network: str) -> None:
        """Make the ports of all running VEs ports of their bridge again."""
        bridge = self._bridges[network]
        there = set(await bridge.links())
        for attachment in self.attachments:
            for port, link in zip(attachment.ports, attachment.links, strict=True):
                if link.network != network or port in there:
                    continue
                try:
                    await bridge.enslave(port)
                except VemgrError as error:
                    log.error("VE %s: its link to network %s: %s", attachment.ve, network, error)

    # a VE's links

    async def check_addresses(self, ve: str, links: Iterable[Link]) -> None:
        """Raises `AddressInUse` when a host on the network that is no VE answers to an address of these links."""
        await self._foreign.check(ve, [(link, self._bridges[link.network]) for link in links])

    async def connect(self, ve: str, links: Sequence[Link],
                      publish: tuple[Publication, ...]) -> tuple[list[bytes], list[bytes]]:
        """Prepare the host for a VE's links; returns the messages that make them, and those for their inside."""
        if any(self._bridges[link.network].gone() for link in links):
            log.warning("a bridge is gone: made anew")
            await self.restore(links)
        attachment = self._attachment(ve, links, publish)
        self._published.hold(attachment)
        self.attachments.put(attachment)
        # One small transaction, before the links: until then, the ports could not send.
        self._tables.change((), attachment.elements())
        ends = self._ends(attachment)
        births: list[bytes] = []
        for port, link, end in zip(attachment.ports, attachment.links, ends, strict=True):
            bridge = self._bridges[link.network]
            await bridge.make_way(port)
            births.append(bridge.birth(port, end))
        return births, inside_messages(ends)

    def _attachment(self, ve: str, links: Sequence[Link], publish: tuple[Publication, ...]) -> Attachment:
        ports = tuple(host_ifname(ve, self._config.instance, number) for number in range(len(links)))
        complete = tuple(replace(link, mac=self.mac_of(link)) for link in links)
        return Attachment(ve, complete, ports, publish, self._way_out(links) or 0, self.uplink.classid(ve))

    def _ends(self, attachment: Attachment) -> list[End]:
        """The inside of a VE's links. The default routes are by the first that leads outside and has the family."""
        ends: list[End] = []
        for number, link in enumerate(attachment.links):
            network = self.subnets(link.network)
            outside = network.config.mode != Mode.ISOLATED
            pool, pool6 = network.pool, network.pool6
            ends.append(End(
                mac=link.mac, mtu=self._mtu, link=number, ipv6=self._ipv6,
                address=f"{link.address}/{pool.prefixlen}",
                address6=f"{link.address6}/{pool6.prefixlen}" if pool6 and link.address6 else "",
                gateway=pool.gateway if outside and not any(end.gateway for end in ends) else "",
                gateway6=pool6.gateway if pool6 and link.address6 and outside
                and not any(end.gateway6 for end in ends) else "",
            ))
        return ends

    @staticmethod
    def loopback_only() -> list[bytes]:
        return loopback_messages()

    def publish(self, ve: str, publications: tuple[Publication, ...]) -> None:
        """Change the published ports of a running VE. Raises `AddressInUse`, `BadValue`; then nothing has changed."""
        before = self.attachments.get(ve)
        if before is None or before.publish == publications:
            return
        self._check_published(publications, before.links)
        after = replace(before, publish=publications)
        try:
            self._published.hold(after)
            self.attachments.put(after)
        except BaseException:
            with contextlib.suppress(VemgrError):
                self._published.hold(before)
            raise
        gone = [element for element in before.published() if element not in after.published()]
        new = [element for element in after.published() if element not in before.published()]
        self._tables.change(gone, new)

    async def limit(self, ve: str, rate: Rate) -> None:
        """Hold the links of a running VE to a rate. Raises `SystemFailure`."""
        attachment = self.attachments.get(ve)
        if attachment is not None:
            await self.rates.apply(ve, attachment.ports, rate)

    async def share(self, definition: Definition) -> None:
        """Give a VE that runs, or is about to, its share of the uplink, if it is to have one. Raises `NotEnforceable`,
        `SystemFailure`."""
        ve, share = definition.name, share_of(definition)
        if share is not None:
            await self.uplink.hold(ve, share)
            if self._tables.made:
                self._tables.change((), self._common_shares())
        before = self.attachments.get(ve)
        if before is not None:
            self._reclassify(before, self.uplink.classid(ve) if share else 0)
        if share is None:
            self.uplink.released(ve)

    def _reclassify(self, before: Attachment, classid: int) -> None:
        if before.classid == classid:
            return
        after = replace(before, classid=classid)
        self.attachments.put(after)
        if self._tables.made:
            self._tables.change(before.share(), after.share())

    def _common_shares(self) -> list[Element]:
        """While some VEs have shares: what sets all the others apart from the host."""
        return self._shares_of_others() if self.uplink.active else []

    def _shares_of_others(self) -> list[Element]:
        return common_share_elements(self.uplink.common, [network.config.bridge for network in self._subnets.values()])

    def traffic(self, ve: str) -> dict[str, int]:
        """Bytes to a running VE and from it, since its start."""
        attachment = self.attachments.get(ve)
        return self.rates.traffic(attachment.ports) if attachment is not None else {}

    def check_ports(self, ve: str, publications: tuple[Publication, ...], links: Sequence[Link]) -> None:
        """Raises `AddressInUse` or `BadValue` for ports that the host does not have to give."""
        target = self._way_out(links)
        self._published.check(ve, publications, ipv6=target is not None and bool(links[target].address6))

    async def disconnect(self, ve: str) -> None:
        """Undo `connect`."""
        attachment = self.attachments.get(ve)
        self.released(ve)
        for port, link in zip(attachment.ports, attachment.links, strict=True) if attachment else ():
            await (await self._open(link.network)).detach(port)

    def released(self, ve: str) -> None:
        """A VE has ended. The kernel takes its links down together with its network namespace."""
        attachment = self.attachments.get(ve)
        self._published.release(ve)
        self.attachments.drop(ve)
        self.rates.released(ve)
        self.uplink.released(ve)
        if attachment is not None:
            self._tables.release(attachment.elements())

    async def adopt(self, running: Mapping[str, tuple[Sequence[Link], tuple[Publication, ...]]]) -> list[str]:
        """Take over the VEs that run, given what their definitions say; remove host ends that none of them has.

        Returns the names of those.
        """
        await self.choose()
        self.attachments.load(list(running))
        for ve, (links, publish) in running.items():
            there = self.attachments.get(ve)
            if links and there is None:
                with contextlib.suppress(BadValue):  # a network that is gone from vemgr.toml
                    self.attachments.put(self._attachment(ve, links, publish))
            elif there is not None and there.publish != publish:
                # A daemon ended between changing this and writing it to the definition, which alone says what holds.
                self.attachments.publish(ve, publish)
        for attachment in self.attachments:
            if attachment.classid != self.uplink.classid(attachment.ve):
                self.attachments.put(replace(attachment, classid=self.uplink.classid(attachment.ve)))
        await self.restore()
        for attachment in self.attachments:
            try:
                self._published.hold(attachment)
            except VemgrError as error:
                log.error("VE %s: %s", attachment.ve, error)
        await self.rates.adopt({attachment.ve: attachment.ports for attachment in self.attachments})
        return await self._drop_stale()

    async def _drop_stale(self) -> list[str]:
        wanted = {port for attachment in self.attachments for port in attachment.ports}
        stale: list[str] = []
        for network in self._config.networks:
            bridge = await self._open(network.name)
            gone = [port for port in await bridge.links() if port not in wanted]
            for port in gone:
                await bridge.detach(port)
            stale += gone
        return stale

    def resolv_conf(self, links: Sequence[Link]) -> str:
        """What /etc/resolv.conf of a VE says, "" where no name server can be reached."""
        target = self._way_out(links)
        if target is None:
            return ""
        gateway = self.subnets(links[target].network).pool.gateway
        return resolv_conf_for(_read(_RESOLV_CONF) or "", _read(_UPSTREAM), gateway,
                               ipv6=bool(links[target].address6))[0]

    def _resolver(self) -> str | None:
        gateway = next(iter(self._subnets.values())).pool.gateway
        return resolv_conf_for(_read(_RESOLV_CONF) or "", _read(_UPSTREAM), gateway)[1]

    def show(self, ve: str, links: Sequence[Link]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
        """A VE's links as the API shows them: those of its next start, and those that it has while it runs."""
        attachment = self.attachments.get(ve)
        wanted = [_shown(number, replace(link, mac=self.mac_of(link))) for number, link in enumerate(links)]
        in_use = [_shown(number, link) for number, link in enumerate(attachment.links)] if attachment else []
        return wanted, in_use

    def describe(self) -> list[dict[str, Any]]:
        """The networks as the API shows them. Needs `choose`."""
        return [{
            "name": network.config.name, "bridge": network.config.bridge, "mode": str(network.config.mode),
            "mode6": str(network.config.mode6) if network.pool6 else "",
            "subnet": network.pool.subnet, "gateway": network.pool.gateway,
            "subnet6": network.pool6.subnet if network.pool6 else "",
            "gateway6": network.pool6.gateway if network.pool6 else "",
        } for network in self._subnets.values()]

    async def take_back(self) -> None:
        """Remove bridges and tables and give back the forwarding settings, as if we had never been here."""
        await self.rates.take_back()
        await self.uplink.take_back()
        for network in self._config.networks:
            await (await self._open(network.name)).remove_bridge()
        self._prepared.clear()
        self._tables.remove()
        self._forwarding.restore()

    def close(self) -> None:
        for bridge in self._bridges.values():
            bridge.close()
        self._tables.close()
        self._foreign.close()


def _zone(network: Subnets) -> Zone:
    config, pool6 = network.config, network.pool6
    return Zone(config.bridge, network.pool.subnet, network.pool.gateway, pool6.subnet if pool6 else "",
                pool6.gateway if pool6 else "", config.mode, config.mode6)


def _shown(number: int, link: Link) -> dict[str, str]:
    return {"interface": f"eth{number}", "network": link.network, "address": link.address, "address6": link.address6,
            "mac": link.mac}


def _read(path: str) -> str | None:
    try:
        return content_of(path, 65536).decode(errors="replace")
    except OSError as error:
        if error.errno in SHORTAGES:  # not as if there were none: a VE would get the wrong name servers
            raise SystemFailure(f"cannot read {path}: {error.strerror}", path=path, errno=error.errno) from error
        return None
