# SPDX-License-Identifier: GPL-2.0-or-later
"""A bridge for the guests of one driver, with addresses of a network that is set aside for measuring (RFC 2544)."""

from __future__ import annotations

import ipaddress
import json
import secrets
from collections.abc import Iterable

from vemgr.compare.driver import DriverFailed
from vemgr.compare.journal import Entry, Journal
from vemgr.compare.tree import command

KIND = "bridge"
_POOL = ipaddress.IPv4Network("198.18.0.0/15")
_PREFIX = 24


class Bridge:
    """There from the making until `remove`."""

    def __init__(self, journal: Journal) -> None:
        self.name = f"vecmp{secrets.token_hex(3)}"
        self._journal = journal
        self._subnet = free_subnet(_addresses())
        self._hosts = self._subnet.hosts()
        self.gateway = str(next(self._hosts))
        self._number = journal.add(KIND, name=self.name)
        try:
            command("ip", "link", "add", self.name, "type", "bridge")
            command("ip", "addr", "add", f"{self.gateway}/{_PREFIX}", "dev", self.name)
            command("ip", "link", "set", self.name, "up")
        except BaseException:
            self.remove()
            raise

    def next_address(self) -> str:
        """One that no guest of this run has had, with the prefix's length."""
        try:
            return f"{next(self._hosts)}/{_PREFIX}"
        except StopIteration:
            self._hosts = self._subnet.hosts()
            next(self._hosts)
            return f"{next(self._hosts)}/{_PREFIX}"

    def remove(self) -> None:
        undo({"name": self.name})
        self._journal.done(self._number)


def free_subnet(taken: Iterable[str]) -> ipaddress.IPv4Network:
    """The first of the pool that no address of the host is in."""
    addresses = [ipaddress.IPv4Address(each) for each in taken]
    for subnet in _POOL.subnets(new_prefix=_PREFIX):
        if not any(address in subnet for address in addresses):
            return subnet
    raise DriverFailed(f"the host has an address in each subnet of {_POOL}")


def _links() -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(command("ip", "-json", "link"))
    return found


def _addresses() -> list[str]:
    links = json.loads(command("ip", "-json", "-4", "addr"))
    return [info["local"] for link in links for info in link.get("addr_info", [])]


def undo(entry: Entry) -> str | None:
    if not any(link.get("ifname") == entry["name"] for link in _links()):
        return None
    command("ip", "link", "delete", entry["name"])
    return f"bridge {entry['name']}"
