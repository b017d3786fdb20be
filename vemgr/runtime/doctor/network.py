# SPDX-License-Identifier: GPL-2.0-or-later
"""What stands in the way of the VEs' packets: others' rules, others' addresses, settings."""

from __future__ import annotations

import sys
from ipaddress import AddressValueError, IPv4Address, IPv4Network, NetmaskValueError

from vemgr.runtime.doctor.findings import Finding, Host, Site, fail, ok, warn

_FULL = 80  # per cent


def foreign_forward_policy(host: Host, site: Site) -> Finding:
    """A packet must be accepted by every table: an accept in ours does not outweigh a drop in another."""
    chains = host.chains()
    if chains is None:
        return fail("nftables cannot be asked", "VEs have no network", "install libnftables1; modprobe nf_tables")
    bridges = [network.bridge for network in site.config.networks]
    found = [chain for chain in chains
             if chain.hook == "forward" and chain.policy == "drop" and chain.table != site.config.table]
    if found:
        names = ", ".join(f"{chain.family} {chain.table} {chain.name}" for chain in found)
        family, table, name, *_ = found[0]
        return warn(f"policy drop for what is forwarded: {names}", "VEs may not get out, nor be reached",
                    "; ".join(f"nft insert rule {family} {table} {name} {direction} {bridge} accept"
                              for bridge in bridges for direction in ("iifname", "oifname")))
    return ok("nobody else drops what is forwarded")


def other_firewalls(host: Host, site: Site) -> Finding:
    bridge = site.config.networks[0].bridge
    tables = {chain.table for chain in host.chains() or []}
    remedies = {}
    if "firewalld" in tables:
        remedies["firewalld"] = (f"firewall-cmd --permanent --zone=trusted --add-interface={bridge}; "
                                 "firewall-cmd --reload")
    names = {chain.name for chain in host.chains() or []}
    if any(name.startswith("ufw") for name in names) or "ENABLED=yes" in (host.text("/etc/ufw/ufw.conf") or ""):
        remedies["ufw"] = f"ufw route allow in on {bridge}; ufw route allow out on {bridge}"
    if host.has("/sys/class/net/docker0") or any(name.startswith("DOCKER") for name in names):
        remedies["docker"] = (f"iptables -I DOCKER-USER -i {bridge} -j ACCEPT; "
                              f"iptables -I DOCKER-USER -o {bridge} -j ACCEPT")
    if host.text("/proc/net/ip_tables_names"):
        remedies["legacy iptables"] = "iptables-legacy-save shows its rules, which cannot be seen from here"
    if remedies:
        return warn(f"also at work: {', '.join(remedies)}", "their rules can keep VEs from the network",
                    "; ".join(remedies.values()))
    return ok("no other firewall is at work")


def addresses(host: Host, site: Site) -> Finding:
    clashes = [f"{subnet} of {bridge} and {route} by {interface}"
               for bridge, subnet in site.subnets.items()
               for route, interface in _routes(host.text("/proc/thread-self/net/route") or "")
               if interface != bridge and route.prefixlen and IPv4Network(subnet).overlaps(route)]
    if clashes:
        return fail(f"the same addresses: {'; '.join(clashes)}", "VEs, or what is behind that route, cannot be reached",
                    "give the network another subnet in vemgr.toml")
    return ok("the VEs' subnets clash with no route")


def _routes(text: str) -> list[tuple[IPv4Network, str]]:
    """/proc/net/route: the main table, each address the hexadecimal number that its bytes are to this machine."""
    found = []
    for line in text.splitlines()[1:]:
        interface, destination, _, _, _, _, _, mask, *_ = line.split()
        try:
            network = IPv4Network((_address(destination), str(IPv4Address(_address(mask)))))
        except (AddressValueError, NetmaskValueError, ValueError):
            continue
        found.append((network, interface))
    return found


def _address(text: str) -> int:
    return int.from_bytes(bytes.fromhex(text), sys.byteorder)


def forwarding(host: Host, site: Site) -> Finding:
    """vemgr lets the host forward when the first VE with a network starts."""
    if (host.text("/proc/sys/net/ipv4/ip_forward") or "").strip() == "0" and site.running:
        return warn("net.ipv4.ip_forward is 0", "VEs do not get out; somebody has switched it off since they started",
                    "vemgr network restore")
    return ok("forwarding is on, or not needed yet")


def bridge_netfilter(host: Host, _site: Site) -> Finding:
    names = ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables")
    on = [name for name in names if (host.text(f"/proc/sys/net/bridge/{name}") or "").strip() == "1"]
    if on:
        return warn(f"{', '.join(on)} is on (br_netfilter)",
                    "packets between VEs go through the rules of iptables, which may drop them",
                    "; ".join(f"sysctl -w net.bridge.{name}=0" for name in on))
    return ok("bridged packets do not go through iptables")


def connections(host: Host, _site: Site) -> Finding:
    count, most = (host.text(f"/proc/sys/net/netfilter/nf_conntrack_{name}") for name in ("count", "max"))
    if count and most and int(most) and int(count) * 100 // int(most) >= _FULL:
        return warn(f"{count.strip()} of {most.strip()} tracked connections", "new connections of all VEs are dropped "
                    "when there are no more", f"sysctl -w net.netfilter.nf_conntrack_max={2 * int(most)}")
    return ok(f"tracked connections: {(count or '0').strip()} of {(most or 'none').strip()}")


PROBES = {"forward-policy": foreign_forward_policy, "other-firewalls": other_firewalls, "addresses": addresses,
          "forwarding": forwarding, "br_netfilter": bridge_netfilter, "connections": connections}
