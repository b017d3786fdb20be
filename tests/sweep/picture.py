# SPDX-License-Identifier: GPL-2.0-or-later
"""A picture of the host with one vemgr on it: all that verbs change or could leave behind, in a form to compare."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import socket
import tomllib
from collections import Counter
from typing import Any

from tests.sweep.stage import SPAWNER, Stage, name_of, parents
from vemgr.kernel.firewall import Firewall
from vemgr.kernel.sysctl import forwarding, read_setting
from vemgr.kernel.veth import host_ifname

Picture = dict[str, Any]


def take(stage: Stage) -> Picture:
    """Raises `AssertionError` for what is wrong in any state: a VE lost or doubled, two VEs with one id range."""
    ves, definitions = stage.ves(), _definitions(stage)
    assert sorted(ves) == sorted(definitions), f"the daemon has {sorted(ves)}, on disk are {sorted(definitions)}"
    for key in ("id-base", "address"):
        values = [d["ve"][key] for d in definitions.values() if d["ve"].get(key)]
        assert len(set(values)) == len(values), f"one {key} for two VEs: {values}"
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        mounts = sorted(line.split()[4] for line in file if stage.base in line)
    return {
        "ves": {name: (ve["state"], ve["verb"], bool(ve["pid"])) for name, ve in ves.items()},
        "definitions": definitions,
        "processes": _processes(stage, {ve["pid"]: name for name, ve in ves.items() if ve["pid"]}),
        "cgroups": sorted(os.path.relpath(top, stage.cgroups) for top, _, _ in os.walk(stage.cgroups)),
        "links": sorted(_link_name(stage, name, ves) for _, name in socket.if_nameindex()),
        "rules": re.sub(r"packets \d+ bytes \d+", "", Firewall(stage.table)._run("list ruleset")),
        "mounts": mounts, "files": _files(stage), "disks": _disks(stage),
        "groups": sorted((group["name"], group["parent"], str(group["settings"]), str(group["ves"]))
                         for group in stage.call("ListGroups")["groups"]),
        "volumes": [(volume["name"], volume["users"]) for volume in stage.call("ListVolumes")["volumes"]],
        "forwarding": (forwarding(), read_setting("net/ipv6/conf/all/forwarding")),
        "connected": stage.call("GetHost")["keeperPid"] == stage.keeper,
        "daemon": _descriptors(stage.daemon), "keeper": _keeper_descriptors(stage),
    }


def _disks(stage: Stage) -> list[tuple[str, int]]:
    """Files of this instance that loop devices are made of, and how large the devices are, in sectors."""
    found = []
    for path in glob.glob("/sys/block/loop*/loop/backing_file"):
        with contextlib.suppress(OSError), open(path, encoding="utf-8") as file:
            if (backing := file.read().strip()).startswith(stage.base):
                with open(f"{path.rpartition('/loop/')[0]}/size", encoding="ascii") as size:
                    found.append((os.path.relpath(backing, stage.base), int(size.read())))
    return sorted(found)


def _definitions(stage: Stage) -> dict[str, Any]:
    """As they are on disk, less what differs each time."""
    found = {}
    for name in sorted(os.listdir(f"{stage.state}/ve")):
        if not name.startswith("."):
            with open(f"{stage.state}/ve/{name}/config.toml", "rb") as file:
                found[name] = tomllib.load(file)
            del found[name]["ve"]["created"]
    return found


def _link_name(stage: Stage, link: str, ves: dict[str, Any]) -> str:
    return next((f"link of {ve} {number}" for ve in ves for number in range(2)
                 if host_ifname(ve, stage.instance, number) == link), link)


def _processes(stage: Stage, inits: dict[int, str]) -> list[str]:
    """All that descends from us. What runs in a VE is its own affair, and goes by the name of its init."""
    names = {stage.daemon: "daemon", stage.keeper: "keeper", **{pid: f"init of {ve}" for pid, ve in inits.items()}}
    parent_of = parents()
    ours, before = {os.getpid()}, 0
    while len(ours) != before:  # those whose parents are ours, until there are no more
        before = len(ours)
        ours |= {pid for pid, parent in parent_of.items() if parent in ours and parent not in inits}
    found = [names.get(pid) or name_of(pid) for pid in ours - {os.getpid()}]
    if SPAWNER in found:
        found.remove(SPAWNER)  # one there is, as soon as it has been needed
    return sorted(found)


def _files(stage: Stage) -> list[str]:
    """Names of all that is on disk. Not what VEs have written, and of a template how many files it has."""
    found = []
    for start in (stage.state, stage.run):
        for top, directories, files in os.walk(start):
            place = os.path.relpath(top, stage.base)
            if place.startswith("state/ve/") and not place.startswith("state/ve/."):
                directories[:] = []  # the VE's data, whatever of it there is already
            if place.startswith("state/templates/") and place.count("/") == 3:
                found.append(f"{place}: {sum(len(d) + len(f) for _, d, f in os.walk(top))}")
                directories[:] = []
                continue
            found += [f"{place}/{name}" for name in (*directories, *files) if not name.endswith(".log")]
    return sorted(found)


def _descriptors(pid: int) -> list[str]:
    """What the descriptors of a process lead to; numbers of pipes and sockets differ each time."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(re.sub(r"\d+", "N", os.readlink(f"/proc/{pid}/fd/{fd}")))
    return sorted(found)


def _keeper_descriptors(stage: Stage) -> list[str]:
    found = _descriptors(stage.keeper)
    if stage.spawners():
        found.remove("socket:[N]")
    return found


def difference(now: Picture, pictures: list[tuple[str, Picture]]) -> str:
    """From the picture that is nearest."""
    def differing(picture: Picture) -> list[str]:
        return [key for key in picture if now[key] != picture[key]]

    name, nearest = min(pictures, key=lambda each: len(differing(each[1])))
    parts = []
    for key in differing(nearest):
        is_, was = now[key], nearest[key]
        if isinstance(is_, list):
            more, less = Counter(is_) - Counter(was), Counter(was) - Counter(is_)
            parts.append(f"{key}: more {list(more.elements())}, less {list(less.elements())}")
        else:
            parts.append(f"{key}: {is_} instead of {was}")
    return f"differs from '{name}': {'; '.join(parts)}"
