# SPDX-License-Identifier: GPL-2.0-or-later
"""What guests are made of, and the conversation with them, without a guest."""

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from vemgr.compare import marked
from vemgr.compare.driver import CommandTimedOut, Context, DriverFailed, Resources
from vemgr.compare.guests import accelerator, connection, domain, image, initrd, kernel, network, serial
from vemgr.compare.guests.accelerator import Verdict
from vemgr.compare.guests.domain import EMULATED, VIRTIO, Definition
from vemgr.compare.guests.driver import processes_of, remove
from vemgr.compare.guests.kernel import Kernel
from vemgr.compare.guests.serial import Port, Runner
from vemgr.compare.guests.xen import XenDriver
from vemgr.compare.journal import Journal

DATA = Path(__file__).parents[1] / "data/compare"
GUESTS = ("kvm-virtio-kvm", "kvm-virtio-tcg", "kvm-emulated-kvm", "kvm-emulated-tcg")


def definition(name):
    kind, _, accelerated = name.rpartition("-")
    return Definition(
        "web1", VIRTIO if kind == "kvm-virtio" else EMULATED, accelerated, Resources(2, 512 << 20), Path("/c/vmlinuz"),
        Path("/c/initrd"), Path("/c/web1.qcow2"), "none", Path("/r/web1.port"), Path("/c/web1.log"), "vecmp1",
        "198.18.0.2/24", "198.18.0.1")


@pytest.mark.parametrize("name", GUESTS)
def test_the_definition_of_a_guest(name):
    assert domain.xml(definition(name)) == (DATA / f"{name}.xml").read_text()


def test_what_is_emulated_shows_nothing_of_the_hypervisor():
    text = domain.xml(definition("kvm-emulated-kvm"))
    assert "virtio" not in text and '<hidden state="on" />' in text and '<timer name="kvmclock" present="no" />' in text
    assert "vemgr.address=198.18.0.2/24" in text
    alone = replace(definition("kvm-emulated-kvm"), bridge="", address="", gateway="")
    assert "interface" not in domain.xml(alone) and "vemgr.address" not in domain.xml(alone)


def test_the_archive_is_one_that_others_unpack(tmp_path):
    data = initrd.archive({"init": b"#!", "bin/busybox": b"x" * 4097, "a": b""}, executable={"init"})
    assert len(data) % 4 == 0 and data.startswith(b"070701")
    busybox = initrd.busybox()
    assert busybox
    subprocess.run([busybox, "cpio", "-i", "-d", "--quiet"], cwd=tmp_path, input=data, check=True, timeout=20)
    assert (tmp_path / "bin/busybox").read_bytes() == b"x" * 4097
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644
    assert {path.name for path in tmp_path.iterdir()} == {"init", "bin", "a", "dev", "proc", "sys", "new"}


@pytest.mark.parametrize("script", [initrd._INIT, initrd._RUNNER, initrd._TRIAL])
def test_the_scripts_are_read_by_the_shell_that_runs_them(script):
    subprocess.run([initrd.busybox(), "sh", "-n"], input=script, text=True, check=True, timeout=20)


@pytest.fixture
def kernels(tmp_path):
    """Two kernels of the host, the newer one without what emulated devices need."""
    for version, names in (("6.1-full", ["b", "a", "e-1"]), ("6.2-cloud", ["a"])):
        modules = tmp_path / "lib/modules" / version
        (modules / "kernel/x").mkdir(parents=True)
        (modules / "modules.builtin").write_text("kernel/y/in-side.ko\n")
        for name in names:
            depends = {"e-1": "b,in-side", "b": "a"}.get(name, "")
            (modules / f"kernel/x/{name}.ko").write_bytes(b"\0elf\0depends=" + depends.encode() + b"\0name=x\0")
        (tmp_path / "boot").mkdir(exist_ok=True)
        (tmp_path / f"boot/vmlinuz-{version}").touch()
    return tmp_path


def test_a_kernel_that_has_the_modules(kernels, tmp_path):
    def found(*wanted):
        return kernel.find(tmp_path / "nothing", wanted, kernels)

    assert found("a").version == "6.2-cloud"
    assert found("a", "e_1", "in_side").version == "6.1-full"
    assert found("c") is None


def test_modules_are_loaded_after_those_they_need(kernels):
    full = kernel.find(kernels / "nothing", ["e_1"], kernels)
    assert [name for name, _ in kernel.load_order(full, ["in_side", "e_1", "a"])] == ["a", "b", "e_1"]
    with pytest.raises(DriverFailed, match="has no module c"):
        kernel.load_order(full, ["c"])


def test_an_image_follows_its_tree(tmp_path):
    tree, images = tmp_path / "tree", tmp_path / "images"
    tree.mkdir()
    images.mkdir()
    (tree / "file").write_text("one")
    first = image.build(tree, images)
    assert first.stat().st_blocks * 512 < 1 << 27 < 1 << 30 <= first.stat().st_size  # sparse
    made = first.stat().st_mtime_ns
    assert image.build(tree, images) == first and first.stat().st_mtime_ns == made
    shown = subprocess.run(["debugfs", "-R", "cat /file", first], capture_output=True, text=True, timeout=20)
    assert shown.stdout == "one"
    (tree / "file").write_text("other")
    second = image.build(tree, images)
    assert second != first and [*images.iterdir()] == [second]  # the old one has gone


def test_a_tree_without_an_image_leaves_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DriverFailed, match="mke2fs is not installed"):
        image.build(tmp_path, tmp_path)


@pytest.fixture
def kvm(tmp_path):
    """A device that may be opened."""
    path = tmp_path / "kvm"
    path.touch()
    return str(path)


def test_a_guest_that_boots_decides_for_kvm(tmp_path, kvm):
    tried = []
    found = accelerator.decide(tmp_path, "boot1", kvm, lambda: tried.append(1) or "")
    assert (found.accelerator, len(tried)) == ("kvm", 1)
    again = accelerator.decide(tmp_path, "boot1", kvm, lambda: tried.append(1) or "hangs")
    assert (again, len(tried)) == (found, 1)
    later = accelerator.decide(tmp_path, "boot2", kvm, lambda: tried.append(1) or "it hangs")
    assert (later.accelerator, later.why, len(tried)) == ("tcg", "it hangs", 2)


def test_without_a_device_nothing_is_tried(tmp_path):
    found = accelerator.decide(tmp_path, "boot1", str(tmp_path / "none"), lambda: pytest.fail("tried"))
    assert found.accelerator == "tcg" and "none" in found.why


@pytest.mark.parametrize("kept", ["", "{}", "[]", '{"accelerator": "kvm"}', "\xff"])
def test_a_verdict_that_cannot_be_read_is_none(tmp_path, kvm, kept):
    (tmp_path / "accelerator.json").write_text(kept)
    assert accelerator.decide(tmp_path, "boot1", kvm, lambda: "it hangs").accelerator == "tcg"
    assert Verdict(**json.loads((tmp_path / "accelerator.json").read_text())).why == "it hangs"


@pytest.mark.parametrize("body, why", [
    (f"echo Linux; echo {initrd.BOOTED}; exec sleep 1000", ""),
    ("echo Linux; exec sleep 1000", "had not booted after 0.5 seconds, and had said last: Linux"),
    ("exec sleep 1000", "had not booted after 0.5 seconds, and had said last: nothing"),
    ("echo no KVM >&2; exit 3", "ended before it had booted (3), and had said last: no KVM"),
])
def test_a_trial_ends_in_time(tmp_path, monkeypatch, body, why):
    """A kernel that hangs, and all that a QEMU may do instead of booting one."""
    qemu = tmp_path / accelerator.QEMU
    qemu.write_text(f"#!/bin/sh\n{body}\n")
    qemu.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    log = Journal(tmp_path, "x")
    deadline = 0.5 if "not booted after" in why else 60.0
    found = accelerator.boot(Kernel(tmp_path / "k", "1", tmp_path), tmp_path, log, deadline=deadline)
    assert why in found and bool(found) == bool(why)
    assert log.left() == []
    log.close()


def test_the_daemon_of_the_machine_is_used_if_it_answers(tmp_path):
    path = str(tmp_path / "sock")
    assert connection.choose("", (path,)) == ""
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(path)
        assert connection.choose("", (path,)) == ""  # left by one that has ended
        daemon.listen()
        assert connection.choose("", (path,)) == "qemu:///system"
    assert connection.choose("test:///default", ()) == "test:///default"


def test_paths_of_sockets_are_short_enough():
    deep = Path("/var/tmp") / ("x" * 200)
    assert len(str(connection.ports("", deep) / f"{'n' * 40}.port")) < 108
    assert len(str(connection.ports("qemu:///system", deep) / f"{'n' * 40}.port")) < 108


def test_subnets_that_the_host_has_are_not_taken():
    assert str(network.free_subnet([])) == "198.18.0.0/24"
    assert str(network.free_subnet(["10.0.0.1", "198.18.0.1", "198.18.1.77"])) == "198.18.2.0/24"


def test_a_guest_that_is_gone_leaves_nothing_to_remove(tmp_path):
    entry = {"name": "no-such-guest", **{key: str(tmp_path / key) for key in ("disk", "port", "console")}}
    assert not remove(entry)
    (tmp_path / "disk").touch()
    assert remove(entry) and not (tmp_path / "disk").exists()


def test_a_guest_is_found_by_its_name():
    name = f"fake-{os.getpid()}"
    fake = subprocess.Popen(["bash", "-c", 'exec -a /usr/bin/qemu-fake sh -c "read -r line" "$@"', "bash",
                             f"guest={name},x"], stdin=subprocess.PIPE)
    other = subprocess.Popen(["sh", "-c", "read -r line", f"guest={name},x"], stdin=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 20
        while processes_of(name) != [fake.pid]:
            assert time.monotonic() < deadline
        assert processes_of(name[:-1]) == []
        assert remove({"name": name, "disk": "/none", "port": "/none", "console": "/none"})
        assert other.poll() is None
    finally:
        for process in (fake, other):
            process.kill()
            process.communicate()


@pytest.mark.parametrize("content, why", [
    (None, "this is no Xen host"), ("\n", "this host is a guest of Xen itself"),
])
def test_xen_says_what_it_lacks(tmp_path, content, why):
    path = tmp_path / "capabilities"
    if content is not None:
        path.write_text(content)
    driver = XenDriver(Context(tmp_path, "", ""), path)
    assert why in driver.probe()
    with pytest.raises(DriverFailed, match=why):
        driver.start("x", Resources(1, 1))


@pytest.fixture
def guest(tmp_path):
    """The runner's real script, run by the host's busybox, with a socket for a port and /proc/1/root that is ours."""
    ours, theirs = socket.socketpair()
    work = tmp_path / "t"
    work.mkdir()
    text = initrd._RUNNER.replace("exec 3<>/dev/ttyS1", "").replace("/t/", f"{work}/").replace("/t\n", f"{work}\n")
    (tmp_path / "runner").write_text(text.replace("/bin/busybox", str(initrd.busybox())))
    process = subprocess.Popen(
        ["bash", "-c", f'exec 3<>/proc/self/fd/{theirs.fileno()} || exec 3<&{theirs.fileno()}; exec "$@"', "bash",
         initrd.busybox(), "sh", tmp_path / "runner"], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL)
    theirs.close()
    port = Port(ours, "web1")
    assert port.line(time.monotonic() + 20) == ["ready"]
    yield Runner(port, "web1")
    process.kill()
    process.wait()
    port.close()


def test_a_conversation(guest, monkeypatch, tmp_path):
    # As anybody: without the change of the root directory.
    monkeypatch.setattr(serial, "script", lambda argv, mark: f"VEMGR_COMPARE={mark} exec {serial.shlex.join(argv)}\n")
    data = bytes(range(256)) * 300
    done = guest.run(["sh", "-c", "cat; echo 'end c1 0 0 0' >&2; exit 7"], timeout=20, input=data)
    assert (done.code, done.stdout, done.stderr) == (7, data, b"end c1 0 0 0\n")
    assert guest.run(["sh", "-c", "kill -9 $$"], timeout=20).code == 137
    assert guest.run(["no-such-program"], timeout=20).code == 127
    assert guest.run(["printf", "%s", "a'b\"c $d\n"], timeout=20).stdout == b"a'b\"c $d\n"
    with pytest.raises(CommandTimedOut, match="web1"):
        guest.run(["sh", "-c", "trap '' TERM; sleep 1000"], timeout=0.3)
    server = guest.spawn(["sh", "-c", "sleep 1000 & sleep 1000"])
    assert guest.run(["true"], timeout=20).code == 0
    server.stop()
    server.stop()

    # Without the mark, as nginx and redis are when they have written what they do over it.
    pid = tmp_path / "pid"
    server = guest.spawn(["env", "-i", "sh", "-c", f"sleep 1000 & echo $! >{pid}.new; mv {pid}.new {pid}; wait"])
    deadline = time.monotonic() + 20
    while not pid.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    server.stop()
    assert not marked.alive(int(pid.read_text()))


def test_a_guest_that_goes_is_told():
    ours, theirs = socket.socketpair()
    port = Port(ours, "web1")
    theirs.sendall(b"o")
    threading.Timer(0.1, theirs.close).start()
    with pytest.raises(DriverFailed, match="guest web1 has gone"):
        port.line(time.monotonic() + 20)
    with pytest.raises(DriverFailed, match="guest web1 has gone"):
        Runner(port, "web1").run(["true"], timeout=1)
    port.close()


def test_the_command_line_of_a_command():
    assert serial.script(["sh", "-c", "echo 'a b'"], "m1") == (
        "exec /bin/busybox env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root "
        "VEMGR_COMPARE=m1 /bin/busybox chroot /proc/1/root sh -c 'echo '\"'\"'a b'\"'\"''\n")
    assert shutil.which("busybox")
