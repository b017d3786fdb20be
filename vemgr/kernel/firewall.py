# SPDX-License-Identifier: GPL-2.0-or-later
"""vemgr's own nftables table, through libnftables(3): masquerade, forwarding, the way to the host's resolver.

A whole table is replaced in one transaction, so that there is no moment without it, and the result does not depend
on what was there. Other tables are never touched. Note what that cannot do: a packet must be accepted by every
table, so a drop in somebody else's (docker sets the policy of FORWARD to drop, firewalld rejects) still wins.

Text is built here from validated values only: `Rules` refuses what is no address or no interface name.
"""

from __future__ import annotations

import ctypes
import json
import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from typing import Any

from vemgr.core.errors import BadValue, KernelLacks, SystemFailure

#: How we know a table as ours. Not in JSON before nftables 1.0.8, hence looked for in the text of a listing.
MARKER = "managed by vemgr"
_MARKED = re.compile(rf'^\tcomment "{MARKER}"$', re.MULTILINE)
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
_INTERFACE = re.compile(r"[A-Za-z0-9_-]{1,15}")

NFT_CTX_DEFAULT = 0
NFT_CTX_OUTPUT_JSON = 1 << 4


@dataclass(frozen=True)
class Rules:
    """What the table is made from. Raises BadValue at construction."""

    bridge: str
    subnet: str
    gateway: str
    #: The resolver on the host's loopback that the VEs' questions to gateway:53 go to (IPv4), None for no redirect.
    resolver: str | None = None

    def __post_init__(self) -> None:
        if not _INTERFACE.fullmatch(self.bridge):
            raise BadValue("bridge", self.bridge, "not an interface name")
        try:
            IPv4Network(self.subnet)
        except ValueError as error:
            raise BadValue("subnet", self.subnet, str(error)) from None
        for name, value in (("gateway", self.gateway), ("resolver", self.resolver)):
            try:
                IPv4Address("127.0.0.1" if value is None else value)
            except AddressValueError as error:
                raise BadValue(f"network.{name}", value, str(error)) from None
        if self.resolver is not None and not IPv4Address(self.resolver).is_loopback:
            raise BadValue("resolver", self.resolver, "only a resolver on the loopback needs a redirect")


def ruleset(table: str, rules: Rules) -> str:
    """The transaction that makes `table` what `rules` say, whatever it was. Pure."""
    chains = "\n".join((_guard(rules), _redirect(rules), _forward(rules), _masquerade(rules)))
    # The first line makes the second succeed where there is no table yet.
    return (
        f"table inet {table}\n"
        f"delete table inet {table}\n"
        f"table inet {table} {{\n"
        f'\tcomment "{MARKER}"\n'
        f"{chains}}}\n"
    )


def _chain(name: str, hook: str, lines: list[str]) -> str:
    # The names avoid the words of the nft language: there is no quoting in it.
    body = "".join(f"\t\t{line}\n" for line in [hook, *lines])
    return f"\tchain {name} {{\n{body}\t}}\n"


def _guard(rules: Rules) -> str:
    """What a VE may not send at all. Before the redirect, whose result looks the same as what is dropped here.

    The redirect needs route_localnet on the bridge, with which a VE's own packets to the host's 127.0.0.0/8, and
    such that claim to come from there, would be delivered. Rules against spoofed addresses belong here too.
    """
    return _chain("guard", "type filter hook prerouting priority raw; policy accept;", [
        f'iifname "{rules.bridge}" ip daddr 127.0.0.0/8 drop',
        f'iifname "{rules.bridge}" ip saddr 127.0.0.0/8 drop',
    ])


def _redirect(rules: Rules) -> str:
    """Questions to the gateway's port 53 go to the host's own resolver. Published ports belong here too."""
    lines = []
    if rules.resolver is not None:
        asked = f'iifname "{rules.bridge}" ip daddr {rules.gateway}'
        lines = [f"{asked} {protocol} dport 53 dnat ip to {rules.resolver}:53" for protocol in ("udp", "tcp")]
    return _chain("nat_in", "type nat hook prerouting priority dstnat; policy accept;", lines)


def _forward(rules: Rules) -> str:
    """Both directions are open. A statement of intent: accepting here does not overrule a drop elsewhere."""
    return _chain("routed", "type filter hook forward priority filter; policy accept;", [
        f'iifname "{rules.bridge}" accept',
        f'oifname "{rules.bridge}" accept',
    ])


def _masquerade(rules: Rules) -> str:
    """VEs appear outside with the host's address. Not on `lo`, where the host talks to its own gateway address."""
    return _chain("nat_out", "type nat hook postrouting priority srcnat; policy accept;", [
        f'ip saddr {rules.subnet} oifname != {{ "lo", "{rules.bridge}" }} masquerade',
    ])


class Firewall:
    """One table of the `inet` family, in the network namespace of the calling thread. Calls take a few ms.

    Raises BadValue for a name that is none, and KernelLacks where libnftables is not installed.
    """

    def __init__(self, table: str = "vemgr") -> None:
        if not _NAME.fullmatch(table):
            raise BadValue("table", table, "not a name of at most 32 letters, digits, _ and -")
        self.table = table
        self._library = _load()

    def ensure(self, rules: Rules) -> None:
        """Make the table what `rules` say, in one transaction. Raises BadValue if a foreign table has its name."""
        self._refuse_foreign()
        self._run(ruleset(self.table, rules))

    def remove(self) -> None:
        """Delete the table; not an error when there is none. Raises BadValue if it is not ours."""
        self._refuse_foreign()
        self._run(f"table inet {self.table}\ndelete table inet {self.table}\n")

    def present(self) -> bool:
        """Whether our table exists."""
        return self._exists() and self._marked()

    def listing(self) -> str:
        """The table as `nft list table` prints it, empty when there is none."""
        return self._run(f"list table inet {self.table}") if self._exists() else ""

    def _refuse_foreign(self) -> None:
        if self._exists() and not self._marked():
            raise BadValue(
                "table", self.table, "there is an nftables table of this name which is not vemgr's",
                remedy="set table to another name",
            )

    def _exists(self) -> bool:
        tables = json.loads(self._run("list tables inet", NFT_CTX_OUTPUT_JSON))["nftables"]
        return any(entry["table"]["name"] == self.table for entry in tables if "table" in entry)

    def _marked(self) -> bool:
        return _MARKED.search(self._run(f"list table inet {self.table}")) is not None

    def _run(self, commands: str, output: int = 0) -> str:
        """Run nft commands as one transaction and return what they print. Raises SystemFailure."""
        # A context holds a socket of the namespace it was made in, and caches the ruleset: none outlives a call.
        context = self._library.nft_ctx_new(NFT_CTX_DEFAULT)
        if not context:
            raise SystemFailure("cannot use nftables: libnftables gives no context", call="nft_ctx_new")
        try:
            self._library.nft_ctx_buffer_output(context)
            self._library.nft_ctx_buffer_error(context)
            self._library.nft_ctx_output_set_flags(context, output)
            if self._library.nft_run_cmd_from_buffer(context, commands.encode()) != 0:
                why = self._library.nft_ctx_get_error_buffer(context).decode(errors="replace").strip()
                raise SystemFailure(f"nftables refused table {self.table}: {why}", call="nft", commands=commands)
            return str(self._library.nft_ctx_get_output_buffer(context).decode(errors="replace"))
        finally:
            self._library.nft_ctx_free(context)


def _load() -> Any:
    try:
        library = ctypes.CDLL("libnftables.so.1")
    except OSError as error:
        raise KernelLacks(f"libnftables is missing: {error}", remedy="install libnftables1 (nftables)") from None
    library.nft_ctx_new.argtypes = (ctypes.c_uint32,)
    library.nft_ctx_new.restype = ctypes.c_void_p
    for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(library, name).argtypes = (ctypes.c_void_p,)
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(library, name).argtypes = (ctypes.c_void_p,)
        getattr(library, name).restype = ctypes.c_char_p
    library.nft_ctx_output_set_flags.argtypes = (ctypes.c_void_p, ctypes.c_uint)
    library.nft_ctx_output_set_flags.restype = None
    library.nft_run_cmd_from_buffer.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
    library.nft_ctx_free.argtypes = (ctypes.c_void_p,)
    library.nft_ctx_free.restype = None
    return library
