# SPDX-License-Identifier: GPL-2.0-or-later
"""Each probe of the doctor, on a host that is made up: one where all is well, and what may be wrong with it."""

from dataclasses import dataclass, field, replace

import pytest

from vemgr.core.host import HostConfig
from vemgr.runtime.doctor.examination import PROBES, configured_subnets, examine
from vemgr.runtime.doctor.findings import Chain, Clock, Level, Site, Space
from vemgr.runtime.doctor.reading import ThisHost

GIB = 1 << 30
CONFIG = HostConfig()
GROUP = "/sys/fs/cgroup/vemgr/ve"
ALL = "cpuset cpu io memory pids\n"
MOUNTS = ("cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\nlxcfs /var/lib/lxcfs fuse.lxcfs rw,nosuid 0 0\n"
          "tmpfs /run tmpfs rw 0 0\n")
V1 = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu,cpuacct 0 0\ncgroup /sys/fs/cgroup/blkio cgroup rw,blkio 0 0\n"
ROUTES = ("Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
          "eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
          "vemgr0\t00004D0A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n")
VPN = "tun0\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0\n"  # 10.0.0.0/8
TEXTS = {
    "/proc/self/status": "Name:\tx\nCapEff:\t000001ffffffffff\n", "/proc/filesystems": "nodev\toverlay\n\text4\n",
    "/proc/sys/kernel/seccomp/actions_avail": "kill\n", "/proc/pressure/memory": "some\n", "/proc/mounts": MOUNTS,
    "/proc/sys/user/max_user_namespaces": "10000\n", f"{GROUP}/cgroup.subtree_control": ALL,
    "/proc/thread-self/net/route": ROUTES, "/proc/sys/net/ipv4/ip_forward": "1\n",
    "/proc/sys/net/netfilter/nf_conntrack_count": "5\n", "/proc/sys/net/netfilter/nf_conntrack_max": "1000\n",
    "/proc/sys/fs/inotify/max_user_instances": "128\n", "/proc/sys/vm/max_map_count": "262144\n",
    "/etc/passwd": "root:x:0:0::/root:/bin/sh\n", "/etc/subuid": "podman:100000:65536\n",
}
PATHS = {*(f"/proc/self/ns/{name}" for name in ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")),
         "/dev/loop-control", f"{GROUP}/memory.swap.max", "/run/systemd/system", f"{GROUP}/web1/cgroup.procs",
         "/etc/systemd/system/multi-user.target.wants/vemgr.service"}


@dataclass(frozen=True)
class FakeHost:
    texts: dict = field(default_factory=lambda: dict(TEXTS))
    paths: frozenset = frozenset(PATHS)
    listed: dict = field(default_factory=lambda: {GROUP: ["web1", "cgroup.procs"], "/var/lib/vemgr/ve": ["web1"]})
    tools: frozenset = frozenset({"mkfs.ext4", "e2fsck", "resize2fs", "mmdebstrap"})
    kernel: str = "6.1.0-13"
    time: Clock = field(default_factory=lambda: Clock(2e9, True))
    spaces: dict = field(default_factory=lambda: {"/var/lib/vemgr": Space(100 * GIB, 50 * GIB, 1000, 500),
                                                  "/run/vemgr": Space(GIB, GIB, 1000, 500)})
    types: dict = field(default_factory=lambda: {"/var/lib/vemgr": "ext4", "/run/vemgr": "tmpfs"})
    nft: tuple | None = (Chain("inet", "vemgr", "forward", "forward", "accept"),)
    sockets: frozenset = frozenset({"/run/vemgr/vemgr.sock", "/run/vemgr/keeper.sock"})
    project_quotas: bool = False
    weights: str = "bfq"

    def text(self, path):
        return self.texts.get(path)

    def names(self, path):
        return self.listed.get(path, [])

    def has(self, path):
        return path in self.paths

    def tool(self, name):
        return name in self.tools

    def release(self):
        return self.kernel

    def clock(self):
        return self.time

    def space(self, path):
        return self.spaces.get(path)

    def filesystem(self, path):
        return self.types.get(path, "")

    def chains(self):
        return self.nft

    def answers(self, path):
        return path in self.sockets

    def quotas(self, _path):
        return self.project_quotas

    def disk_scheduler(self, _path):
        return self.weights


GOOD = FakeHost()
SITE = Site(CONFIG, "1.0", "1.0", daemon=True, cgroup=GROUP, running=frozenset({"web1"}),
            subnets={"vemgr0": "10.77.0.0/24"})
ALONE = replace(SITE, daemon=False, cgroup="", running=frozenset())


def but(path, text):
    return FakeHost(texts={key: value for key, value in {**TEXTS, path: text}.items() if value is not None})


def without(*paths):
    return FakeHost(paths=frozenset(PATHS - set(paths)))


def in_a_ve(**more):
    """With the capabilities that a VE has: all but CAP_MKNOD."""
    return FakeHost(texts=TEXTS | {"/proc/self/uid_map": "0 1879048192 65536\n",
                                   "/proc/self/status": "CapEff:\t000001fff7ffffff\n"}, **more)


def chains(*more):
    return FakeHost(nft=(*GOOD.nft, *more))


DOCKER = Chain("ip", "filter", "FORWARD", "forward", "drop")
CASES = [
    ("daemon", GOOD, ALONE, "warn", "systemctl restart"),
    ("daemon", FakeHost(sockets=frozenset()), ALONE, "fail", "systemctl start vemgr"),
    ("daemon", FakeHost(sockets=frozenset(), paths=frozenset()), ALONE, "warn", "vemgr list"),
    ("keeper", FakeHost(sockets=frozenset()), SITE, "fail", "systemctl start vemgr-keeper"),
    ("keeper", FakeHost(sockets=frozenset(), paths=frozenset()), ALONE, "warn", "vemgr list"),
    ("version", GOOD, replace(SITE, installed="1.1"), "warn", "restart"),
    ("on-boot", without("/etc/systemd/system/multi-user.target.wants/vemgr.service"), SITE, "warn", "enable"),
    ("leftovers", FakeHost(listed={"/var/lib/vemgr/ve": [".x.removed", "web1"]}), ALONE, "warn", "restart"),
    ("leftovers", GOOD, replace(SITE, running=frozenset()), "warn", "restart"),
    ("kernel", FakeHost(kernel="5.15.0"), SITE, "fail", "newer"),
    ("namespaces", without("/proc/self/ns/time"), SITE, "fail", "CONFIG_NAMESPACES"),
    ("user-namespaces", but("/proc/sys/user/max_user_namespaces", "0\n"), SITE, "fail", "sysctl"),
    ("overlay", but("/proc/filesystems", "\text4\n"), SITE, "fail", "modprobe overlay"),
    ("id-mapped-layers", FakeHost(types={"/var/lib/vemgr": "nfs4"}), SITE, "fail", "state-dir"),
    ("id-mapped-layers", FakeHost(types={"/var/lib/vemgr": "tmpfs"}), SITE, "warn", "state-dir"),
    ("seccomp", but("/proc/sys/kernel/seccomp/actions_avail", None), SITE, "fail", "CONFIG_SECCOMP"),
    ("capabilities", but("/proc/self/status", "CapEff:\t000001fffeffffff\n"), SITE, "warn", "CAP_SYS_RESOURCE"),
    ("capabilities", but("/proc/self/status", "CapEff:\t0000000000000000\n"), SITE, "fail", "root"),
    ("capabilities", but("/proc/self/status", "CapEff:\t000001fff7ffffff\n"), SITE, "fail", "root"),
    ("id-mapped-layers", in_a_ve(types={"/var/lib/vemgr": "overlay"}), SITE, "fail", "--mount VOLUME"),
    ("pressure", but("/proc/pressure/memory", None), SITE, "warn", "psi=1"),
    ("cgroup2", but("/proc/mounts", V1), SITE, "fail", "mount -t cgroup2"),
    ("cgroup-v1", but("/proc/mounts", MOUNTS + V1), SITE, "warn", "unified"),
    ("controllers", but(f"{GROUP}/cgroup.subtree_control", "cpu pids\n"), SITE, "warn", "Delegate"),
    ("controllers", but("/sys/fs/cgroup/cgroup.controllers", "cpu\n"), ALONE, "warn", "Delegate"),
    ("swap-accounting", without(f"{GROUP}/memory.swap.max"), SITE, "warn", "swapaccount"),
    ("disk-weights", FakeHost(weights=""), SITE, "warn", "bfq"),
    ("forward-policy", chains(DOCKER), SITE, "warn", "nft insert rule ip filter FORWARD iifname vemgr0 accept"),
    ("forward-policy", FakeHost(nft=None), SITE, "fail", "libnftables"),
    ("other-firewalls", chains(Chain("inet", "firewalld", "filter_FORWARD", "forward", "accept")), SITE, "warn",
     "firewall-cmd"),
    ("other-firewalls", chains(Chain("ip", "filter", "ufw-user-input", "", "")), SITE, "warn", "ufw route"),
    ("other-firewalls", chains(Chain("ip", "filter", "DOCKER-USER", "", "")), SITE, "warn", "DOCKER-USER"),
    ("other-firewalls", but("/proc/net/ip_tables_names", "filter\n"), SITE, "warn", "iptables-legacy"),
    ("addresses", but("/proc/thread-self/net/route", ROUTES + VPN), SITE, "fail", "another subnet"),
    ("forwarding", but("/proc/sys/net/ipv4/ip_forward", "0\n"), SITE, "warn", "network restore"),
    ("br_netfilter", but("/proc/sys/net/bridge/bridge-nf-call-iptables", "1\n"), SITE, "warn", "call-iptables=0"),
    ("connections", but("/proc/sys/net/netfilter/nf_conntrack_count", "900\n"), SITE, "warn", "=2000"),
    ("inotify-instances", but("/proc/sys/fs/inotify/max_user_instances", "64\n"), SITE, "warn", "=128"),
    ("inotify-watches", but("/proc/sys/fs/inotify/max_user_watches", "8192\n"), SITE, "warn", "sysctl"),
    ("keys", but("/proc/sys/kernel/keys/maxkeys", "20\n"), SITE, "warn", "maxkeys"),
    ("pids", but("/proc/sys/kernel/pid_max", "32768\n"), SITE, "warn", "pid_max"),
    ("threads", but("/proc/sys/kernel/threads-max", "5000\n"), SITE, "warn", "threads-max"),
    ("maps", but("/proc/sys/vm/max_map_count", "65530\n"), SITE, "warn", "=262144"),
    ("open-files", but("/proc/sys/fs/file-max", "1000\n"), SITE, "warn", "file-max"),
    ("id-ranges", but("/etc/subuid", "all:0:4294967294\n"), SITE, "fail", "id-first"),
    ("id-ranges", but("/etc/subgid", f"most:{0x70000000 + 65536 * 10}:{0x10000000}\n"), SITE, "warn", "id-first"),
    ("users", but("/etc/passwd", f"bob:x:{0x70000001}:1::/:/bin/sh\n"), SITE, "fail", "usermod"),
    ("disk-space", FakeHost(spaces={"/var/lib/vemgr": Space(100 * GIB, GIB // 2, 0, 0)}), SITE, "warn", "du"),
    ("disk-space", FakeHost(spaces={"/var/lib/vemgr": Space(100 * GIB, GIB // 64, 0, 0)}), SITE, "fail", "du"),
    ("disk-space", FakeHost(spaces={"/var/lib/vemgr": Space(GIB, GIB, 1000, 5)}), SITE, "fail", "du"),
    ("run-directory", FakeHost(spaces={"/run/vemgr": Space(GIB, 4096, 0, 0)}), SITE, "fail", "remount"),
    ("run-directory", FakeHost(types={"/run/vemgr": "ext4"}), SITE, "warn", "tmpfs"),
    ("disk-sizes", FakeHost(tools=frozenset()), SITE, "warn", "e2fsprogs"),
    ("disk-sizes", without("/dev/loop-control"), SITE, "warn", "modprobe loop"),
    ("template-build", FakeHost(tools=frozenset()), SITE, "warn", "mmdebstrap"),
    ("lxcfs", but("/proc/mounts", "none / ext4 rw 0 0\n"), SITE, "warn", "apt install lxcfs"),
    ("lxcfs", but("/proc/mounts", ""), replace(SITE, config=HostConfig(lxcfs="require")), "fail", "lxcfs"),
    ("clock", FakeHost(time=Clock(2e9, False)), SITE, "warn", "chrony"),
    ("clock", FakeHost(time=Clock(1e6, True)), SITE, "fail", "chronyd"),
]


def test_a_host_where_all_is_well():
    assert [each for each in examine(GOOD, SITE) if each["level"] != "ok"] == []


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda number: f"{CASES[number][0]}-{number}")
def test_what_is_wrong_is_told_with_its_remedy(case):
    check, host, site, level, remedy = CASES[case]
    found = PROBES[check](host, site)
    assert found.level == level and found.fact and found.meaning and remedy in found.remedy, found


def test_every_probe_has_a_case_that_fails():
    assert {case[0] for case in CASES} == set(PROBES)


def test_what_makes_up_for_something_that_is_missing():
    assert PROBES["disk-sizes"](FakeHost(tools=frozenset(), project_quotas=True), SITE).level == Level.OK
    modules = FakeHost(texts={**TEXTS, "/proc/filesystems": "",
                              "/lib/modules/6.1.0-13/modules.dep": "kernel/fs/overlayfs/overlay.ko:\n"})
    assert PROBES["overlay"](modules, SITE).level == Level.OK
    assert PROBES["lxcfs"](but("/proc/mounts", ""), replace(SITE, config=HostConfig(lxcfs="off"))).level == Level.OK
    for check in ("capabilities", "id-mapped-layers"):
        assert PROBES[check](in_a_ve(), SITE).level == Level.OK, check
    empty = FakeHost(texts={}, listed={}, spaces={}, types={})
    for check in ("disk-space", "run-directory", "id-mapped-layers", "leftovers"):
        assert PROBES[check](empty, ALONE).level == Level.OK, check  # nobody has used vemgr here yet


def test_a_probe_that_fails_says_so_and_leaves_the_others_alone():
    def broken(_host, _site):
        raise ValueError("odd")

    first, second = examine(GOOD, SITE, {"odd": broken, "kernel": PROBES["kernel"]})
    assert (first["check"], first["level"]) == ("odd", "warn") and "ValueError: odd" in first["fact"]
    assert second["level"] == "ok"


def test_subnets_without_a_daemon():
    chosen = but("/var/lib/vemgr/network.json", '{"bridge": {"subnet": "10.5.0.0/24"}}')
    assert configured_subnets(chosen, CONFIG) == {"vemgr0": "10.5.0.0/24"}
    assert configured_subnets(but("/var/lib/vemgr/network.json", '{"bridge": 3}'), CONFIG) == {}
    assert configured_subnets(GOOD, HostConfig.from_mapping({"subnet": "10.6.0.0/24"})) == {"vemgr0": "10.6.0.0/24"}


def test_this_host_can_be_read(tmp_path):
    host = ThisHost()
    assert host.text("/nonexistent") is None and host.names("/nonexistent") == [] and host.space("/nonexistent") is None
    assert host.filesystem("/proc/self") == "proc" and host.filesystem("/nonexistent") == ""
    assert host.space(str(tmp_path)).size > 0 and host.clock().now > 1.7e9 and host.release()[0].isdigit()
    assert host.tool("sh") and not host.tool("nonsense") and not host.answers(str(tmp_path / "socket"))
    unexplained = [each for each in examine(host, ALONE) if "cannot be checked" in each["fact"]]
    assert unexplained == []
