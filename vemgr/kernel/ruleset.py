# SPDX-License-Identifier: GPL-2.0-or-later
"""The text of vemgr's two nftables tables. Values in, text out: Linux' own words are in nft(8).

Nothing in the chains grows with the number of VEs: what belongs to a VE are elements of sets and maps, looked up by
hash (`vemgr.kernel.elements`). Text is built from validated values only: there is no quoting in the nft language.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network

from vemgr.core.errors import BadValue
from vemgr.core.networks import Mode
from vemgr.kernel.elements import Element

#: How we know a table as ours. Not in JSON before nftables 1.0.8, hence looked for in the text of a listing.
MARKER = "managed by vemgr"
_INTERFACE = re.compile(r"[A-Za-z0-9_-]{1,15}")
_LOOPBACK = "127.0.0.0/8"

#: Sets and maps that VEs' elements are in: family, name, type.
SETS = (
    ("bridge", "own4", "type ifname . ether_addr . ipv4_addr"),
    ("bridge", "own6", "type ifname . ether_addr . ipv6_addr"),
    # The same addresses once more: nft does not take the target of a neighbour advertisement for an address.
    ("bridge", "target6", "typeof iifname . ether saddr . @th,64,128"),
    ("inet", "at4", "type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service"),
    ("inet", "any4", "type inet_proto . inet_service : ipv4_addr . inet_service"),
    ("inet", "at6", "type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service"),
    ("inet", "any6", "type inet_proto . inet_service : ipv6_addr . inet_service"),
    # Shares of the host's uplink (`kernel.uplink`): of bridges, and of VEs by their addresses.
    ("inet", "share", "type ifname : classid"),
    ("inet", "share4", "type ipv4_addr : classid"),
    ("inet", "share6", "type ipv6_addr : classid"),
)


@dataclass(frozen=True)
class Zone:
    """One network, as the rules need to know it. `subnet6` is "" without IPv6. Raises BadValue at construction."""

    bridge: str
    subnet: str
    gateway: str
    subnet6: str = ""
    gateway6: str = ""
    mode: Mode = Mode.NAT
    mode6: Mode = Mode.NAT

    def __post_init__(self) -> None:
        if not _INTERFACE.fullmatch(self.bridge):
            raise BadValue("bridge", self.bridge, "not an interface name")
        try:
            IPv4Network(self.subnet)
            IPv6Network(self.subnet6 or "::/0")
        except ValueError as error:
            raise BadValue("subnet", self.subnet, str(error)) from None
        try:
            IPv4Address(self.gateway)
            IPv6Address(self.gateway6 or "::")
        except AddressValueError as error:
            raise BadValue("network.gateway", self.gateway, str(error)) from None


@dataclass(frozen=True)
class Rules:
    """What the tables are made from. Raises BadValue at construction."""

    zones: tuple[Zone, ...]
    #: What the names of VEs' ports begin with.
    port_prefix: str
    #: The resolver on the host's loopback that the VEs' questions to gateway:53 go to (IPv4), None for no redirect.
    resolver: str | None = None

    def __post_init__(self) -> None:
        if not _INTERFACE.fullmatch(self.port_prefix):
            raise BadValue("network.port", self.port_prefix, "not the beginning of an interface name")
        if self.resolver is None:
            return
        try:
            loopback = IPv4Address(self.resolver).is_loopback
        except AddressValueError as error:
            raise BadValue("network.resolver", self.resolver, str(error)) from None
        if not loopback:
            raise BadValue("resolver", self.resolver, "only a resolver on the loopback needs a redirect")


def ruleset(table: str, rules: Rules, elements: Iterable[Element] = ()) -> str:
    """The transaction that makes both tables of this name what `rules` say, whatever they were. Pure."""
    inet = [_guard(rules), _redirect(rules), _local(), _published(), _forward(), _masquerade(rules)]
    bridge = [_ports(rules), _to_host(rules), _own(), _neighbours()]
    return (
        removal(table)
        + _table("inet", table, _networks(rules) + _empty_sets("inet") + "\n".join(inet))
        + _table("bridge", table, _empty_sets("bridge") + "\n".join(bridge))
        + _additions(table, elements)
    )


def removal(table: str) -> str:
    """The transaction that ends with neither table. The first line of each pair lets the second succeed always."""
    return "".join(f"table {family} {table}\ndelete table {family} {table}\n" for family in ("inet", "bridge"))


def _table(family: str, name: str, body: str) -> str:
    return f'table {family} {name} {{\n\tcomment "{MARKER}"\n{body}}}\n'


def _additions(table: str, elements: Iterable[Element]) -> str:
    by_set: dict[tuple[str, str], list[str]] = {}
    for element in elements:
        by_set.setdefault((element.family, element.set), []).append(str(element))
    return "".join(f"add element {family} {table} {name} {{ {', '.join(texts)} }}\n"
                   for (family, name), texts in by_set.items())


def _chain(name: str, lines: Sequence[str], hook: str = "") -> str:
    # The names avoid the words of the nft language.
    body = "".join(f"\t\t{line}\n" for line in ([hook] if hook else []) + list(lines))
    return f"\tchain {name} {{\n{body}\t}}\n"


def _networks(rules: Rules) -> str:
    """Which bridge is what. A set may be empty, but not its list of elements."""
    zones = rules.zones
    sets = {
        "bridges": [z.bridge for z in zones],
        "closed4": [z.bridge for z in zones if z.mode != Mode.ROUTED],
        "closed6": [z.bridge for z in zones if z.mode6 != Mode.ROUTED],
        "isolated": [z.bridge for z in zones if z.mode == Mode.ISOLATED],
    }
    text = "".join(_set(name, "ifname", [f'"{bridge}"' for bridge in bridges]) for name, bridges in sets.items())
    return text + _set("within", "ifname . ifname", [f'"{z.bridge}" . "{z.bridge}"' for z in zones])


def _empty_sets(family: str) -> str:
    kinds = [("map" if " : " in type_ else "set", name, type_) for of, name, type_ in SETS if of == family]
    return "".join(f"\t{kind} {name} {{\n\t\t{type_}\n\t}}\n" for kind, name, type_ in kinds)


def _set(name: str, type_: str, elements: list[str]) -> str:
    listed = f"\t\telements = {{ {', '.join(elements)} }}\n" if elements else ""
    return f"\tset {name} {{\n\t\ttype {type_}\n{listed}\t}}\n"


def _guard(rules: Rules) -> str:
    """What a VE may not send at all. Before the redirect, whose result looks the same as what is dropped here.

    What a VE sends comes by its bridge. By its port come frames that the kernel gives to the host past the rules of
    the bridge (`veth.bridge_guard`), and everything when somebody has taken the port off its bridge: nobody has
    looked at the addresses of either.

    Redirects to and from the host's loopback need route_localnet on the bridge, with which a VE's own packets to the
    host's 127.0.0.0/8, and such that claim to come from there, would be delivered.
    """
    return _chain("guard", [
        f'iifname "{rules.port_prefix}*" iifname != @bridges drop',
        f"iifname @bridges ip daddr {_LOOPBACK} drop",
        f"iifname @bridges ip saddr {_LOOPBACK} drop",
    ], "type filter hook prerouting priority raw; policy accept;")


def _redirect(rules: Rules) -> str:
    """Questions to a gateway's port 53 go to the host's own resolver, published ports to their VE.

    A port published on 127.0.0.1 is for the host alone: a neighbour's packet to 127.0.0.1 must not be redirected
    before the kernel drops it as martian.
    """
    lines = []
    if rules.resolver is not None:
        for zone in rules.zones:
            if zone.mode != Mode.ISOLATED:
                asked = f'iifname "{zone.bridge}" ip daddr {zone.gateway}'
                lines += [f"{asked} {protocol} dport 53 dnat ip to {rules.resolver}:53" for protocol in ("udp", "tcp")]
    lines += [f"ip daddr {_LOOPBACK} return", "fib daddr type local jump published"]
    return _chain("nat_in", lines, "type nat hook prerouting priority dstnat; policy accept;")


def _local() -> str:
    """What the host itself sends to its own addresses does not pass prerouting. From ::1 nothing can leave `lo`."""
    return _chain("nat_local", ["ip6 daddr ::1 return", "fib daddr type local jump published"],
                  "type nat hook output priority -100; policy accept;")


def _published() -> str:
    return _chain("published", [
        f"dnat {ip} to {ip} daddr . meta l4proto . th dport map @at{family}\n"
        f"\t\tdnat {ip} to meta l4proto . th dport map @any{family}"
        for ip, family in (("ip", 4), ("ip6", 6))
    ])


def _forward() -> str:
    """What may pass between VEs and the rest of the world. Accepting here does not overrule a drop elsewhere.

    With br_netfilter what goes from VE to VE comes by here as well, as from a bridge to itself. The class of the
    uplink comes before all, where the source address is still the VE's own; without an element nothing is set.
    """
    return _chain("routed", [
        "meta priority set iifname map @share",
        "meta priority set ip saddr map @share4",
        "meta priority set ip6 saddr map @share6",
        "iifname != @bridges oifname != @bridges accept",
        "iifname . oifname @within accept",
        "iifname @isolated reject with icmpx admin-prohibited",
        "oifname @isolated drop",
        "ct state established,related accept",
        "ct status dnat accept",
        "meta nfproto ipv4 oifname @closed4 drop",
        "meta nfproto ipv6 oifname @closed6 drop",
    ], "type filter hook forward priority filter; policy accept;")


def _masquerade(rules: Rules) -> str:
    """VEs appear outside with the host's address. Not on `lo`, where the host talks to its own gateway address.

    A published port that is asked for by a VE on the same bridge, or by the host from its loopback, must be answered
    by way of the host: the VE would answer the one directly, and the other not at all.
    """
    lines = [f"ip saddr {_LOOPBACK} oifname @bridges ct status dnat masquerade"]
    for zone in rules.zones:
        for ip, subnet, mode in (("ip", zone.subnet, zone.mode), ("ip6", zone.subnet6, zone.mode6)):
            if not subnet:
                continue
            lines.append(f'{ip} saddr {subnet} oifname "{zone.bridge}" ct status dnat masquerade')
            if mode == Mode.NAT:
                lines.append(f'{ip} saddr {subnet} oifname != {{ "lo", "{zone.bridge}" }} masquerade')
    return _chain("nat_out", lines, "type nat hook postrouting priority srcnat; policy accept;")


def _ports(rules: Rules) -> str:
    """Of all ports of bridges, those of VEs are looked at. Before br_netfilter, so that nothing sees a false packet."""
    return _chain("from_port", [f'iifname "{rules.port_prefix}*" goto own'],
                  "type filter hook prerouting priority -300; policy accept;")


def _to_host(rules: Rules) -> str:
    """Of the frames to neighbours of the bridge those that cannot be forwarded come by here, not by prerouting."""
    return _chain("to_host", [
        f'iifname "{rules.port_prefix}*" ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 drop',
    ], "type filter hook input priority -200; policy accept;")


def _own() -> str:
    """A VE sends from its own MAC and IP addresses; all else is dropped, so a port without elements is shut."""
    return _chain("own", [
        "iifname . ether saddr . ip saddr @own4 accept",
        "iifname . ether saddr . arp saddr ip @own4 iifname . arp saddr ether . arp saddr ip @own4 accept",
        "iifname . ether saddr . ip6 saddr @own6 goto neighbours",
        "drop",
    ])


def _neighbours() -> str:
    """A VE is nobody's router, and answers for its own addresses only."""
    return _chain("neighbours", [
        "icmpv6 type { nd-router-advert, nd-redirect } drop",
        "icmpv6 type nd-neighbor-advert iifname . ether saddr . @th,64,128 @target6 accept",
        "icmpv6 type nd-neighbor-advert drop",
        "accept",
    ])
