# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel has, and what it lets us do."""

from __future__ import annotations

import re

from vemgr.kernel import capabilities
from vemgr.kernel.namespaces import is_made
from vemgr.runtime.doctor.findings import Finding, Host, Site, fail, ok, warn

_OLDEST = (5, 19)
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
_NEEDED = ("chown", "dac_override", "kill", "mknod", "net_admin", "setgid", "setuid", "sys_admin", "sys_chroot")
#: File systems that mounts with shifted ids can be made of (mount_setattr(2), and their FS_ALLOW_IDMAP).
_IDMAPPABLE = frozenset({"ext4", "xfs", "btrfs", "f2fs", "erofs", "squashfs", "bcachefs", "zfs", "tmpfs"})


def _in_a_ve(host: Host) -> bool:
    """Then the device nodes and ids of the VE around are used (docs/adr/0015)."""
    uid_map = host.text("/proc/self/uid_map")
    return uid_map is not None and is_made(uid_map)


def kernel_version(host: Host, _site: Site) -> Finding:
    release = host.release()
    found = tuple(map(int, re.findall(r"\d+", release)[:2]))
    if found < _OLDEST:
        return fail(f"Linux {release}", "overlayfs over id-mapped layers came with Linux 5.19: no VE starts",
                    "install a newer kernel")
    return ok(f"Linux {release}")


def namespaces(host: Host, _site: Site) -> Finding:
    missing = [name for name in _NAMESPACES if not host.has(f"/proc/self/ns/{name}")]
    if missing:
        return fail(f"the kernel has no {', '.join(missing)} namespaces", "no VE starts",
                    "boot a kernel with CONFIG_NAMESPACES and all below it")
    return ok("all namespaces that VEs have")


def user_namespaces(host: Host, _site: Site) -> Finding:
    text = (host.text("/proc/sys/user/max_user_namespaces") or "").strip()
    if text and int(text) < 2:
        return fail(f"user.max_user_namespaces is {text}", "VEs run in user namespaces: none starts",
                    "sysctl -w user.max_user_namespaces=65536")
    return ok(f"user.max_user_namespaces is {text or 'not bounded'}")


def overlay(host: Host, _site: Site) -> Finding:
    return _filesystem(host, "overlay", "VEs' files are overlays: none starts")


def _filesystem(host: Host, name: str, meaning: str) -> Finding:
    if f"\t{name}\n" in (host.text("/proc/filesystems") or ""):
        return ok(f"the kernel has {name}")
    modules = host.text(f"/lib/modules/{host.release()}/modules.dep") or ""
    if f"/{name}.ko" in modules:
        return ok(f"the kernel has {name} as a module, which is loaded when it is needed")
    return fail(f"the kernel has no {name}", meaning, f"modprobe {name}")


def idmapped_layers(host: Host, site: Site) -> Finding:
    found = host.filesystem(site.config.state_dir)
    if _in_a_ve(host):
        if found == "overlay":
            return fail(f"{site.config.state_dir} is on an overlay", "vemgr does not start: VEs could not write there",
                        "mount a volume on it: '--mount VOLUME:/var/lib/vemgr' for the VE around")
        return ok("this is a VE: the VEs in it have its ids")
    if found and found not in _IDMAPPABLE:
        return fail(f"{site.config.state_dir} is on {found}, whose mounts cannot shift ids", "no VE starts from there",
                    "put state-dir of vemgr.toml on ext4, xfs or btrfs")
    if found == "tmpfs":
        return warn(f"{site.config.state_dir} is on tmpfs", "VEs and their data go with a restart of the host",
                    "put state-dir of vemgr.toml on a disk")
    return ok(f"{site.config.state_dir} is on {found}, which can shift ids" if found
              else f"{site.config.state_dir} is not there yet")


def seccomp(host: Host, _site: Site) -> Finding:
    if host.text("/proc/sys/kernel/seccomp/actions_avail") is None:
        return fail("the kernel has no seccomp filters", "no VE starts without one",
                    "boot a kernel with CONFIG_SECCOMP_FILTER")
    return ok("seccomp filters")


def capabilities_of_ours(host: Host, _site: Site) -> Finding:
    """Of this process, which are those of the daemon where it is the daemon that asks."""
    status = host.text("/proc/self/status") or ""
    match = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    mask = int(match[1], 16) if match else 0
    dispensable = ("mknod",) if _in_a_ve(host) else ()
    missing = [f"CAP_{name.upper()}" for name in _NEEDED
               if name not in dispensable and not mask >> capabilities.NAMES.index(name) & 1]
    if missing:
        return fail(f"missing: {', '.join(missing)}", "VEs cannot be made without", "run vemgr as root of the host")
    if not mask >> capabilities.NAMES.index("sys_resource") & 1:
        return warn("CAP_SYS_RESOURCE is missing",
                    "limits of processes (nofile, nproc) cannot be raised above what this container was given",
                    "give the container that vemgr runs in CAP_SYS_RESOURCE")
    return ok("all capabilities that are needed")


def pressure(host: Host, _site: Site) -> Finding:
    if host.text("/proc/pressure/memory") is None:
        return warn("the kernel tells no pressure (PSI)", "no events of kind pressure",
                    "boot with psi=1 (CONFIG_PSI)")
    return ok("pressure is told (PSI)")


PROBES = {
    "kernel": kernel_version, "namespaces": namespaces, "user-namespaces": user_namespaces, "overlay": overlay,
    "id-mapped-layers": idmapped_layers, "seccomp": seccomp, "capabilities": capabilities_of_ours,
    "pressure": pressure,
}
