# SPDX-License-Identifier: GPL-2.0-or-later
"""What other runtimes are told, and what VEs are: the same limits, where the host has the means."""

import resource
from pathlib import Path
from types import SimpleNamespace

import pytest

from vemgr.compare import drivers, stage
from vemgr.compare.driver import Context, Driver, Resources
from vemgr.compare.peers import controllers, lxc, oci, podman
from vemgr.compare.ve import VEDriver
from vemgr.core.errors import BadValue

RESOURCES = Resources(2, 512 << 20)
SPEC = {"process": {"terminal": True, "args": ["sh"], "user": {"uid": 0}}, "root": {"path": "rootfs"},
        "mounts": [{"type": "proc", "destination": "/proc"}, {"type": "cgroup", "destination": "/sys/fs/cgroup"}],
        "linux": {"namespaces": [{"type": "pid"}], "resources": {"devices": []}}}


@pytest.fixture
def instance():
    tree = SimpleNamespace(root=Path("/c/instances/x/root"))
    return SimpleNamespace(name="x", mark="m", resources=RESOURCES, tree=tree, directory=Path("/c"))


@pytest.fixture
def limits(monkeypatch):
    """Whether the host has the controllers of cgroup v2."""
    def give(found):
        for module in (oci, lxc, podman):
            monkeypatch.setattr(module, "controllers", lambda: found)
    return give


def test_an_oci_runtime_with_controllers(instance, limits):
    limits({"cpu", "memory", "pids"})
    config = oci.configured({**SPEC, "linux": dict(SPEC["linux"]), "process": dict(SPEC["process"])}, instance)
    assert config["linux"]["resources"] == {"cpu": {"quota": 200_000, "period": 100_000},
                                            "memory": {"limit": 512 << 20}}
    assert config["process"]["args"] == ["/.vemgr-first", "/.vemgr-stamp"] and not config["process"]["terminal"]
    assert "VEMGR_COMPARE=m" in config["process"]["env"] and config["root"]["path"] == "/c/instances/x/root"
    assert len(config["mounts"]) == 2 and config["process"]["user"] == {"uid": 0}
    assert "--cgroup-manager=disabled" not in oci.OCI("crun").start(instance)


def test_an_oci_runtime_without(instance, limits):
    limits({"hugetlb"})
    config = oci.configured({**SPEC, "linux": dict(SPEC["linux"]), "process": dict(SPEC["process"])}, instance)
    assert "resources" not in config["linux"]
    assert [mount["type"] for mount in config["mounts"]] == ["proc"]
    assert "--cgroup-manager=disabled" in oci.OCI("crun").start(instance)
    assert "--cgroup-manager=disabled" not in oci.OCI("runc").start(instance)


def test_lxc(instance, limits):
    limits({"cpu", "memory"})
    assert "lxc.cgroup2.cpu.max = 200000 100000" in lxc.config(instance)
    assert f"lxc.cgroup2.memory.max = {512 << 20}" in lxc.config(instance)
    limits(set())
    assert not any("cgroup2" in line for line in lxc.config(instance))


def test_podman(instance, limits):
    limits({"cpu", "memory"})
    assert {"--cpus=2", f"--memory={512 << 20}"} <= {*podman.Podman().start(instance)}
    limits(set())
    assert "--cgroups=disabled" in podman.Podman().start(instance)


@pytest.mark.parametrize(("own", "said"), [(900, "900"), (resource.RLIM_INFINITY, None), (1 << 40, None)])
def test_podman_is_not_left_to_raise_limits(instance, limits, monkeypatch, own, said):
    monkeypatch.setattr("resource.getrlimit", lambda which: (9, own if which == resource.RLIMIT_NPROC else 77))
    said = said or Path("/proc/sys/kernel/pid_max").read_text().strip()
    assert {"--ulimit=nofile=77:77", f"--ulimit=nproc={said}:{said}"} <= {*podman.Podman().start(instance)}


@pytest.mark.parametrize("found, expected", [
    ([], set()), (["cpu"], {"cpus"}), (["cpu", "memory"], {"cpus", "memory"}),
])
def test_a_ve(tmp_path, found, expected):
    driver = VEDriver(Context(tmp_path, "", "bb"))
    driver._controllers = found
    settings = driver.settings(RESOURCES)
    assert settings.keys() - {"init"} == expected and settings["init"] == "/.vemgr-first /.vemgr-stamp"
    assert settings.get("cpus", "2") == "2" and settings.get("memory", str(512 << 20)) == str(512 << 20)
    assert (driver.affinity(RESOURCES) is None) == ("cpu" in found)


def test_controllers_of_the_host(tmp_path):
    path = tmp_path / "cgroup.controllers"
    assert controllers.controllers(str(path)) == set()
    path.write_text("cpu io memory\n")
    assert controllers.controllers(str(path)) == {"cpu", "io", "memory"}


def test_a_host_with_both_versions_of_cgroups(tmp_path):
    assert not stage.is_hybrid(str(tmp_path))
    (tmp_path / "cgroup.procs").touch()
    assert stage.is_hybrid(str(tmp_path))


def test_every_driver_can_be_made(tmp_path):
    for name in drivers.NAMES:
        driver = drivers.driver(name, Context(tmp_path, "/none", "bb"))
        assert isinstance(driver, Driver) and driver.name == name and driver.label
        assert driver.clean() == []
        driver.close()
    assert [*tmp_path.iterdir()] == []
    with pytest.raises(BadValue, match="host, ve"):
        drivers.driver("vax", Context(tmp_path, "/none", "bb"))
