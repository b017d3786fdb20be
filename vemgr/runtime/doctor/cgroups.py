# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether limits can be enforced."""

from __future__ import annotations

from vemgr.runtime.doctor.findings import Finding, Host, Site, fail, ok, warn

_CONTROLLERS = ("cpu", "cpuset", "io", "memory", "pids")
_V1_NAMES = {"blkio": "io"}
_PURE = "boot with systemd.unified_cgroup_hierarchy=1, without cgroup v1"


def _mounts(host: Host) -> list[tuple[str, str, list[str]]]:
    """(mount point, type, options) of all cgroup file systems."""
    found = []
    for line in (host.text("/proc/mounts") or "").splitlines():
        _, point, kind, options, *_ = line.split()
        if kind in ("cgroup", "cgroup2"):
            found.append((point, kind, options.split(",")))
    return found


def cgroup2(host: Host, _site: Site) -> Finding:
    points = [point for point, kind, _ in _mounts(host) if kind == "cgroup2"]
    if not points:
        return fail("no cgroup2 is mounted", "no VE starts", "mount -t cgroup2 cgroup2 /sys/fs/cgroup")
    return ok(f"cgroup2 is at {points[0]}")


def hybrid(host: Host, _site: Site) -> Finding:
    taken = sorted({_V1_NAMES.get(option, option) for _, kind, options in _mounts(host) if kind == "cgroup"
                    for option in options if _V1_NAMES.get(option, option) in _CONTROLLERS})
    if taken:
        return warn(f"cgroup v1 has taken {', '.join(taken)}", "limits and figures of these are refused or missing",
                    _PURE)
    return ok("no controller is taken by cgroup v1")


def controllers(host: Host, site: Site) -> Finding:
    """Those handed down to where the VEs' cgroups are, or as far as the mount has them."""
    point = next((point for point, kind, _ in _mounts(host) if kind == "cgroup2"), "")
    text = host.text(f"{site.cgroup}/cgroup.subtree_control" if site.cgroup else f"{point}/cgroup.controllers")
    missing = [name for name in _CONTROLLERS if name not in (text or "").split()]
    if missing:
        return warn(f"VEs have no controller {', '.join(missing)}", "limits of these are refused",
                    f"{_PURE}; Delegate=yes for vemgr-keeper.service")
    return ok(f"controllers: {', '.join(_CONTROLLERS)}")


def swap_accounting(host: Host, site: Site) -> Finding:
    control = host.text(f"{site.cgroup}/cgroup.subtree_control") if site.cgroup else None
    if "memory" in (control or "").split() and not host.has(f"{site.cgroup}/memory.swap.max"):
        return warn("the kernel does not account swap", "a swap limit is refused, and VEs with a memory limit may swap",
                    "boot with swapaccount=1")
    return ok("swap is accounted, or memory is not")


def disk_weights(host: Host, site: Site) -> Finding:
    name = host.disk_scheduler(site.config.state_dir)
    if name in ("bfq", "io.cost"):
        return ok(f"{name} is active on the disk of {site.config.state_dir}")
    return warn(f"neither BFQ nor io.cost is active on the disk of {site.config.state_dir}", "--io-weight is refused",
                "modprobe bfq; echo bfq > /sys/block/DISK/queue/scheduler")


PROBES = {"cgroup2": cgroup2, "cgroup-v1": hybrid, "controllers": controllers, "swap-accounting": swap_accounting,
          "disk-weights": disk_weights}
