# SPDX-License-Identifier: GPL-2.0-or-later
"""A bridge for the guests of one driver, with addresses of a network that is set aside for measuring (RFC 2544)."""

from __future__ import annotations

import ipaddress
import json
import secrets
from collections.abc import Iterable, Iterator

from vemgr.compare.driver import DriverFailed
from vemgr.compare.journal import Entry, Journal
from vemgr.compare.tree import command

KIND = "bridge"
_POOL = ipaddress.IPv4Network("198.18.0.0/15")
PREFIX = 24
#: Of a bridge whose guests have VEs in them: a part of its subnet for each guest.
PREFIX_WITH_VES = 18
_PART = 27


class Bridge:
    """There from the making until `remove`."""

    def __init__(self, journal: Journal, prefix: int = PREFIX) -> None:
        self.name = f"vecmp{secrets.token_hex(3)}"
        self._journal = journal
        self._subnet = free_subnet(_addresses(), prefix)
        self._hosts = self._guests()
        self.gateway = str(next(self._hosts))
        self._number = journal.add(KIND, name=self.name)
        try:
            command("ip", "link", "add", self.name, "type", "bridge")
            command("ip", "addr", "add", f"{self.gateway}/{prefix}", "dev", self.name)
            command("ip", "link", "set", self.name, "up")
        except BaseException:
            self.remove()
            raise

    def next_address(self) -> str:
        """One that no guest of this run has had, with the prefix's length."""
        try:
            return f"{next(self._hosts)}/{self._subnet.prefixlen}"
        except StopIteration:
            self._hosts = self._guests()
            next(self._hosts)
            return f"{next(self._hosts)}/{self._subnet.prefixlen}"

    def subnet_behind(self, address: str) -> str:
        """The part of the subnet for the VEs of the guest with this address, of `next_address`. The guest answers for
        them, so nobody needs a route."""
        number = int(ipaddress.IPv4Interface(address).ip) - int(self._subnet.network_address)
        first = self._subnet.network_address + (1 << (32 - PREFIX)) + number * (1 << (32 - _PART))
        return f"{first}/{_PART}"

    def _guests(self) -> Iterator[ipaddress.IPv4Address]:
        return next(self._subnet.subnets(new_prefix=PREFIX)).hosts()

    def remove(self) -> None:
        undo({"name": self.name})
        self._journal.done(self._number)


def free_subnet(taken: Iterable[str], prefix: int = PREFIX) -> ipaddress.IPv4Network:
    """The first of the pool that overlaps no subnet of the host's addresses ("a.b.c.d/n")."""
    subnets = [ipaddress.IPv4Network(each, strict=False) for each in taken]
    for subnet in _POOL.subnets(new_prefix=prefix):
        if not any(subnet.overlaps(other) for other in subnets):
            return subnet
    raise DriverFailed(f"the host has addresses in each part of {_POOL}")


def _links() -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(command("ip", "-json", "link"))
    return found


def _addresses() -> list[str]:
    links = json.loads(command("ip", "-json", "-4", "addr"))
    return [f"{info['local']}/{info['prefixlen']}" for link in links for info in link.get("addr_info", [])]


def undo(entry: Entry) -> str | None:
    if not any(link.get("ifname") == entry["name"] for link in _links()):
        return None
    command("ip", "link", "delete", entry["name"])
    return f"bridge {entry['name']}"
