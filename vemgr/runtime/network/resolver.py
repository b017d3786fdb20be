# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VE's /etc/resolv.conf says, derived from the host's. Text in, text out: see resolv.conf(5).

A VE cannot use a name server on the host's loopback, which is where systemd-resolved, dnsmasq and unbound usually
are. systemd-resolved publishes its upstreams, so a VE asks those directly; it has to, since the stub on 127.0.0.53 is
bound to `lo` and answers nobody else. For any other, the VE asks the gateway and the host redirects the question.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from ipaddress import AddressValueError, IPv4Address, IPv6Address

#: resolv.conf(5), MAXNS: the C library reads no more than three, so a fourth would only seem to be in use.
MAX_NAMESERVERS = 3

#: systemd-resolved(8): the stub is bound to `lo` and never sees a redirected packet; the proxy of newer versions is
#: left unbound on purpose, for redirects such as ours (its resolved-dns-stub.c).
RESOLVED_STUB, RESOLVED_PROXY = "127.0.0.53", "127.0.0.54"

#: What a name server on ::1 or 0.0.0.0 is redirected to: IPv4 is not translated to IPv6, and a server that listens
#: on one loopback address listens on the other.
LOOPBACK = "127.0.0.1"


@dataclass
class ResolvConf:
    """A parsed resolv.conf: name servers in order, and the other lines (`search`, `options`, ...) by keyword."""

    nameservers: list[str] = field(default_factory=list)
    other: dict[str, str] = field(default_factory=dict)


@functools.lru_cache(maxsize=64)  # by the texts: the files are read at each start
def resolv_conf_for(
    host_text: str, upstream_text: str | None, gateway: str, *, ipv6: bool = False
) -> tuple[str, str | None]:
    """The text of a VE's /etc/resolv.conf, and the host's loopback resolver that `gateway`:53 must be redirected to.

    `host_text` is the host's /etc/resolv.conf, `upstream_text` its /run/systemd/resolve/resolv.conf if there is one.
    The second value is None when no redirect is needed. With `ipv6` false (the VE has no IPv6 address) name servers
    with an IPv6 address are left out, and a comment in the text says so.
    """
    host = parse(host_text)
    if upstream_text is not None and RESOLVED_STUB in host.nameservers:
        host = behind_the_stub(host, parse(upstream_text))
    servers: list[str] = []
    left_out: list[str] = []
    redirect: str | None = None
    # No name server line at all means the one on this machine, to the C library.
    for server in host.nameservers or [LOOPBACK]:
        local = loopback(server)
        if local is not None:
            redirect = redirect or local
            servers.append(gateway)
        elif reachable(server, ipv6):
            servers.append(server)
        else:
            left_out.append(server)
    kept = list(dict.fromkeys(servers))[:MAX_NAMESERVERS]
    return render(kept, left_out, host.other), redirect if gateway in kept else None


def parse(text: str) -> ResolvConf:
    """The lines of a resolv.conf that mean something. The last of `search` and of each other keyword counts."""
    conf = ResolvConf()
    for line in text.splitlines():
        keyword, *words = line.split() or [""]
        value = " ".join(words)
        if not words or keyword[0] in "#;":
            continue
        if keyword == "nameserver":
            conf.nameservers.append(words[0])
        elif keyword in ("search", "domain"):
            # The two exclude each other: whichever comes last wins.
            conf.other.pop("search", None)
            conf.other.pop("domain", None)
            conf.other[keyword] = value
        elif keyword in ("options", "sortlist"):
            conf.other[keyword] = value
    return conf


def behind_the_stub(host: ResolvConf, upstream: ResolvConf) -> ResolvConf:
    """`host` with systemd-resolved's stub replaced by its upstreams, or by its proxy as long as it has none."""
    if not upstream.nameservers:
        proxied = [RESOLVED_PROXY if server == RESOLVED_STUB else server for server in host.nameservers]
        return ResolvConf(proxied, host.other)
    others = [server for server in host.nameservers if server != RESOLVED_STUB]
    other = dict(host.other)
    # `trust-ad` vouches for the path to the stub on this machine; the path to an upstream deserves no such trust.
    other["options"] = " ".join(option for option in other.get("options", "").split() if option != "trust-ad")
    return ResolvConf([*upstream.nameservers, *others], other)


def loopback(server: str) -> str | None:
    """The IPv4 loopback address to redirect to if `server` is on the host's loopback, else None."""
    try:
        address = IPv4Address(server)
    except AddressValueError:
        return LOOPBACK if server == "::1" else None
    if address.is_unspecified:
        return LOOPBACK
    return server if address.is_loopback else None


def reachable(server: str, ipv6: bool) -> bool:
    """Whether a VE can reach `server`, which is not on the loopback."""
    try:
        return bool(IPv4Address(server))
    except AddressValueError:
        pass
    try:
        address = IPv6Address(server)
    except AddressValueError:
        return False
    # The scope (fe80::1%eth0) names one of the host's links, which the VE does not have.
    return ipv6 and not address.is_link_local


def render(nameservers: list[str], left_out: list[str], other: dict[str, str]) -> str:
    """The text, with a note on what was left out for whoever wonders inside the VE."""
    lines: list[str] = []
    if left_out:
        lines.append(f"# left out, not reachable from this VE: {' '.join(left_out)}")
    lines += [f"nameserver {server}" for server in nameservers]
    lines += [f"{keyword} {value}" for keyword, value in other.items() if value]
    return "\n".join(lines) + "\n"
