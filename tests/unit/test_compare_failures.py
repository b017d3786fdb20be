# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that this host cannot have: each says why and what to do, leaves nothing, and the other columns still run."""

import os
import shutil
import socket
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.unit.compare_stand_in import RESOURCES, Driver
from tests.unit.test_compare_campaign import do, gcc, in_tmp_path, wish  # noqa: F401  (fixtures)
from vemgr.compare import drivers
from vemgr.compare.driver import Context, DriverFailed
from vemgr.compare.guests import accelerator, connection, driver, image, initrd
from vemgr.compare.guests.accelerator import Verdict
from vemgr.compare.guests.domain import VIRTIO
from vemgr.compare.guests.driver import GuestDriver
from vemgr.compare.guests.kernel import Kernel

KERNEL = Kernel(Path("/boot/vmlinuz-6.1"), "6.1", Path("/lib/modules/6.1"))


class LibvirtError(Exception):
    pass


@pytest.fixture
def host(tmp_path, monkeypatch):
    """One that has all that guests need; `lacks` takes a program away. Its guests are a port that says nothing."""
    lacking, listeners = set(), []
    monkeypatch.setattr(driver.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(driver.os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: None if name in lacking else f"/usr/bin/{name}")
    monkeypatch.setattr(initrd, "busybox", lambda: None if "busybox" in lacking else Path("/bin/busybox"))
    monkeypatch.setattr(driver, "find", lambda directory, modules: None if "kernel" in lacking else KERNEL)
    monkeypatch.setattr(accelerator, "state_of_host", lambda kernel: "this one")
    monkeypatch.setattr(accelerator, "decide", lambda *_: Verdict("tcg", "the test wants it so", ""))
    monkeypatch.setattr(driver.network, "Bridge", lambda journal, prefix: SimpleNamespace(
        name="vecmp0", gateway="198.18.0.1", next_address=lambda: "198.18.0.2/24", remove=lambda: None))
    monkeypatch.setattr(connection, "ports", lambda uri, directory: tmp_path / "p")
    monkeypatch.setattr(image, "overlay", lambda base, path: path.write_bytes(b"disk"))

    def create(text, flags):
        path = text.partition('mode="bind" path="')[2].partition('"')[0]
        listeners.append(socket.socket(socket.AF_UNIX))
        listeners[-1].bind(path)
        listeners[-1].listen()
        threading.Thread(target=lambda: held.append(listeners[-1].accept()), daemon=True).start()
        Path(text.partition('<source path="')[2].partition('"')[0]).write_text("Kernel panic - not syncing\n")
        return SimpleNamespace(resume=lambda: None, destroy=lambda: None)

    held = []
    connected = SimpleNamespace(createXML=create, close=lambda: None)
    libvirt = SimpleNamespace(libvirtError=LibvirtError, VIR_DOMAIN_START_PAUSED=1, open=lambda uri: connected,
                              registerErrorHandler=lambda *_: None)
    monkeypatch.setattr(connection, "_RUN", tmp_path / "run")
    monkeypatch.setattr(connection, "choose", lambda uri: "qemu:///system")
    monkeypatch.setattr(connection, "files", lambda uri, directory: tmp_path / "files")
    monkeypatch.setitem(sys.modules, "libvirt", libvirt)
    yield SimpleNamespace(lacks=lacking.add, libvirt=libvirt)
    for each in [*listeners, *(pair[0] for pair in held)]:
        each.close()


@pytest.fixture
def guests(host, tmp_path):
    made = GuestDriver(Context(tmp_path / "state", "", "bb"), "kvm-virtio", "paravirtual devices", VIRTIO)
    yield made
    made.close()


@pytest.mark.parametrize(("program", "says"), [
    ("qemu-system-x86_64", "install the package qemu-system-x86"), ("qemu-img", "install the package qemu-utils"),
    ("mke2fs", "install the package e2fsprogs"), ("ip", "install the package iproute2"),
    ("busybox", "install the package busybox-static"), ("kernel", "'vemgr compare kernel' fetches one"),
])
def test_a_host_that_lacks_something_says_what_to_install(host, guests, program, says):
    assert guests.probe() == ""
    host.lacks(program)
    assert says in guests.probe()


def test_without_libvirt(guests, monkeypatch):
    monkeypatch.setitem(sys.modules, "libvirt", None)
    assert "libvirt's Python binding is not installed; install the package python3-libvirt" in guests.probe()


def test_libvirt_that_does_not_connect(host, guests):
    def refuse(uri):
        raise LibvirtError("Cannot recv data: Connection reset by peer")

    host.libvirt.open = refuse
    assert guests.probe() == "libvirt does not connect to qemu:///system: Cannot recv data: Connection reset by peer"


def test_a_libvirt_without_its_account(host, tmp_path, monkeypatch):
    """Its driver comes up once in a process: the second kind of guests is told the same as the first."""
    def refuse(uri):
        raise LibvirtError("internal error: qemu state driver is not active" if tried else
                           "invalid argument: Failed to parse user 'libvirt-qemu'")

    tried = []
    host.libvirt.open = lambda uri: tried.append(refuse(uri))
    monkeypatch.setattr(connection, "choose", lambda uri: "")
    monkeypatch.setattr(connection, "_start_events", lambda libvirt: None)
    monkeypatch.setattr(connection, "_failures", [])
    (tmp_path / "run").mkdir()
    for name in ("kvm-virtio", "kvm-emulated"):
        guests = GuestDriver(Context(tmp_path / "state", "", "bb"), name, "", VIRTIO)
        assert "Failed to parse user 'libvirt-qemu'; make the account" in guests.probe()
        tried.append(name)


def test_an_image_for_which_there_is_no_space(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin/mke2fs"
    tool.write_text('#!/bin/sh\nfor each; do case $each in *.new) echo half >"$each" ;; esac; done\n'
                    'echo "mke2fs: No space left on device while writing" >&2\nexit 1\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    (tmp_path / "files").mkdir()
    with pytest.raises(DriverFailed, match="No space left on device"):
        image.build(tmp_path / "bin", tmp_path / "files")
    assert [*(tmp_path / "files").iterdir()] == []


def test_a_guest_that_never_boots_does_not_stop_the_others(host, guests, gcc, in_tmp_path, tmp_path,  # noqa: F811
                                                           monkeypatch):
    def prepare(root, resources, directory):
        (tmp_path / "files").mkdir()
        guests.initrd = guests.image = guests.kernel = tmp_path / "files/guest"

    monkeypatch.setattr(driver, "_BOOT", {"tcg": 0.2})
    monkeypatch.setattr(guests, "prepare", prepare)
    made = {"host": Driver("host"), "kvm-virtio": guests}
    monkeypatch.setattr(drivers, "NAMES", tuple(made))
    monkeypatch.setattr(drivers, "driver", lambda name, context: made[name])
    monkeypatch.setattr(shutil, "which", lambda name, real=shutil.which: f"/usr/bin/{name}")
    found = do(tmp_path, wish(tmp_path, workloads=("syscall",), repeat=3))
    assert len(found.values("syscall", "host")) == 3 and found.values("syscall", "kvm-virtio") == []
    assert "has not booted: its console says last: Kernel panic - not syncing" in found.why_absent(
        "syscall", "kvm-virtio")
    assert [*(tmp_path / "files").iterdir()] == [*(tmp_path / "p").iterdir()] == []
    assert not [*(tmp_path / "state/journal").iterdir()]
    with pytest.raises(DriverFailed, match="has not booted"):
        guests.start("again", RESOURCES)
