# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks with a size: what a VE sees of it, what it is like when it is full, and what is left when something ends."""

import fcntl
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.kernel.conftest import eventually, is_alive, lines_of
from vemgr.kernel.capabilities import has

MIB = 1 << 20
FILL = "dd if=/dev/zero of=/fill bs=1M"


def image(vemgr, name):
    return vemgr.state / "ve" / name / "disk.img"


def loops(vemgr):
    """The loop devices of this instance."""
    return [line for line in lines_of("losetup", "-a") if str(vemgr.base) in line]


def no_loops(vemgr):
    eventually(lambda: not loops(vemgr), lambda: loops(vemgr), timeout=30)


def run(vemgr, name, script, code=0):
    return vemgr("exec", name, "--", "sh", "-c", script, code=code)


def space(vemgr, name):
    """What `df` says inside, in MiB, and `df -i`: sizes, and what is free."""
    text = run(vemgr, name, "df -Pm / | tail -1; df -Pi / | tail -1").stdout.splitlines()
    (_, size, _, free, *_), (_, inodes, _, inodes_free, *_) = (line.split() for line in text)
    return int(size), int(free), int(inodes), int(inodes_free)


@pytest.fixture(autouse=True, scope="module")
def can_have_disks():
    missing = [tool for tool in ("mkfs.ext4", "resize2fs", "e2fsck", "losetup") if shutil.which(tool) is None]
    if not os.path.exists("/dev/loop-control"):
        missing.append("loop devices")
    if missing:
        (pytest.fail if os.environ.get("VEMGR_MUST_WORK") == "1" else pytest.skip)(f"missing: {missing}")


@pytest.fixture
def sized(vemgr, fresh):
    name = vemgr.create("--disk", "64M", "--inodes", "2000", "--network", "none")
    vemgr("start", name)
    yield name
    vemgr("destroy", "--force", name, code=None)


@pytest.fixture(autouse=True)
def nothing_is_left(vemgr, fresh):
    """`fresh` destroys what a test leaves, and takes its devices away with it."""
    yield
    names = [ve["name"] for ve in vemgr.json("list")]
    if names:
        vemgr("destroy", "--force", *names)
    no_loops(vemgr)


def test_a_full_disk_hurts_its_ve_only(vemgr, fresh, sized):
    neighbour = vemgr.create("--disk", "64M", "--network", "none")
    vemgr("start", neighbour)
    before = space(vemgr, neighbour)
    assert "No space left" in run(vemgr, sized, FILL, code=1).stderr
    assert space(vemgr, sized)[1] == 0
    assert "No space left" in run(vemgr, sized, FILL.replace("1M", "4k").replace("/fill", "/rest"), code=1).stderr
    assert space(vemgr, neighbour) == before
    run(vemgr, neighbour, "echo x >/works && sync")
    # it starts when it is full, and is well when something is deleted
    for _ in range(3):
        vemgr("restart", sized, "--timeout", "0")
        run(vemgr, sized, f"{FILL.replace('1M', '4k').replace('fill', 'rest')} oflag=append conv=notrunc", code=1)
    run(vemgr, sized, "rm /fill /rest && dd if=/dev/zero of=/again bs=1M count=20 && sync")
    assert space(vemgr, sized)[1] > 15


def test_df_shows_it_and_nothing_of_it_shows_outside(vemgr, fresh):
    before = vemgr.traces()
    name = vemgr.create("--disk", "64M", "--inodes", "2000")
    assert f"disk image={image(vemgr, name)}" in vemgr.out("start", "--dry-run", name)
    assert not image(vemgr, name).exists()
    vemgr("start", name)
    size, free, inodes, inodes_free = space(vemgr, name)
    assert 50 < size <= 64 and 40 < free < size and 2000 <= inodes < 2100 and inodes_free > 1900
    assert vemgr.show(name)["diskBy"] == "image" and "disk by" in vemgr.out("show", name)
    assert os.stat(image(vemgr, name)).st_size == 64 * MIB
    assert image(vemgr, name).stat().st_mode & 0o777 == 0o600
    assert not [line for line in lines_of("cat", "/proc/self/mountinfo") if "loop" in line and str(vemgr.base) in line]
    run(vemgr, name, "echo kept >/root/file; ls -ld / | grep -q 'root *root'")
    for way in (["restart", name, "--timeout", "0"], ["stop", name, "--kill"]):
        vemgr(*way)
    no_loops(vemgr)
    vemgr("start", name)
    assert run(vemgr, name, "cat /root/file").stdout == "kept\n"
    vemgr("destroy", "--force", name)
    no_loops(vemgr)
    vemgr.assert_traces(before)


def test_files_without_end(vemgr, sized):
    made = "i=0; while mkdir /d/$$-$i; do i=$((i+1)); done"
    assert "No space left" in run(vemgr, sized, f"mkdir /d; {made}", code=None).stderr
    assert space(vemgr, sized)[3] == 0 and space(vemgr, sized)[1] > 20
    for _ in range(3):
        vemgr("restart", sized, "--timeout", "0")
        run(vemgr, sized, made, code=None)
        assert space(vemgr, sized)[3] == 0
    run(vemgr, sized, "rm -r /d && touch /works")
    assert space(vemgr, sized)[3] > 1900


def test_what_is_deleted_is_given_back(vemgr, sized):
    run(vemgr, sized, "dd if=/dev/urandom of=/big bs=1M count=30 && sync")
    eventually(lambda: os.stat(image(vemgr, sized)).st_blocks * 512 > 30 * MIB, "nothing is written")
    run(vemgr, sized, "rm /big && sync")
    eventually(lambda: os.stat(image(vemgr, sized)).st_blocks * 512 < 20 * MIB, "nothing is given back", timeout=30)


def test_another_size(vemgr, fresh, sized):
    run(vemgr, sized, "dd if=/dev/urandom of=/kept bs=1M count=30 && md5sum /kept >/sum")
    assert "only while the VE is stopped" in vemgr("set", sized, "--disk", "48M", code=21).stderr
    if has("sys_resource"):
        vemgr("set", sized, "--disk", "128M")
        assert 100 < space(vemgr, sized)[0] <= 128
    else:
        assert "CAP_SYS_RESOURCE" in vemgr("set", sized, "--disk", "128M", code=21).stderr
        assert space(vemgr, sized)[0] <= 64
    assert "already" in vemgr("set", sized, "--disk", "unlimited", "--inodes", "unlimited", code=21).stderr
    vemgr("stop", sized, "--kill")
    assert "settled" in vemgr("set", sized, "--inodes", "3000", code=21).stderr
    vemgr("set", sized, "--disk", "256M")
    assert os.stat(image(vemgr, sized)).st_size == 256 * MIB
    vemgr("start", sized)
    assert space(vemgr, sized)[0] > 200
    vemgr("stop", sized, "--kill")
    vemgr("set", sized, "--disk", "96M")
    before = os.stat(image(vemgr, sized)).st_ino
    refused = vemgr("set", sized, "--disk", "32M", code=6).stderr
    assert "cannot be made as small as 32M" in refused and "delete files" in refused
    assert vemgr.show(sized)["settings"]["disk"] == "96M"
    assert os.stat(image(vemgr, sized)).st_size == 96 * MIB and os.stat(image(vemgr, sized)).st_ino == before
    assert sorted(os.listdir(image(vemgr, sized).parent)) == ["config.toml", "disk.img", "started"]
    # by hand, too
    config = image(vemgr, sized).with_name("config.toml")
    config.write_text(config.read_text().replace('"96M"', '"128M"'))
    vemgr("start", sized)
    assert 100 < space(vemgr, sized)[0] <= 128
    assert run(vemgr, sized, "md5sum -c /sum").stdout == "/kept: OK\n"


def test_files_go_in_and_out(vemgr, fresh, tmp_path):
    """Before the first start, while it runs, and when it is stopped."""
    before = vemgr.traces()
    name = vemgr.create("--disk", "64M", "--network", "none")
    (tmp_path / "file").write_text("pushed\n")
    assert "no/such" in vemgr("pull", f"{name}:/no/such", f"{tmp_path}/back", code=None).stderr
    assert not image(vemgr, name).exists()
    for verb in ("start", "stop", "start"):
        vemgr("push", f"{tmp_path}/file", f"{name}:/root/{verb}")
        vemgr(verb, name)
        vemgr("pull", f"{name}:/root/{verb}", f"{tmp_path}/back")
        assert (tmp_path / "back").read_text() == "pushed\n"
    assert run(vemgr, name, "ls /root").stdout.split() == ["start", "stop"]
    assert not image(vemgr, name).with_name("data").exists()
    vemgr("destroy", "--force", name)
    no_loops(vemgr)
    vemgr.assert_traces(before)


def test_what_is_made_of_its_files(vemgr, fresh, sized, tmp_path):
    run(vemgr, sized, "echo kept >/root/file; chown 7:8 /root/file; rm /etc/group; truncate -s 20M /root/hole; "
        "dd if=/dev/zero of=/root/full bs=1M count=34")
    vemgr("stop", sized, "--kill")
    look = "cat /root/file; stat -c '%u:%g %b %s' /root/file /root/hole; ls /etc; df -Pm / | awk 'NR==2 {print $2}'"
    vemgr("clone", sized, "twin")
    vemgr("export", sized, str(tmp_path / "file"))
    vemgr("import", str(tmp_path / "file"), "--name", "read")
    vemgr("import", str(tmp_path / "file"), "--name", "larger", "--disk", "96M")
    vemgr("template", "create", "of-a-disk", "--from", sized)
    vemgr("rename", sized, "renamed")
    seen = {}
    for name in ("renamed", "twin", "read", "larger"):
        assert image(vemgr, name).exists() and image(vemgr, name).stat().st_blocks < 52 * 2048
        vemgr("start", name)
        seen[name] = run(vemgr, name, look).stdout
        vemgr("stop", name, "--kill")
    assert seen["renamed"].startswith("kept\n7:8 ") and seen["renamed"] == seen["twin"] == seen["read"]
    assert seen["larger"].splitlines()[:-1] == seen["twin"].splitlines()[:-1] != []
    assert int(seen["larger"].split()[-1]) > int(seen["twin"].split()[-1])
    assert vemgr("run", "--template", "of-a-disk", "--", "cat", "/root/file").stdout == "kept\n"
    vemgr("template", "remove", "of-a-disk")
    assert "/root/full" in vemgr("import", str(tmp_path / "file"), "--name", "small", "--disk", "32M", code=46).stderr
    assert not [name for name in os.listdir(vemgr.state / "ve") if "small" in name]
    vemgr("destroy", "twin", "read", "larger", "renamed")
    no_loops(vemgr)


def test_a_directory_stays_one(vemgr, fresh, running):
    assert "in a directory already" in vemgr("set", running, "--disk", "64M", code=21).stderr
    assert vemgr.show(running)["settings"]["disk"] == "unlimited"
    new = vemgr.create()
    vemgr("set", new, "--disk", "64M")
    vemgr("start", new)
    assert vemgr.show(new)["diskBy"] == "image"
    # somebody takes the setting out: the files must not seem to be gone
    vemgr("stop", new, "--kill")
    config = image(vemgr, new).with_name("config.toml")
    config.write_text(config.read_text().replace('disk = "64M"', ""))
    assert "are on a disk with a size" in vemgr("start", new, code=3).stderr
    assert not image(vemgr, new).with_name("data").exists()


def test_a_start_that_fails_leaves_nothing(vemgr, fresh):
    name = vemgr.create("--disk", "64M", "--init", "/no/such/init")
    before = vemgr.traces()
    for _ in range(2):
        vemgr("start", name, code=7)
        no_loops(vemgr)
        vemgr.assert_traces(before)
    assert not image(vemgr, name).exists()


def test_never_mounted_twice(vemgr, fresh, sized):
    """While somebody has it mounted, the VE does not start: two mounts of one image destroy it."""
    vemgr("stop", sized, "--kill")
    no_loops(vemgr)
    with open(image(vemgr, sized), "rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        start = vemgr.popen("start", sized, stdout=None, stderr=None)
        eventually(lambda: any("disk.img" in file for file in vemgr.descriptors(vemgr.daemon_pid())), "it does not try")
        assert start.poll() is None and not loops(vemgr)
    assert start.wait(30) == 0


@pytest.mark.parametrize("moment", ["made", "attached", "running"])
def test_the_daemon_is_killed(make_instance, moment):
    """While it makes the disk, when it has a loop device that nothing is mounted from yet, and while the VE runs."""
    with make_instance() as vemgr:
        name = vemgr.create("--disk", "64M", "--network", "none")
        daemon = vemgr.daemon_pid()
        if moment == "running":
            vemgr("start", name)
            pid = vemgr.show(name)["pid"]
            os.kill(daemon, signal.SIGKILL)
        else:
            # Killed where it is about to make that call.
            call = {"made": "rename", "attached": "fsopen"}[moment]
            tracer = subprocess.Popen(["strace", "-f", "-qq", "-o", f"{vemgr.base}/strace", "-e", f"trace={call}", "-e",
                                       f"inject={call}:signal=SIGKILL", "-p", str(daemon)])
            try:
                eventually(lambda: "TracerPid:\t0" not in Path(f"/proc/{daemon}/status").read_text(), "no tracer")
                assert vemgr("start", name, code=None).returncode
            finally:
                # Or it would be found much later, in a test that has nothing to do with it. Not SIGTERM: strace then
                # waits for the daemon's first thread, which does not end before strace has taken the others.
                tracer.kill()
                tracer.wait(30)
        eventually(lambda: not is_alive(daemon), "the daemon stays")
        if moment == "running":
            assert vemgr.show(name)["pid"] == pid
            assert space(vemgr, name)[0] <= 64
            vemgr("stop", name, "--kill")
        else:
            no_loops(vemgr)
            assert vemgr.state_of(name) == "stopped"
            assert not image(vemgr, name).with_name(".disk.img.partial").exists()
        no_loops(vemgr)
        vemgr("start", name)
        assert space(vemgr, name)[0] <= 64
        vemgr("destroy", "--force", name)
        no_loops(vemgr)
