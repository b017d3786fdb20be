# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks, tools, the VEs' own view, time."""

from __future__ import annotations

from vemgr.core.host import OFF
from vemgr.runtime.doctor.findings import Finding, Host, Site, fail, ok, warn

_MIB = 1 << 20
_EMPTY, _LOW = 64 * _MIB, 1024 * _MIB
_BUILT = 1_700_000_000.0  # a time before this program was written


def space(host: Host, site: Site) -> Finding:
    directory = site.config.state_dir
    found = host.space(directory)
    if found is None:
        return ok(f"{directory} is not there yet")
    free = f"{found.free // _MIB}M of {found.size // _MIB}M are free in {directory}"
    where = f"du -xsh {directory}/*; destroy VEs or templates, or make the file system larger"
    if found.inodes and found.inodes_free * 100 < found.inodes:
        return fail(f"{found.inodes_free} of {found.inodes} inodes are free in {directory}",
                    "VEs can make no more files, and none can be created", where)
    if found.free < _EMPTY:
        return fail(free, "VEs cannot write any more, and none can be created", where)
    if found.free < _LOW or found.free * 100 < 5 * found.size:
        return warn(free, "VEs without a size of their own soon fill it, for all", where)
    return ok(free)


def run_directory(host: Host, site: Site) -> Finding:
    directory = site.config.run_dir
    found = host.space(directory)
    if found is not None and found.free < 16 * _MIB:
        return fail(f"{found.free // _MIB}M are free in {directory}", "no VE starts, and consoles are not kept",
                    f"du -xsh {directory}; mount -o remount,size=10% /run")
    if found is not None and host.filesystem(directory) not in ("tmpfs", "ramfs"):
        return warn(f"{directory} is not on a tmpfs", "what is noted there must go with a restart of the host",
                    "mount a tmpfs on /run")
    return ok(f"{directory} is on a tmpfs with room" if found else f"{directory} is not there yet")


def sizes(host: Host, site: Site) -> Finding:
    missing = [tool for tool in ("mkfs.ext4", "e2fsck", "resize2fs") if not host.tool(tool)]
    if host.quotas(f"{site.config.state_dir}/ve"):
        return ok("disks have sizes by project quotas")
    if not host.has("/dev/loop-control"):
        return warn("there are no loop devices, and no project quotas", "--disk is refused", "modprobe loop")
    if missing:
        return warn(f"{', '.join(missing)} is missing, and there are no project quotas", "--disk is refused",
                    "apt install e2fsprogs")
    return ok(f"disks have sizes by image files; {site.config.state_dir} has no project quotas")


def building(host: Host, _site: Site) -> Finding:
    if not host.tool("mmdebstrap"):
        return warn("mmdebstrap is missing", "'template build' does not work; 'template import' does",
                    "apt install mmdebstrap")
    return ok("templates can be built")


def own_view(host: Host, site: Site) -> Finding:
    config = site.config
    if config.lxcfs == OFF:
        return ok("lxcfs is switched off in vemgr.toml: VEs see the host's memory and CPUs")
    # By the table of mounts: to look at its files could take for ever.
    if f" {config.lxcfs_dir} fuse.lxcfs " not in (host.text("/proc/mounts") or ""):
        remedy = "systemctl start lxcfs" if host.tool("lxcfs") else "apt install lxcfs"
        meaning = "free, nproc and uptime in a VE show the host's figures"
        if config.lxcfs == "require":
            return fail(f"no lxcfs serves {config.lxcfs_dir}, which vemgr.toml requires", "no VE starts", remedy)
        return warn(f"no lxcfs serves {config.lxcfs_dir}", meaning, remedy)
    return ok(f"lxcfs serves {config.lxcfs_dir}")


def clock(host: Host, _site: Site) -> Finding:
    found = host.clock()
    if found.now < _BUILT:
        return fail("the clock is years behind", "certificates are not valid yet, in all VEs",
                    "chronyd -q 'pool pool.ntp.org iburst'")
    if not found.synchronised:
        return warn("nobody keeps the clock right", "VEs have the host's clock and cannot set it",
                    "apt install systemd-timesyncd, or chrony")
    return ok("the clock is kept right")


PROBES = {"disk-space": space, "run-directory": run_directory, "disk-sizes": sizes, "template-build": building,
          "lxcfs": own_view, "clock": clock}
