# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast a VE's link may be: queueing disciplines on its host end (tc(8), tc-tbf(8), linux/pkt_sched.h).

To the VE: a token bucket (tbf) where the host end sends. From it: what the host end receives is led through an `ifb`
device, and waits in a token bucket there. To drop instead of wait (police) would hold TCP far below the rate; a bucket
in the VE's own namespace could be taken off by the VE.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct

from vemgr.kernel.netlink import Requests, attribute, message, number, text
from vemgr.kernel.qdiscs import (
    ETHERNET,
    NLM_F_REPLACE,
    RATESPEC,
    RTM_DELQDISC,
    RTM_NEWQDISC,
    TC_H_ROOT,
    TCA_KIND,
    TCA_OPTIONS,
    TCMSG,
)
from vemgr.kernel.veth import IFINFO, IFLA_IFNAME, IFLA_INFO_KIND, IFLA_LINKINFO, NLM_F_CREATE, RTM_NEWLINK, death

RTM_NEWTFILTER = 44
TC_H_INGRESS, _INGRESS = 0xFFFFFFF1, 0xFFFF0000
TCA_TBF_PARMS, TCA_TBF_RATE64, TCA_TBF_BURST = 1, 4, 6
TCA_U32_SEL, TCA_U32_ACT, TC_U32_TERMINAL = 5, 7, 1
TCA_ACT_KIND, TCA_ACT_OPTIONS, TCA_MIRRED_PARMS = 1, 2, 2
TC_ACT_STOLEN, TCA_EGRESS_REDIR = 4, 1
_ETH_P_ALL = 3
_IFF_UP = 1

_LEAST_BURST = 1 << 15  # bytes; two packets of a large send must pass at once
_BURST, _WAIT = 0.01, 0.05  # seconds at the rate: what passes at once, and what may wait
_GONE = (errno.ENOENT, errno.ENODEV, errno.EINVAL)


def detour(port: str) -> str:
    """The ifb device of a host end: its name tells whose it is, and is none of a port of a bridge."""
    return f"vi{port[2:]}"


def shape(port: str, incoming: int | None, outgoing: int | None) -> None:
    """Give the link with this host end rates in bit/s, None for none. Raises `OSError`: no such link, or the kernel
    lacks tbf, ifb, ingress, u32 or mirred."""
    requests = Requests()
    try:
        index = socket.if_nametoindex(port)
        if incoming is None:
            _try(requests, _qdisc(RTM_DELQDISC, index, TC_H_ROOT))
        else:
            requests.send([_bucket(index, incoming)])
        _try(requests, _qdisc(RTM_DELQDISC, index, TC_H_INGRESS, handle=_INGRESS))
        if outgoing is None:
            _try(requests, death(detour(port)))
        else:
            requests.send([_new_detour(port)])
            through = socket.if_nametoindex(detour(port))
            requests.send([_bucket(through, outgoing),
                           _qdisc(RTM_NEWQDISC, index, TC_H_INGRESS, "ingress", flags=NLM_F_CREATE, handle=_INGRESS),
                           _redirect(index, through)])
    finally:
        requests.close()


def remove(names: list[str]) -> None:
    """Delete ifb devices, of which some may be gone. Takes 16 ms for each. Raises `OSError`."""
    requests = Requests()
    try:
        for name in names:
            _try(requests, death(name))
    finally:
        requests.close()


def detours(prefix: str) -> list[str]:
    """The ifb devices of host ends whose names begin so."""
    wanted = detour(prefix)
    return [name for _, name in socket.if_nameindex() if name.startswith(wanted)]


def _try(requests: Requests, one: bytes) -> None:
    """To take away what may not be there."""
    try:
        requests.send([one])
    except OSError as error:
        if error.errno not in _GONE:
            raise


def _qdisc(kind: int, index: int, parent: int, name: str = "", options: bytes = b"", *, flags: int = 0,
           handle: int = 0) -> bytes:
    body = TCMSG.pack(socket.AF_UNSPEC, index, handle, parent, 0)
    if name:
        body += text(TCA_KIND, name)
    if options:
        body += attribute(TCA_OPTIONS, options)
    return message(kind, body, flags)


def _bucket(index: int, rate: int) -> bytes:
    speed = max(1, rate // 8)  # bytes/s
    burst = max(_LEAST_BURST, int(speed * _BURST))
    limit = burst + max(_LEAST_BURST, int(speed * _WAIT))
    spec = RATESPEC.pack(0, ETHERNET, 0, 0, 0, min(speed, 0xFFFFFFFF))
    # struct tc_tbf_qopt: rate, peakrate, limit, buffer, mtu. The kernel works out `buffer` from TCA_TBF_BURST.
    parameters = spec + bytes(RATESPEC.size) + struct.pack("=III", limit, 0, 0)
    options = attribute(TCA_TBF_PARMS, parameters) + number(TCA_TBF_BURST, burst)
    if speed > 0xFFFFFFFF:
        options += attribute(TCA_TBF_RATE64, struct.pack("=Q", speed))
    return _qdisc(RTM_NEWQDISC, index, TC_H_ROOT, "tbf", options, flags=NLM_F_CREATE | NLM_F_REPLACE)


def _new_detour(port: str) -> bytes:
    return message(RTM_NEWLINK, IFINFO.pack(socket.AF_UNSPEC, 0, 0, _IFF_UP, _IFF_UP) + text(IFLA_IFNAME, detour(port))
                   + attribute(IFLA_LINKINFO, text(IFLA_INFO_KIND, "ifb")), NLM_F_CREATE)


def _redirect(index: int, through: int) -> bytes:
    """A filter that matches all. u32, since small kernels lack matchall."""
    # struct tc_u32_sel with one key: flags, offshift, nkeys, offmask, off, offoff, hoff, hmask; mask, val, off, offmask
    selector = struct.pack("=BBBxHHhhI", TC_U32_TERMINAL, 0, 1, 0, 0, 0, 0, 0) + bytes(16)
    # struct tc_mirred: index, capab, action, refcnt, bindcnt, eaction, ifindex
    mirred = struct.pack("=IIiiiiI", 0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, through)
    action = text(TCA_ACT_KIND, "mirred") + attribute(TCA_ACT_OPTIONS, attribute(TCA_MIRRED_PARMS, mirred))
    options = attribute(TCA_U32_SEL, selector) + attribute(TCA_U32_ACT, attribute(1, action))
    info = 1 << 16 | socket.htons(_ETH_P_ALL)
    body = (TCMSG.pack(socket.AF_UNSPEC, index, 0, _INGRESS, info) + text(TCA_KIND, "u32")
            + attribute(TCA_OPTIONS, options))
    return message(RTM_NEWTFILTER, body, NLM_F_CREATE)


def probe(port: str) -> None:
    """Whether this kernel has all that `shape` needs: tried on an ifb device, as of a host end that is not there.
    Raises `OSError`."""
    requests = Requests()
    try:
        requests.send([_new_detour(port)])
        index = socket.if_nametoindex(detour(port))
        requests.send([_bucket(index, 1_000_000),
                       _qdisc(RTM_NEWQDISC, index, TC_H_INGRESS, "ingress", flags=NLM_F_CREATE, handle=_INGRESS),
                       _redirect(index, index)])
    finally:
        with contextlib.suppress(OSError):
            _try(requests, death(detour(port)))
        requests.close()
