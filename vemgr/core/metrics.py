# SPDX-License-Identifier: GPL-2.0-or-later
"""Where figures are offered to Prometheus: the table [metrics] of vemgr.toml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from vemgr.core.errors import BadParameter, BadValue

_OFF = "off"
_LONGEST_PATH = 107  # of a unix socket


@dataclass(frozen=True)
class MetricsConfig:
    """`listen`: "off", "ADDRESS:PORT", or the absolute path of a unix socket."""

    listen: str = _OFF

    @property
    def path(self) -> str:
        """Of the unix socket, "" for none."""
        return self.listen if self.listen.startswith("/") else ""

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port."""
        if self.path or self.listen == _OFF:
            return None
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def local(self) -> bool:
        """Whether only this host can reach it."""
        address = self.address
        return address is None or ip_address(address[0]).is_loopback


def parse_metrics(values: object) -> MetricsConfig:
    """An address must be a number: a name, or none at all, could mean more than was thought of. Raises `BadParameter`,
    `BadValue`."""
    if not isinstance(values, Mapping):
        raise BadValue("metrics", type(values).__name__, "not a table", remedy="write [metrics]")
    for key in values:
        if key != "listen":
            raise BadParameter(f"unknown key in vemgr.toml: metrics.{key}", remedy="there is: listen")
    text = values.get("listen", _OFF)
    if not isinstance(text, str) or not text.isprintable():
        raise BadValue("metrics.listen", type(text).__name__, "not a printable text")
    config = MetricsConfig(text)
    if config.path:
        if len(text.encode()) > _LONGEST_PATH:
            raise BadValue("metrics.listen", text[:80], f"longer than {_LONGEST_PATH} bytes")
    elif text != _OFF:
        host, _, port = text.rpartition(":")
        try:
            ip_address(host.strip("[]"))
            good = port.isascii() and port.isdigit() and 0 < int(port) < 65536
        except ValueError:
            good = False
        if not good or (":" in host) != host.startswith("["):
            raise BadValue("metrics.listen", text[:80], "neither an address with a port nor an absolute path",
                           remedy="write 127.0.0.1:9189, [::1]:9189, or /run/vemgr/metrics.sock")
    return config
