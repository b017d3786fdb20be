# SPDX-License-Identifier: GPL-2.0-or-later
"""vemgr itself: whether it runs, which version, and what earlier runs have left."""

from __future__ import annotations

from vemgr.runtime.doctor.findings import Finding, Host, Site, fail, ok, warn

_SYSTEMD = "/run/systemd/system"


def daemon(host: Host, site: Site) -> Finding:
    if site.daemon:
        return ok("the daemon runs")
    if host.answers(f"{site.config.run_dir}/vemgr.sock"):
        return warn("a daemon runs but does not know these checks", "it is older than this command",
                    "systemctl restart vemgr")
    meaning = "VEs that run go on; until it is back none is started, stopped or restarted"
    if host.has(_SYSTEMD):
        return fail("the daemon does not run", meaning, "systemctl start vemgr; journalctl -u vemgr")
    return warn("the daemon does not run", meaning, "vemgr list starts it")


def keeper(host: Host, site: Site) -> Finding:
    if host.answers(f"{site.config.run_dir}/keeper.sock"):
        return ok("the keeper runs")
    if site.daemon or host.has(_SYSTEMD):
        return fail("the keeper does not run", "no VE can be started", "systemctl start vemgr-keeper")
    return warn("the keeper does not run", "no VE runs, or can be started", "vemgr list starts it")


def version(_host: Host, site: Site) -> Finding:
    if site.daemon and site.version != site.installed:
        return warn(f"the daemon that runs is {site.version}, installed is {site.installed}",
                    "what is new is not there yet; VEs do not notice a restart", "systemctl restart vemgr")
    return ok(f"version {site.installed}")


def on_boot(host: Host, _site: Site) -> Finding:
    """Units that are enabled are links in the directories of targets."""
    wanted = "/etc/systemd/system/multi-user.target.wants/vemgr.service"
    if host.has(_SYSTEMD) and not host.has(wanted):
        return warn("vemgr.service is not enabled", "after a restart of the host no VE starts by itself",
                    "systemctl enable vemgr")
    return ok("starts with the host" if host.has(_SYSTEMD) else "no systemd: vemgr starts with the first command")


def leftovers(host: Host, site: Site) -> Finding:
    directory = f"{site.config.state_dir}/ve"
    found = [f"{directory}/{name}" for name in host.names(directory)
             if name.startswith(".") and name.endswith((".partial", ".removed"))]
    if site.daemon:
        found += _left_cgroups(host, site, site.cgroup)
    if found:
        return warn(f"left by something that was interrupted, or in progress: {', '.join(found[:5])}",
                    "takes room; the daemon clears it away when it starts", "systemctl restart vemgr")
    return ok("nothing is left of interrupted runs")


def _left_cgroups(host: Host, site: Site, directory: str) -> list[str]:
    """Of VEs that do not run; also in groups, whose names begin with "_"."""
    found = []
    for path in (f"{directory}/{name}" for name in host.names(directory)
                 if name not in site.running and host.has(f"{directory}/{name}/cgroup.procs")):
        found += _left_cgroups(host, site, path) if path.rpartition("/")[2].startswith("_") else [path]
    return found


PROBES = {"daemon": daemon, "keeper": keeper, "version": version, "on-boot": on_boot, "leftovers": leftovers}
