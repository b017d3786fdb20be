# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel bounds for the whole host, or for each user, and what ids there are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from vemgr.core.ids import ID_COUNT
from vemgr.runtime.doctor.findings import Finding, Host, Level, Probe, Site, fail, ok, warn

_FEW_RANGES = 64


def _at_least(key: str, least: int, meaning: str) -> Probe:
    """A probe of one sysctl."""
    def probe(host: Host, _site: Site) -> Finding:
        text = host.text(f"/proc/sys/{key.replace('.', '/')}")
        if text is not None and text.split() and int(text.split()[-1]) < least:
            return warn(f"{key} is {text.strip()}", meaning, f"sysctl -w {key}={least}")
        return ok(f"{key} is {'not there' if text is None else text.strip()}")
    return probe


def id_ranges(host: Host, site: Site) -> Finding:
    """Ranges of ids that neither /etc/subuid nor /etc/subgid gives to others."""
    config = site.config
    slots = (config.id_last + 1 - config.id_first) // ID_COUNT
    taken: set[int] = set()
    for path in ("/etc/subuid", "/etc/subgid"):
        for first, count in re.findall(r"^[^:\n]*:(\d+):(\d+)\s*$", host.text(path) or "", re.MULTILINE):
            low, high = int(first), int(first) + int(count) - 1
            if high >= config.id_first and low <= config.id_last:
                taken.update(range((max(low, config.id_first) - config.id_first) // ID_COUNT,
                                   (min(high, config.id_last) - config.id_first) // ID_COUNT + 1))
    left = slots - len([slot for slot in taken if slot < slots])
    level = Level.FAIL if left <= 0 else Level.WARN if left < _FEW_RANGES else Level.OK
    if level == Level.OK:
        return ok(f"{left} ranges of user ids are not given to others")
    return Finding(level, f"{left} ranges of user ids are left by /etc/subuid and /etc/subgid",
                   "each VE takes one" if left > 0 else "no VE can be created",
                   "widen id-first and id-last in vemgr.toml, or take lines out of /etc/subuid")


def users_in_ranges(host: Host, site: Site) -> Finding:
    """An account of the host with an id that a VE's user has could read what that has written."""
    found = [name for name, uid in re.findall(r"^([^:\n]*):[^:\n]*:(\d+):", host.text("/etc/passwd") or "",
                                              re.MULTILINE)
             if site.config.id_first <= int(uid) <= site.config.id_last]
    if found:
        return fail(f"accounts with ids of VEs: {', '.join(found[:5])}", "they may read and change files of a VE",
                    f"usermod --uid NEW {found[0]}, or change id-first and id-last in vemgr.toml")
    return ok("no account of the host has an id of VEs")


PROBES: Mapping[str, Probe] = MappingProxyType({
    "inotify-instances": _at_least("fs.inotify.max_user_instances", 128,
                                   "systemd and others in a VE fail when its users have used up theirs"),
    "inotify-watches": _at_least("fs.inotify.max_user_watches", 65536,
                                 "vemgr watches a few files for each VE, and programs in VEs many"),
    "keys": _at_least("kernel.keys.maxkeys", 200, "VEs with --allow keyrings run out of keys"),
    "pids": _at_least("kernel.pid_max", 131072, "all VEs share the host's process numbers"),
    "threads": _at_least("kernel.threads-max", 32768, "all VEs share the host's number of threads"),
    "maps": _at_least("vm.max_map_count", 262144, "Elasticsearch and others refuse to start in a VE"),
    "open-files": _at_least("fs.file-max", 200_000, "all VEs share the host's number of open files"),
    "id-ranges": id_ranges, "users": users_in_ranges,
})
