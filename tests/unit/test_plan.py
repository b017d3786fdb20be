# SPDX-License-Identifier: GPL-2.0-or-later
"""The plan of a start as values; what a standard one is shows tests/data/plan.txt.

To accept a change: PYTHONPATH=. python tests/unit/test_plan.py >tests/data/plan.txt, and read the difference.
"""

import dataclasses
import signal
from pathlib import Path

import pytest

from vemgr.core.config import Definition, Settings
from vemgr.core.layers import Template, Tree
from vemgr.core.links import Link
from vemgr.core.plan import Filesystem, Layer, Overlay, Plan, WriteFile
from vemgr.core.privileges import CAPABILITIES
from vemgr.kernel.capabilities import NAMES
from vemgr.kernel.mounts import MOUNT_ATTR
from vemgr.runtime.planning import choose_init, make_plan, stop_signal

GOLDEN = Path(__file__).parents[1] / "data/plan.txt"
DEBIAN = Template(name="debian-12", init="/sbin/init", init_kind="systemd", trees=[Tree("/", ["/t/debian-12/rootfs"])])
HOST = Template(name="host", kind="host", trees=[Tree("/", ["/t/host/root"]),
                                                 Tree("/usr", ["/t/host/usr-mask", "/usr"])])
WEB1 = Definition(name="web1", template="debian-12", id_base=1879048192, created="2024-01-01T00:00:00+00:00",
                  links=(Link(address="10.77.0.2"),))


def plan_of(definition=WEB1, template=DEBIAN, resolv_conf="nameserver 10.77.0.1\n"):
    return make_plan(definition, template, data="/var/lib/vemgr/ve/web1/data", stage="/run/vemgr/stage",
                     resolv_conf=resolv_conf)


def text():
    return "\n".join([*plan_of().describe(), "", *plan_of(template=HOST).describe()[:9]]) + "\n"


def test_the_standard_plan():
    assert text() == GOLDEN.read_text()


@pytest.mark.parametrize("plan", [
    plan_of(), plan_of(template=HOST), plan_of(resolv_conf=""),
    plan_of(dataclasses.replace(WEB1, started=True, settings=Settings(init=("sh", "-c", "ü 'x'")))),
])
def test_json_round_trip(plan):
    assert Plan.from_json(plan.to_json()) == plan
    assert hash(plan) == hash(Plan.from_json(plan.to_json()))


def test_layers_are_numbered_through():
    operations = plan_of(template=HOST).operations
    layers = [op for op in operations if isinstance(op, Layer)]
    overlays = [op for op in operations if isinstance(op, Overlay)]
    assert [layer.index for layer in layers] == [0, 1, 2]
    assert [(o.target, o.lowers, o.data) for o in overlays] == [
        ("/", (0,), "/var/lib/vemgr/ve/web1/data/0"), ("/usr", (1, 2), "/var/lib/vemgr/ve/web1/data/1")]
    assert operations.index(overlays[0]) > operations.index(layers[-1])


def test_words_of_the_plan_are_those_of_the_kernel():
    assert set(CAPABILITIES) < set(NAMES)
    for operation in plan_of().operations:
        if isinstance(operation, Filesystem):
            assert set(operation.flags) <= set(MOUNT_ATTR)
            assert operation.fstype in ("proc", "sysfs", "cgroup2", "tmpfs", "devpts", "mqueue")
            assert "nosuid" in operation.flags


def test_what_a_ve_must_never_have():
    forbidden = {"sys_module", "sys_rawio", "sys_time", "mknod", "syslog", "bpf", "perfmon", "mac_admin",
                 "mac_override", "wake_alarm", "block_suspend", "audit_control", "checkpoint_restore"}
    assert not forbidden & set(CAPABILITIES)


def files(plan):
    return {op.path: op for op in plan.operations if isinstance(op, WriteFile)}


def test_files():
    found = files(plan_of(dataclasses.replace(WEB1, settings=Settings(hostname="www.example.org"))))
    assert found["etc/hostname"].content == "www.example.org\n"
    assert "10.77.0.2 www.example.org www\n" in found["etc/hosts"].content
    assert found["etc/resolv.conf"].when == "managed"
    assert "etc/resolv.conf" not in files(plan_of(resolv_conf=""))
    assert "127.0.1.1 web1\n" in files(plan_of(dataclasses.replace(WEB1, links=())))["etc/hosts"].content


@pytest.mark.parametrize(("init", "kind", "own", "ephemeral", "argv", "signum"), [
    ("/sbin/init", "systemd", (), False, ("/sbin/init",), signal.SIGRTMIN + 3),
    ("/sbin/init", "busybox", (), False, ("/sbin/init",), signal.SIGUSR2),
    ("/sbin/init", "sysvinit", (), False, ("/sbin/init",), signal.SIGPWR),
    ("/sbin/init", "openrc", (), False, ("/sbin/init",), signal.SIGPWR),
    ("/sbin/init", "other", (), False, ("/sbin/init",), signal.SIGTERM),
    ("", "none", (), False, (), signal.SIGTERM),
    ("/sbin/init", "systemd", ("nginx", "-g"), False, ("nginx", "-g"), signal.SIGTERM),
    ("/sbin/init", "systemd", (), True, (), signal.SIGTERM),
    ("/sbin/init", "systemd", ("x",), True, ("x",), signal.SIGTERM),
])
def test_init_and_how_to_end_it(init, kind, own, ephemeral, argv, signum):
    template = Template(name="x", init=init, init_kind=kind)
    definition = dataclasses.replace(WEB1, settings=Settings(init=own), ephemeral=ephemeral)
    assert choose_init(definition, template) == argv
    assert stop_signal(definition, template) == signum


if __name__ == "__main__":
    print(text(), end="")
