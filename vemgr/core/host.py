# SPDX-License-Identifier: GPL-2.0-or-later
"""Configuration of the host: /etc/vemgr/vemgr.toml. Every key has a default, and the file may be absent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from vemgr.core.errors import BadParameter, BadValue, NotEnoughResources
from vemgr.core.ids import ID_COUNT
from vemgr.core.metrics import MetricsConfig, parse_metrics
from vemgr.core.networks import KEYS, NetworkConfig, parse_networks
from vemgr.core.scheduling import SchedulerConfig, parse_scheduler
from vemgr.core.uplink import UplinkConfig, parse_uplink

# systemd leaves 1879048192 to 2147483647 to nobody (systemd.io/UIDS-GIDS): 4,096 ranges that no adduser, no
# /etc/subuid default and no nspawn uses.
_FIRST_ID = 0x70000000
_LAST_ID = 0x7FFFFFFF
#: Least and most of each number.
_BOUNDS = {"hook_timeout": (1, 3600), "start_parallel": (1, 1000), "stop_deadline": (1, 86400),
           "restart_limit": (1, 1000), "restart_window": (1, 86400)}
_PLAIN = ("start_parallel", "restart_limit")  # and no seconds
AUTO, OFF, REQUIRE = _LXCFS = ("auto", "off", "require")
_NO_ID = 0xFFFFFFFF  # (uid_t)-1


@dataclass(frozen=True)
class HostConfig:
    """`networks`: the first is the one that VEs have unless they say otherwise. `cgroup`: name of the VEs' part of the
    cgroup tree where systemd gives us none. `id_first`, `id_last`: host ids that VEs' ranges are taken from.
    `hook_timeout`: seconds that each hook has. `start_parallel`: how many VEs may be coming up when
    several start. `stop_deadline`: seconds for a stop of all VEs. `restart_limit`: how often a VE that ends by itself
    is started again in `restart_window` seconds. `lxcfs`: whether VEs see their own limits by the lxcfs that is mounted
    at `lxcfs_dir`."""

    state_dir: str = "/var/lib/vemgr"
    run_dir: str = "/run/vemgr"
    networks: tuple[NetworkConfig, ...] = (NetworkConfig(),)
    table: str = "vemgr"
    cgroup: str = "vemgr"
    id_first: int = _FIRST_ID
    id_last: int = _LAST_ID
    hooks_dir: str = "/etc/vemgr/hooks"
    profiles_dir: str = "/etc/vemgr/profiles"
    hook_timeout: int = 30
    start_parallel: int = 8
    stop_deadline: int = 100
    restart_limit: int = 10
    restart_window: int = 600
    lxcfs: str = AUTO
    lxcfs_dir: str = "/var/lib/lxcfs"
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    uplink: UplinkConfig = field(default_factory=UplinkConfig)

    @staticmethod
    def from_mapping(document: Mapping[str, Any]) -> HostConfig:
        """From the file's key-value pairs. Raises `BadParameter` or `BadValue`."""
        known = {f.name.replace("_", "-"): f for f in fields(HostConfig)
                 if f.name not in ("networks", "scheduler", "metrics", "uplink")}
        first = {key: document[key] for key in KEYS if key in document}
        values: dict[str, Any] = {"networks": parse_networks(first, document.get("network", {})),
                                  "scheduler": parse_scheduler(document.get("scheduler", {})),
                                  "metrics": parse_metrics(document.get("metrics", {})),
                                  "uplink": parse_uplink(document.get("uplink", {}))}
        for key, value in document.items():
            if key in (*KEYS, "network", "scheduler", "metrics", "uplink"):
                continue
            if key not in known:
                remedy = f"there are: {', '.join((*known, *KEYS))}, [network.NAME], [scheduler], [metrics] and [uplink]"
                raise BadParameter(f"unknown key in vemgr.toml: {key}", remedy=remedy)
            wanted = int if known[key].type == "int" else str
            if type(value) is not wanted:
                raise BadValue(key, value, f"not a {'number' if wanted is int else 'text'}")
            values[known[key].name] = value
            if isinstance(value, str) and not value.isprintable():
                raise BadValue(key, ascii(value)[:80], "a character in it cannot be printed")
        config = HostConfig(**values)
        for name, (least, most) in _BOUNDS.items():
            number = getattr(config, name)
            if not least <= number <= most:
                unit = "" if name in _PLAIN else "of seconds "
                raise BadValue(name.replace("_", "-"), number, f"not a number {unit}from {least} to {most}")
        for name in ("state_dir", "run_dir", "hooks_dir", "profiles_dir", "lxcfs_dir"):
            if not getattr(config, name).startswith("/"):
                raise BadValue(name.replace("_", "-"), getattr(config, name), "not an absolute path")
        if config.lxcfs not in _LXCFS:
            raise BadValue("lxcfs", config.lxcfs[:80], f"not one of {', '.join(_LXCFS)}")
        if not 0 < config.id_first <= config.id_last < _NO_ID:
            raise BadValue("id-first", f"{config.id_first:#x}", "not a range of user ids with id-last")
        return config

    @property
    def instance(self) -> str:
        """What tells this vemgr from another on the same host: the bridge of its first network."""
        return self.networks[0].bridge


def allocate_ids(config: HostConfig, taken: Iterable[int], foreign: Iterable[tuple[int, int]]) -> int:
    """The first range of ids that neither a VE nor a `foreign` user (first, count; from /etc/subuid) has."""
    slots = (config.id_last + 1 - config.id_first) // ID_COUNT
    blocked: set[int] = set()  # a set and not a comparison of each with each: a host may have a thousand VEs
    for first, count in (*foreign, *((base, ID_COUNT) for base in taken)):
        lowest = (first - config.id_first) // ID_COUNT
        highest = (first + count - 1 - config.id_first) // ID_COUNT
        blocked.update(range(max(lowest, 0), min(highest, slots - 1) + 1))
    for slot in range(slots):
        if slot not in blocked:
            return config.id_first + slot * ID_COUNT
    raise NotEnoughResources("no range of user ids is left for another VE",
                             remedy="destroy VEs, or widen id-first and id-last in vemgr.toml")
