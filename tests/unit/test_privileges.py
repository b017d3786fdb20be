# SPDX-License-Identifier: GPL-2.0-or-later
"""Features, devices and capabilities as text, and which devices of the host are given to nobody."""

import os
import stat
from types import SimpleNamespace

import pytest

from vemgr.core.config import Settings
from vemgr.core.errors import BadValue
from vemgr.core.plan import Directory, HostDevice
from vemgr.core.privileges import (
    ADDABLE,
    CAPABILITIES,
    NOT_ADDABLE,
    PassedDevice,
    effective,
    parse_capabilities,
    parse_devices,
    parse_features,
)
from vemgr.kernel.capabilities import NAMES
from vemgr.kernel.devices import DeviceRule
from vemgr.runtime import host_devices
from vemgr.runtime.host_devices import device_operations, device_rules


def test_each_capability_is_had_or_addable_or_refused_for_a_reason():
    assert sorted((*CAPABILITIES, *ADDABLE, *NOT_ADDABLE)) == sorted(NAMES)


@pytest.mark.parametrize(("text", "added", "gone"), [
    ("", (), ()), ("none", (), ()), ("+mknod", ("mknod",), ()),
    ("-net_raw,-CAP_SYS_PTRACE", (), ("net_raw", "sys_ptrace")),
    ("+checkpoint_restore -sys_admin", ("checkpoint_restore",), ("sys_admin",)), ("+chown", (), ()),
])
def test_capabilities(text, added, gone):
    kept = effective(parse_capabilities("capability", text))
    assert set(kept) == {*CAPABILITIES, *added} - {*gone} and list(kept) == sorted(kept)


@pytest.mark.parametrize(("text", "why"), [
    ("net_raw", "sign"), ("+", "sign"), ("+nonsense", "no such"), ("+sys_module", "code into the kernel"),
    ("+sys_rawio", "hardware"), ("-setuid", "become the user"), ("+mknod -mknod", "both"), ("+net-raw", "sign"),
])
def test_capabilities_that_are_refused(text, why):
    with pytest.raises(BadValue, match=why):
        parse_capabilities("capability", text)


def test_features():
    assert parse_features("feature", "tun,fuse tun") == ("fuse", "tun")
    assert parse_features("feature", "none") == ()
    with pytest.raises(BadValue, match="fuse, nesting, tun"):
        parse_features("feature", "nested")
    assert Settings(allow=("numa",), feature=("nesting",)).opened == ("nesting", "numa")
    assert Settings(allow=("numa",), feature=("fuse",)).opened == ("numa",)


def test_devices():
    assert parse_devices("device", "/dev/ttyUSB0 /dev/bus/usb/001/002:r /dev/sdb:rw:force /dev/sdc:force") == (
        PassedDevice("/dev/bus/usb/001/002", "r"), PassedDevice("/dev/sdb", "rw", force=True),
        PassedDevice("/dev/sdc", force=True), PassedDevice("/dev/ttyUSB0"))
    assert parse_devices("device", "none") == ()


@pytest.mark.parametrize("text", [
    "sdb", "/etc/passwd", "/dev", "/dev/", "/dev/../etc/x", "/dev/./x", "/dev//x", "/dev/x:", "/dev/x:wr", "/dev/x:rwx",
    "/dev/x:r:w", "/dev/x:r:force:r", "/dev/null", "/dev/pts/0", "/dev/.vemgr/x", "/dev/fuse", "/dev/net/tun:r",
    "/dev/x /dev/x:r", "/dev/" + 300 * "x", "/dev/\x01", " ".join(f"/dev/x{number}" for number in range(33)),
])
def test_devices_that_are_refused(text):
    with pytest.raises(BadValue):
        parse_devices("device", text)


@pytest.fixture
def host(monkeypatch):
    """A host with these devices, of which `busy` are in use."""
    characters = {"ttyUSB0": (188, 0), "mem": (1, 1), "other-name": (1, 4), "tty1": (4, 1), "ttyS0": (4, 64),
                  "vcs1": (7, 1), "msr": (202, 0), "watch": (10, 130), "sg0": (21, 0), "fuse": (10, 229),
                  "net/tun": (10, 1)}
    nodes = {f"/dev/{name}": (stat.S_IFCHR, *number) for name, number in characters.items()}
    nodes |= {"/dev/disk/by-id/x": (stat.S_IFBLK, 8, 16), "/dev/dir": (stat.S_IFDIR, 0, 0)}

    def found(path):
        if path not in nodes:
            raise FileNotFoundError(2, "No such file or directory")
        kind, major, minor = nodes[path]
        return SimpleNamespace(st_mode=kind | 0o600, st_rdev=os.makedev(major, minor))

    busy = set()

    def opened(path, flags):
        if flags & os.O_EXCL and path in busy:
            raise OSError(16, "busy")
        return os.dup(0)

    monkeypatch.setattr(host_devices, "os", SimpleNamespace(
        stat=found, open=opened, close=os.close, makedev=os.makedev, major=os.major, minor=os.minor,
        **{name: getattr(os, name) for name in ("O_RDONLY", "O_EXCL", "O_NONBLOCK", "O_CLOEXEC")}))
    monkeypatch.setattr(host_devices, "_driver", lambda major: "sg" if major == 21 else "usb")
    monkeypatch.setattr(host_devices, "_misc_name", lambda minor: {130: "watchdog0", 229: "fuse"}.get(minor, ""))
    return busy


def test_what_a_plan_has_of_a_device(host):
    operations = device_operations(("fuse",), (PassedDevice("/dev/disk/by-id/x", "r"), PassedDevice("/dev/ttyUSB0")))
    assert operations == (
        Directory("dev/disk"), Directory("dev/disk/by-id"), HostDevice("fuse", 10, 229, mode=0o666),
        HostDevice("disk/by-id/x", 8, 16, block=True, access="r"), HostDevice("ttyUSB0", 188, 0))
    assert device_rules(operations) == (DeviceRule("c", 10, 229, "mrw"), DeviceRule("b", 8, 16, "mr"),
                                        DeviceRule("c", 188, 0, "mrw"))


@pytest.mark.parametrize(("path", "why"), [
    ("/dev/mem", "memory of the host"), ("/dev/other-name", "ports of the host"), ("/dev/tty1", "console"),
    ("/dev/vcs1", "console"), ("/dev/msr", "registers"), ("/dev/watch", "resets the host"),
    ("/dev/dir", "not a device"), ("/dev/gone", "no such file"),
])
def test_what_nobody_gets(host, path, why):
    for force in (False, True):
        with pytest.raises(BadValue, match=why):
            device_operations((), (PassedDevice(path, force=force),))


def test_a_disk_that_is_in_use_must_be_forced(host):
    host.add("/dev/disk/by-id/x")
    for path in ("/dev/disk/by-id/x", "/dev/sg0"):
        with pytest.raises(BadValue, match="force"):
            device_operations((), (PassedDevice(path),))
        assert device_operations((), (PassedDevice(path, force=True),))
    assert device_operations((), (PassedDevice("/dev/ttyS0"),))


def test_a_feature_whose_device_is_something_else(host):
    with pytest.raises(BadValue, match="something else"):
        device_operations(("tun",), ())
