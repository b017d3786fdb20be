# SPDX-License-Identifier: GPL-2.0-or-later
import pytest

from vemgr.runtime.network.resolver import resolv_conf_for

GATEWAY = "10.77.0.1"
STUB = "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch example.org\n"


def body(text):
    assert text.endswith("\n")
    return text.splitlines()


@pytest.mark.parametrize(("host", "upstream", "lines", "redirect"), [
    # not loopback: as it is
    ("nameserver 192.0.2.1\nnameserver 192.0.2.2\nsearch a b\noptions ndots:2 rotate\n", None,
     ["nameserver 192.0.2.1", "nameserver 192.0.2.2", "search a b", "options ndots:2 rotate"], None),
    # systemd-resolved with its upstreams: trust-ad does not hold for them
    (STUB, "nameserver 192.0.2.1\n", ["nameserver 192.0.2.1", "options edns0", "search example.org"], None),
    ("nameserver 127.0.0.53\noptions trust-ad\n", "nameserver 192.0.2.1\n", ["nameserver 192.0.2.1"], None),
    # something else on that address; systemd-resolved without upstreams, whose proxy takes redirects
    (STUB, None, ["nameserver 10.77.0.1", "options edns0 trust-ad", "search example.org"], "127.0.0.53"),
    (STUB, "# none\n", ["nameserver 10.77.0.1", "options edns0 trust-ad", "search example.org"], "127.0.0.54"),
    ("nameserver 127.0.0.54\n", "nameserver 192.0.2.1\n", ["nameserver 10.77.0.1"], "127.0.0.54"),
    # ... whose upstream is dnsmasq on the same host
    (STUB, "nameserver 127.0.0.1\n", ["nameserver 10.77.0.1", "options edns0", "search example.org"], "127.0.0.1"),
    # upstreams are of no interest to a host that does not use the stub
    ("nameserver 192.0.2.9\n", "nameserver 192.0.2.1\n", ["nameserver 192.0.2.9"], None),
    # dnsmasq or unbound on the host, with a fallback behind it
    ("nameserver 127.0.0.1\nnameserver 192.0.2.1\n", None,
     ["nameserver 10.77.0.1", "nameserver 192.0.2.1"], "127.0.0.1"),
    # two loopback resolvers: one redirect, to the first
    ("nameserver 127.0.0.2\nnameserver 127.0.0.1\n", None, ["nameserver 10.77.0.1"], "127.0.0.2"),
    # other spellings of this machine, and none at all
    ("nameserver ::1\n", None, ["nameserver 10.77.0.1"], "127.0.0.1"),
    ("nameserver 0.0.0.0\n", None, ["nameserver 10.77.0.1"], "127.0.0.1"),
    ("", None, ["nameserver 10.77.0.1"], "127.0.0.1"),
    # one too many
    ("".join(f"nameserver 192.0.2.{n}\n" for n in range(1, 6)), None,
     ["nameserver 192.0.2.1", "nameserver 192.0.2.2", "nameserver 192.0.2.3"], None),
    ("".join(f"nameserver 192.0.2.{n}\n" for n in range(1, 4)) + "nameserver 127.0.0.1\n", None,
     ["nameserver 192.0.2.1", "nameserver 192.0.2.2", "nameserver 192.0.2.3"], None),
    # comments, tabs, carriage returns, repeats, lines without meaning
    ("# c\n; d\n\tnameserver\t192.0.2.1  # e\r\nnameserver\nsearch a\ndomain b\nnameserver 192.0.2.1\n\nx y\n", None,
     ["nameserver 192.0.2.1", "domain b"], None),
    ("nameserver not-an-address\nnameserver 192.0.2.1\n", None,
     ["# left out, not reachable from this VE: not-an-address", "nameserver 192.0.2.1"], None),
])
def test_resolv_conf(host, upstream, lines, redirect):
    text, found = resolv_conf_for(host, upstream, GATEWAY)
    assert (body(text), found) == (lines, redirect)


IPV6 = "nameserver fe80::1%eth0\nnameserver fe80::2\nnameserver 2001:db8::1\nnameserver 192.0.2.1\n"


def test_ipv6_name_servers_are_left_out_with_a_note():
    text, redirect = resolv_conf_for(IPV6, None, GATEWAY)
    left_out = "# left out, not reachable from this VE: fe80::1%eth0 fe80::2 2001:db8::1"
    assert (body(text), redirect) == ([left_out, "nameserver 192.0.2.1"], None)


def test_a_ve_with_ipv6_keeps_all_but_the_link_local_ones():
    text, _ = resolv_conf_for(IPV6, None, GATEWAY, ipv6=True)
    assert body(text)[1:] == ["nameserver 2001:db8::1", "nameserver 192.0.2.1"]
