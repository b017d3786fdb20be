# SPDX-License-Identifier: GPL-2.0-or-later
"""VEs in guests, without a guest: what its system is made of, the conversation with it, and what its drivers say."""

import base64
import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from vemgr.compare.blends import collecting, driver, modules, system
from vemgr.compare.blends.agent import Agent
from vemgr.compare.blends.collecting import Collection
from vemgr.compare.blends.driver import VEInGuestDriver, VEsInGuestDriver
from vemgr.compare.blends.hosting import GuestVE, HostingGuests
from vemgr.compare.blends.link import Link
from vemgr.compare.commands import timed_out
from vemgr.compare.driver import (
    CommandTimedOut,
    Context,
    Driver,
    DriverFailed,
    Finished,
    HasSystemsBelow,
    Instance,
    Resources,
    SharesTemplate,
    StartsWarm,
)
from vemgr.compare.guests import domain, initrd, network
from vemgr.compare.guests.domain import HOSTING, Definition
from vemgr.compare.journal import Journal

RESOURCES = Resources(1, 256 << 20)

# what the system is made of


def test_what_a_source_imports():
    source = b"import a.b, c as d\nfrom e.f import g\nfrom . import h\nfrom .i import j\ndef k():\n    import l\n"
    assert modules.imported(source) == {"a", "c", "e", "l"}
    assert modules.imported(b"print 'of another Python'") == set()


def test_the_packages_that_a_package_stands_on(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in {"bl_a/__init__.py": "import os, libvirt", "bl_a/x/y.py": "def z():\n    import bl_b",
                       "bl_b.py": "import bl_c\nimport bl_optional", "bl_c/__init__.py": ""}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert modules.packages("bl_a") == {
        "bl_a": tmp_path / "bl_a", "bl_b": tmp_path / "bl_b.py", "bl_c": tmp_path / "bl_c"}
    modules.packages.cache_clear()
    (tmp_path / "bl_a/more.py").write_text("import bl_missing")
    with pytest.raises(DriverFailed, match="bl_a imports bl_missing, which is not installed"):
        modules.packages("bl_a")


def test_files_are_collected_with_the_links_that_lead_to_them(tmp_path):
    host, top = tmp_path / "host", tmp_path / "top"
    (host / "usr/lib").mkdir(parents=True)
    (host / "lib").symlink_to("usr/lib")
    (host / "usr/lib/libx.so.1.2").write_text("x")
    (host / "usr/lib/libx.so.1").symlink_to("libx.so.1.2")
    (host / "usr/lib/liby.so").symlink_to(f"{host}/lib/libx.so.1")
    found = Collection(top)
    found.add(f"{host}/lib/liby.so")
    found.add(f"{host}/lib/liby.so")
    inside = Path(f"{top}{host}")
    assert (inside / "lib").readlink() == Path("usr/lib")
    assert (inside / "usr/lib/liby.so").readlink() == Path(f"{host}/lib/libx.so.1")
    assert (inside / "usr/lib/libx.so.1").readlink() == Path("libx.so.1.2")
    assert (inside / "usr/lib/libx.so.1.2").read_text() == "x"
    assert found.add_directory(f"{host}/lib") == f"{host}/usr/lib"


def test_the_libraries_of_programs(tmp_path, monkeypatch):
    found = collecting.libraries([sys.executable, str(initrd.busybox())])  # one of them is static
    assert any("/libc.so" in path for path in found) and any("/ld-" in path for path in found)
    assert all(os.path.isabs(path) and os.path.exists(path) for path in found)
    assert os.path.exists(collecting.opened_library("libc.so.6"))
    with pytest.raises(DriverFailed, match=r"the library libnone\.so\.7 is not installed"):
        collecting.opened_library("libnone.so.7")
    (tmp_path / "ldd").write_text("#!/bin/sh\nprintf '\\tliblost.so.1 => not found\\n'\n")
    (tmp_path / "ldd").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(DriverFailed, match=r"the library liblost\.so\.1 is not installed"):
        collecting.libraries([sys.executable])


def test_what_a_host_lacks_for_such_guests_is_said(monkeypatch):
    assert system.missing() == ""
    monkeypatch.setattr(system, "_LIBRARIES", ("libnone.so.7",))
    assert system.missing() == ("a guest cannot be given this host's vemgr: the library libnone.so.7 is not installed")


def test_the_image_is_made_once_for_each_vemgr(tmp_path, monkeypatch):
    made = []

    def make(top, path, size):
        made.append((sorted(each.name for each in top.iterdir()), size > 4 << 30))
        path.touch()

    monkeypatch.setattr(system.image, "make", make)
    monkeypatch.setattr(system, "collect", lambda top: [top.mkdir(), (top / "opt").mkdir()])
    log = Journal(tmp_path, "x")
    first = system.build(tmp_path / "images", log)
    assert system.build(tmp_path / "images", log) == first and made == [(["opt"], True)]
    monkeypatch.setattr(system, "_up", lambda: "another")
    second = system.build(tmp_path / "images", log)
    assert second != first and [*(tmp_path / "images").iterdir()] == [second]
    assert log.left() == []
    log.close()


def test_an_image_that_was_not_finished_leaves_nothing(tmp_path, monkeypatch):
    def collect(top):
        raise DriverFailed("no space")

    monkeypatch.setattr(system, "collect", collect)
    log = Journal(tmp_path, "x")
    with pytest.raises(DriverFailed, match="no space"):
        system.build(tmp_path / "images", log)
    assert [*(tmp_path / "images").iterdir()] == [] and log.left() == []
    log.close()
    # Killed in the middle of it.
    left = tmp_path / "images/collecting-x"
    (left / "root").mkdir(parents=True)
    assert str(left) in system.undo({"path": str(left)})
    assert not left.exists() and system.undo({"path": str(left)}) is None


@pytest.mark.parametrize("text", [system.BEFORE, system._up()])
def test_the_scripts_are_read_by_the_shell_that_runs_them(text):
    subprocess.run([initrd.busybox(), "sh", "-n"], input=text, text=True, check=True, timeout=20)


# the guest


def test_a_guest_has_the_template_to_read_and_a_port_for_its_ves():
    guest = Definition(
        "web1", HOSTING, "kvm", Resources(2, 512 << 20), Path("/c/vmlinuz"), Path("/c/initrd"), Path("/c/web1.qcow2"),
        "none", Path("/r/web1.port"), Path("/c/web1.log"), "vecmp1", "198.18.0.2/18", "198.18.0.1",
        Path("/c/t.ext4"), Path("/r/web1.channel"), "198.18.1.64/27")
    text = domain.xml(guest)
    disk = text.partition('<source file="/c/t.ext4" />')[2].partition("</disk>")[0]
    assert '<target dev="vdb" bus="virtio" />' in disk and "<readonly />" in disk
    assert '<source mode="bind" path="/r/web1.channel" />' in text
    assert "vemgr.template=vdb vemgr.subnet=198.18.1.64/27" in text


def test_each_guest_has_a_subnet_for_its_ves_that_no_other_bridge_gets(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(network, "command", lambda *argv: calls.append(argv) or "[]")
    monkeypatch.setattr(network, "_addresses", lambda: ["198.18.0.1/24"])
    log = Journal(tmp_path, "x")
    bridge = network.Bridge(log, network.PREFIX_WITH_VES)
    assert bridge.gateway == "198.18.64.1"
    addresses = [bridge.next_address() for _ in range(253)]
    assert addresses[0] == "198.18.64.2/18" and bridge.next_address() == addresses[0]  # from the beginning again
    behind = [network.ipaddress.IPv4Network(bridge.subnet_behind(each)) for each in addresses]
    assert not any(one.overlaps(other) for one, other in itertools.pairwise(behind))
    assert not any(each.overlaps(network.ipaddress.IPv4Network("198.18.64.0/24")) for each in behind)
    assert all(each.subnet_of(network.ipaddress.IPv4Network("198.18.64.0/18")) for each in behind)
    # The next one keeps clear of all of it, not of the one address that the host has in it.
    assert str(network.free_subnet(["198.18.0.1/24", "198.18.64.1/18"])) == "198.18.1.0/24"
    assert str(network.free_subnet(["198.18.0.1/18"])) == "198.18.64.0/24"
    bridge.remove()
    log.close()


# the conversation


class FakeVE:
    def __init__(self, name):
        self.name, self.first_instruction, self.up, self.address, self.disk = name, 0.01, 0.02, "198.18.1.66", 4096

    def run(self, argv, *, timeout, input):
        if argv == ["late"]:
            raise timed_out(self.name, argv, timeout)
        if argv == ["defect"]:
            raise RuntimeError("a defect")
        if argv == ["slow"]:
            time.sleep(0.2)
        return Finished(7, bytes(input), b"\xff" + self.name.encode(), 0.0)

    def spawn(self, argv):
        return SimpleNamespace(stop=lambda: None)

    def memory(self):
        return 1 << 20

    def disk_bytes(self):
        return 8192

    def stop(self):
        return 0.0125


class FakeDriver:
    template = "template"

    def start_from(self, template, name, resources):
        if name == "bad":
            raise DriverFailed("VE bad cannot start")
        self.last = (template, name, resources)
        return FakeVE(name)

    def template_of(self, ve, name):
        return 12345

    def remove_template(self, name):
        pass


@pytest.fixture
def agent():
    """The agent's own code, on the other end of a socket."""
    ours, theirs = socket.socketpair()
    found = Agent(FakeDriver(), theirs.sendall)

    def serve():
        with theirs, theirs.makefile("rb") as lines:
            found.say({"id": 0})
            for line in lines:
                found.take(line)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    link = Link(ours, "house")
    link.await_agent(20)
    yield link
    link.close()
    thread.join(20)


def test_a_conversation(agent):
    guest = SimpleNamespace(ask=agent.ask)
    ve = GuestVE(guest, "web1", RESOURCES)
    assert isinstance(ve, Instance)
    assert (ve.first_instruction, ve.address, ve.disk) == (0.01, "198.18.1.66", 4096)
    data = bytes(range(256)) * 999
    done = ve.run(["cat"], timeout=20, input=data)
    assert (done.code, done.stdout, done.stderr) == (7, data, b"\xffweb1") and done.seconds > 0
    with pytest.raises(CommandTimedOut, match="web1 had not ended after 3 seconds"):
        ve.run(["late"], timeout=3)
    with pytest.raises(DriverFailed, match="a defect"):  # answered, too
        ve.run(["defect"], timeout=3)
    with pytest.raises(DriverFailed, match="in guest house: VE bad cannot start"):
        GuestVE(guest, "bad", RESOURCES)
    ve.spawn(["server"]).stop()
    assert (ve.memory(), ve.disk_bytes()) == (1 << 20, 8192)
    assert ve.stop() == 0.0125


def test_several_ves_work_at_once_in_one_guest(agent):
    ves = [GuestVE(SimpleNamespace(ask=agent.ask), f"web{number}", RESOURCES) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(lambda ve: ve.run(["slow"], timeout=20, input=ve.name.encode()), ves)]
    assert [done.stdout.decode() for done in found] == [ve.name for ve in ves]
    assert [done.stderr[1:].decode() for done in found] == [ve.name for ve in ves]


def test_a_guest_that_goes_is_told():
    ours, theirs = socket.socketpair()
    link = Link(ours, "house")
    threading.Timer(0.1, theirs.close).start()
    with pytest.raises(DriverFailed, match="guest house has gone"):
        link.ask("look", name="web1")
    assert link.gone
    with pytest.raises(DriverFailed, match="guest house has gone"):
        link.ask("look", name="web1")
    link.close()


def test_a_guest_that_says_nothing_does_not_answer():
    ours, theirs = socket.socketpair()
    link = Link(ours, "house")
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(link.ask, "look", name="web1")
        while len(link._waiting) < 2:
            time.sleep(0.01)
        with pytest.raises(DriverFailed, match="guest house does not answer"):
            link.await_agent(0.05)
        with pytest.raises(DriverFailed, match="guest house has gone"):  # nobody else waits for it either
            other.result(20)
    assert link.gone
    with theirs:
        link.close()


def test_a_guest_whose_clock_goes_wrong_has_no_figures():
    asked = []

    def ask(do, patience=0, **facts):
        asked.append(do)
        return {"first": 100.0, "up": 1000.0, "address": "", "disk": 0, "seconds": 0.0}

    with pytest.raises(DriverFailed, match="its clock goes wrong"):
        GuestVE(SimpleNamespace(ask=ask), "web1", RESOURCES)
    assert asked == ["start", "stop"]
    ve = GuestVE(SimpleNamespace(ask=lambda *_, **__: {"first": 0, "up": 0, "address": "", "disk": 0, "seconds": 9}),
                 "web2", RESOURCES)
    with pytest.raises(DriverFailed, match=r"web2: its clock goes wrong: 9\.00 s"):
        ve.stop()


def test_a_start_that_takes_too_long_is_a_failure_and_no_missing_word():
    def ask(*_args, **_facts):
        raise TimeoutError("VE web1 had not started after 60 seconds")

    with pytest.raises(DriverFailed, match="web1: VE web1 had not started after 60 seconds"):
        GuestVE(SimpleNamespace(ask=ask), "web1", RESOURCES)


# the drivers


@pytest.fixture
def guests(monkeypatch):
    """Those that have been made."""
    made = []

    class Guest:
        def __init__(self, guests, name, resources):
            self.name, self.resources, self.up, self.gone, self.stopped = name, resources, 10.0, False, 0
            self.guest = SimpleNamespace(memory=lambda: 300 << 20, disk_bytes=lambda: 1 << 20)
            made.append(self)

        def ask(self, do, patience=0, **facts):
            if self.gone or facts.get("name") == "bad":
                raise DriverFailed("gone")
            return {"start": {"first": 0.001, "up": 0.002, "address": "198.18.1.66", "disk": 4096},
                    "stop": {"seconds": 0.05}, "look": {"memory": 1 << 20, "disk": 8192}, "make-template": {"disk": 7},
                    "run": {"code": 0, "stdout": base64.b64encode(b"out").decode(), "stderr": ""}}.get(do, {})

        def stop(self):
            self.stopped += 1
            return 2.0

    monkeypatch.setattr(driver, "HostingGuest", Guest)
    return made


def test_a_start_in_a_guest_of_its_own_is_that_of_both(guests, tmp_path):
    blend = VEInGuestDriver(Context(tmp_path, "", ""))
    assert isinstance(blend, Driver) and not isinstance(blend, StartsWarm) and not isinstance(blend, SharesTemplate)
    assert blend.label == "VE in its own guest with paravirtual devices (virtio) and 256 MiB more for its own system"
    assert blend.disk_bytes() is None and blend.systems_below(4) == 4
    instance = blend.start("web1", RESOURCES)
    assert isinstance(instance, Instance) and (guests[0].name, guests[0].resources) == ("web1", RESOURCES)
    assert (instance.first_instruction, instance.up) == (10.001, 10.002)
    assert (instance.memory(), instance.disk_bytes(), blend.disk_bytes()) == (300 << 20, 1 << 20, 1 << 20)
    assert instance.run(["x"], timeout=1).stdout == b"out"
    assert instance.stop() == 2.05 and instance.stop() == 0.0 and guests[0].stopped == 1
    with pytest.raises(DriverFailed):
        blend.start("bad", RESOURCES)
    assert guests[1].stopped == 1
    other = blend.start("web3", RESOURCES)
    guests[2].gone = True
    blend.close()
    assert guests[2].stopped == 1 and other.stop() == 0.0


def test_several_in_one_guest_which_is_started_once(guests, tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "available", lambda: 64 << 30)
    blend = VEsInGuestDriver(Context(tmp_path, "", ""))
    assert isinstance(blend, Driver) and isinstance(blend, SharesTemplate)
    assert isinstance(blend, StartsWarm) and blend.warm == "a guest that runs already"
    assert isinstance(blend, HasSystemsBelow) and blend.systems_below(4) == 1
    assert blend.label.startswith("VEs started in one running guest with ")
    monkeypatch.setattr(HostingGuests, "prepare", lambda *_: None)
    blend.prepare(tmp_path, RESOURCES, tmp_path)
    assert len(guests) == 1  # it is there before the first of them
    one, two = blend.start("web1", RESOURCES), blend.start("web2", RESOURCES)
    assert [guest.resources for guest in guests] == [
        Resources(len(os.sched_getaffinity(0)), 9 * RESOURCES.memory)]
    assert (one.first_instruction, two.up, blend.disk_bytes(), two.memory()) == (0.001, 0.002, 4096, 1 << 20)
    assert one.stop() == 0.05 and one.stop() == 0.0 and guests[0].stopped == 0
    assert blend.template_of(two, "new") == 7 and two.stop() == 0.0
    assert blend.start_from("new", "web3", RESOURCES).stop() == 0.05

    guests[0].gone = True
    blend.remove_template("new")
    blend.start("web4", RESOURCES)
    assert len(guests) == 2 and guests[0].stopped == 1
    blend.close()
    blend.close()
    assert guests[1].stopped == 1


def test_a_guest_with_several_ves_takes_no_more_than_there_is(guests, tmp_path, monkeypatch):
    blend = VEsInGuestDriver(Context(tmp_path, "", ""))
    monkeypatch.setattr(driver, "available", lambda: 2 << 30)
    blend.start("web1", RESOURCES)
    assert guests[0].resources.memory == (2 << 30) * 3 // 4 - system.MEMORY
    blend.close()
    monkeypatch.setattr(driver, "available", lambda: 512 << 20)
    with pytest.raises(DriverFailed, match="has not the memory for a guest with VEs in it: 512 MiB are available"):
        blend.start("web2", RESOURCES)
    blend.close()


def test_what_the_guests_of_a_killed_run_had_begun_is_removed(tmp_path):
    left = tmp_path / "collecting-x"
    left.mkdir()
    log = Journal(tmp_path, "ve-in-guest")
    log.add(system.KIND, path=str(left))
    log.close()
    found = HostingGuests(Context(tmp_path, "", ""), "ve-in-guest")
    assert found.clean() == [f"directory {left}"] and not left.exists()
    found.close()
