# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks with a size by a project quota, which the kernel of a machine that runs the kernel ring may not have."""

import os
import subprocess
import tempfile

import pytest

from tests.kernel.conftest import Instance
from vemgr.kernel import quota

MIB = 1 << 20


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """An instance whose state is on a file system with project quotas."""
    with tempfile.TemporaryDirectory(prefix="vemgr-quota-", dir="/var/tmp") as base:
        place, image = f"{base}/state", f"{base}/image"
        os.mkdir(place)
        with open(image, "wb") as file:
            os.truncate(file.fileno(), 512 * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "project,quota", "-E", "quotatype=prjquota", image], check=True,
                       timeout=120)
        subprocess.run(["mount", "-o", "loop,prjquota", image, place], check=True, timeout=60)
        try:
            instance = Instance(base, place)
            try:
                instance.import_busybox()
                yield instance
            finally:
                instance.close()
        finally:
            subprocess.run(["umount", place], check=True, timeout=60)


@pytest.fixture
def sized(small):
    name = small.create("--disk", "32M", "--inodes", "1024", "--network", "none")
    small("start", name)
    yield name
    small("destroy", "--force", name, code=None)


def run(small, name, script, code=0):
    return small("exec", name, "--", "sh", "-c", script, code=code)


def counted(small, project):
    fd = os.open(small.state, os.O_RDONLY)
    try:
        return quota.usage(fd, project)
    finally:
        os.close(fd)


def test_df_shows_it_and_it_holds(small, sized):
    assert small.show(sized)["diskBy"] == "quota"
    size, inodes = run(small, sized, "df -Pm / | tail -1; df -Pi / | tail -1").stdout.splitlines()
    assert size.split()[1] == "32" and inodes.split()[1] == "1024"
    assert "quota" in run(small, sized, "dd if=/dev/zero of=/fill bs=1M", code=1).stderr.lower()
    project = small.show(sized)["idBase"]
    assert counted(small, project)[0] <= 32 * MIB
    # it starts when it is full, and is well when something is deleted
    for _ in range(2):
        small("restart", sized, "--timeout", "0")
        run(small, sized, "dd if=/dev/zero of=/more bs=4k", code=1)
        assert counted(small, project)[0] <= 32 * MIB
    run(small, sized, "rm /fill /more && dd if=/dev/zero of=/again bs=1M count=8 && sync")


def test_files_without_end(small, sized):
    run(small, sized, "mkdir /d; i=0; while : >/d/$i; do i=$((i+1)); done", code=None)
    assert counted(small, small.show(sized)["idBase"])[1] == 1024
    small("restart", sized, "--timeout", "0")
    run(small, sized, "rm -r /d && touch /works")


def test_a_volume_has_a_size_for_all_that_have_it(small):
    small("volume", "create", "data", "--size", "32M", "--inodes", "1000")
    names = [small.create("--mount", "data:/data", "--network", "none") for _ in range(2)]
    try:
        small("start", *names)
        assert run(small, names[1], "df -Pm /data | tail -1").stdout.split()[1] == "32"
        run(small, names[0], "dd if=/dev/zero of=/data/one bs=1M count=20")
        run(small, names[1], "dd if=/dev/zero of=/data/two bs=1M count=20", code=1)
        run(small, names[1], "dd if=/dev/zero of=/elsewhere bs=1M count=1")
        assert "are in use" in small("volume", "set", "data", "--size", "8M", code=6).stderr
        small("volume", "set", "data", "--size", "64M")  # at once
        run(small, names[1], "dd if=/dev/zero of=/data/two bs=1M count=20")
        shown = small.json("volume", "show", "data")
        assert shown["size"] == 64 * MIB and shown["inodes"] == 1000 and 40 * MIB <= shown["used"] < 48 * MIB
        run(small, names[0], "chattr -p 0 /data/one 2>/dev/null || busybox chattr -p 0 /data/one", code=None)
        assert small.json("volume", "show", "data")["used"] >= 40 * MIB
    finally:
        small("destroy", "--force", *names)
    small("volume", "remove", "data")
    small("volume", "create", "again")  # gets the project of the other, and nothing of it
    assert small.json("volume", "show", "again")["size"] is None
    small("volume", "remove", "again")


def test_a_neighbour_does_not_feel_it(small, sized):
    other = small.create("--disk", "32M", "--network", "none")
    small("start", other)
    run(small, sized, "dd if=/dev/zero of=/fill bs=1M", code=1)
    run(small, other, "dd if=/dev/zero of=/works bs=1M count=10 && sync")
    small("destroy", "--force", other)


def test_root_of_the_ve_cannot_leave_its_project(small, sized):
    # FS_IOC_FSSETXATTR by busybox: chattr -p there is; and what is moved or linked stays counted.
    done = run(small, sized, "touch /f; chattr -p 0 /f; mkdir /e; chattr -p 0 /e; echo done", code=None)
    assert done.stdout.endswith("done\n")
    project = small.show(sized)["idBase"]
    upper = small.state / "ve" / sized / "data/0/upper"
    assert quota.project_of(str(upper / "e")) == project
    run(small, sized, "dd if=/dev/zero of=/e/fill bs=1M", code=1)
    assert counted(small, project)[0] <= 32 * MIB


def test_another_size_at_once(small, sized):
    assert small("set", sized, "--disk", "64M").stderr == ""
    run(small, sized, "dd if=/dev/zero of=/a bs=1M count=50 && sync")
    assert run(small, sized, "df -Pm / | tail -1").stdout.split()[1] == "64"
    assert "cannot be made as small" in small("set", sized, "--disk", "32M", code=6).stderr
    small("set", sized, "--disk", "unlimited", "--inodes", "unlimited")
    run(small, sized, "dd if=/dev/zero of=/b bs=1M count=40 && sync")
    small("restart", sized, "--timeout", "0")
    assert "cannot be made as small" in small("set", sized, "--disk", "64M", code=6).stderr
    run(small, sized, "rm /a /b")
    small("set", sized, "--disk", "32M")
    run(small, sized, "dd if=/dev/zero of=/fill bs=1M", code=1)


def test_nothing_is_left(small):
    before = small.traces()
    name = small.create("--disk", "32M", "--network", "none")
    small("start", name)
    project = small.show(name)["idBase"]
    run(small, name, "dd if=/dev/zero of=/a bs=1M count=3 && sync")
    small("stop", name, "--kill")
    small("clone", name, "copy")
    small("start", "copy")
    copied = small.show("copy")
    assert copied["diskBy"] == "quota" and counted(small, copied["idBase"])[0] >= 3 * MIB
    run(small, "copy", "dd if=/dev/zero of=/fill bs=1M", code=1)
    assert counted(small, project)[0] < 5 * MIB
    small("destroy", "--force", name, "copy")
    small.assert_traces(before)
    assert counted(small, project) == (0, 0)
