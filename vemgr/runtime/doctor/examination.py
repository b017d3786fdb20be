# SPDX-License-Identifier: GPL-2.0-or-later
"""All probes, one after the other. It blocks: files of the host are read, and sockets tried."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import vemgr
from vemgr.core.host import HostConfig
from vemgr.core.networks import AUTO
from vemgr.runtime.doctor import cgroups, kernel, network, quotas, service, storage
from vemgr.runtime.doctor.findings import Host, Probe, Site, described, warn
from vemgr.runtime.doctor.reading import ThisHost

PROBES: Mapping[str, Probe] = {**service.PROBES, **kernel.PROBES, **cgroups.PROBES, **network.PROBES,
                               **quotas.PROBES, **storage.PROBES}


def examine(host: Host, site: Site, probes: Mapping[str, Probe] = PROBES) -> list[dict[str, Any]]:
    """What each probe says. One that fails on a host that nobody thought of says so and leaves the others alone."""
    found = []
    for check, probe in probes.items():
        try:
            finding = probe(host, site)
        except Exception as error:
            finding = warn(f"cannot be checked: {type(error).__name__}: {error}", "whether it is so is not known")
        found.append(described(check, finding))
    return found


def examine_without_daemon(config: HostConfig) -> list[dict[str, Any]]:
    host = ThisHost()
    return examine(host, Site(config, vemgr.__version__, vemgr.__version__,
                              subnets=configured_subnets(host, config)))


def configured_subnets(host: Host, config: HostConfig) -> dict[str, str]:
    """By bridge, as far as they are known without a daemon: given, or chosen before."""
    try:
        chosen = json.loads(host.text(f"{config.state_dir}/network.json") or "{}")
        return {each.bridge: str(each.subnet if each.subnet != AUTO else chosen[each.name]["subnet"])
                for each in config.networks if each.subnet != AUTO or each.name in chosen}
    except (ValueError, KeyError, TypeError):
        return {}
