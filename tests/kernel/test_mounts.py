# SPDX-License-Identifier: GPL-2.0-or-later
"""Directories and files of the host in a VE: who owns what, what is read-only, and what a hostile tree can do to it."""

import functools
import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.kernel.conftest import lines_of
from tests.kernel.hostile import TRICKS, outside, untouched
from vemgr.api.client import RemoteError


@pytest.fixture
def source():
    """A directory of the host on a file system that can shift ids, as /var/tmp is."""
    with tempfile.TemporaryDirectory(prefix="vemgr-mount-", dir="/var/tmp") as made:
        base = Path(os.path.realpath(made))
        (base / "data").mkdir()
        (base / "data/file").write_text("of the host\n")
        os.chown(base / "data/file", 1000, 1000)
        (base / "single").write_text("one\n")
        yield base


def upper(vemgr, name):
    return vemgr.state / "ve" / name / "data/0/upper"


def test_files_of_the_ve_are_not_written_through_a_mount(vemgr, fresh, source):
    (source / "data/hostname").write_text("the host's\n")
    name = vemgr.create("--mount", f"{source}/data:/etc")
    vemgr("start", name)
    assert (source / "data/hostname").read_text() == "the host's\n"
    assert sorted(os.listdir(source / "data")) == ["file", "hostname"]


def test_ownership_is_right_on_both_sides(vemgr, fresh, source):
    before = vemgr.traces()
    name = vemgr.create("--mount", f"{source}/data:/srv/deep/data", "--mount", f"{source}/single:/etc/single:ro",
                        "--mount", f"{source}/data:/run/again:ro")
    vemgr("start", name)

    def inside(script, code=0):
        return vemgr("exec", name, "--", "sh", "-c", script, code=code).stdout

    assert inside("stat -c '%u %g' /srv/deep/data /srv/deep/data/file").split() == ["0", "0", "1000", "1000"]
    assert inside("stat -c '%u %a' /srv/deep /etc/single").split() == ["0", "755", "0", "644"]
    assert inside("cat /etc/single /run/again/file") == "one\nof the host\n"
    inside("echo new >/srv/deep/data/new && chown 1000:1000 /srv/deep/data/new && cat /run/again/new")
    made = os.stat(source / "data/new")
    assert (made.st_uid, made.st_gid) == (1000, 1000)
    assert inside("echo x >/run/again/file; echo x >/etc/single; echo done").endswith("done\n")
    assert (source / "data/file").read_text() == "of the host\n" and (source / "single").read_text() == "one\n"
    options = {line.split()[4]: line.split()[5] for line in inside("cat /proc/self/mountinfo").splitlines()}
    for place, access in (("/srv/deep/data", "rw"), ("/run/again", "ro"), ("/etc/single", "ro")):
        assert {access, "nosuid", "nodev"} <= set(options[place].split(",")), options[place]
    # root of the VE cannot lift it
    vemgr("exec", name, "--", "mount", "-o", "remount,bind,rw", "/run/again", code=None)
    vemgr("exec", name, "--", "umount", "/run/again", code=None)
    assert "of the host" in inside("cat /run/again/file") and not inside("echo x >/run/again/y && echo written", None)

    assert vemgr("set", name, "--mount", "none").stderr == f"{name}: at the next start: mount\n"
    assert inside("cat /run/again/file")
    vemgr("restart", name, "--timeout", "0")
    assert inside("ls /srv/deep/data /run") == "/run:\n\n/srv/deep/data:\n"
    vemgr("destroy", "--force", name)
    assert sorted(os.listdir(source / "data")) == ["file", "new"]
    vemgr.assert_traces(before)


REFUSED = (
    ("{source}/absent:/a", "no such file"), ("{source}/link:/a", "a symlink is in it"), ("{state}:/a", "vemgr's own"),
    ("{state}/templates:/a", "vemgr's own"), ("{run}:/a", "vemgr's own"), ("/var/tmp:/a", "vemgr's own"),
    ("/proc/self/root:/a", "a symlink is in it"), ("/:/a", "not an absolute path"),
    ("{source}/data:/proc/sys", "vemgr"),
)


def test_refused(vemgr, fresh, ve, source):
    (source / "link").symlink_to("data")
    before = vemgr.traces()
    with vemgr.client() as client:
        for options, why in REFUSED:
            settings = {"mount": options.format(source=source, state=vemgr.state, run=vemgr.run)}
            for method, values in (("Create", {"name": "refused", "template": "bb"}), ("Set", {"name": ve})):
                with pytest.raises(RemoteError, match=why) as refused:
                    client.call(method, {**values, "settings": settings})
                assert refused.value.code == 21
    assert vemgr.show(ve)["settings"]["mount"] == "none"
    vemgr.assert_traces(before)


def test_a_source_that_has_gone(vemgr, fresh, source):
    name = vemgr.create("--mount", f"{source}/data:/a")
    shutil.rmtree(source / "data")
    before = vemgr.traces()
    assert "no such file or directory" in vemgr("start", name, code=21).stderr
    vemgr.assert_traces(before)


def test_a_file_system_that_cannot_shift_ids(vemgr, fresh, source):
    """proc cannot; the start says so and is undone."""
    name = vemgr.create("--mount", "/proc/sys:/a")
    before = vemgr.traces()
    refused = vemgr("start", name, code=7).stderr
    assert "bind source=/proc/sys" in refused and "cannot be mounted with other ids" in refused
    vemgr.assert_traces(before)


def test_nothing_of_the_host_comes_with_it(vemgr, fresh, source):
    """What is mounted below the source stays outside, and what is mounted later, on either side, too."""
    (source / "data/below").mkdir()
    name = vemgr.create("--mount", f"{source}/data:/a")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", f"{source}/data/below"], check=True)
    try:
        (source / "data/below/secret").write_text("")
        vemgr("start", name)
        assert vemgr.out("exec", name, "--", "ls", "/a/below") == ""
        vemgr("exec", name, "--", "mount", "-t", "tmpfs", "none", "/a/below")
        assert os.listdir(source / "data/below") == ["secret"]
    finally:
        subprocess.run(["umount", f"{source}/data/below"], check=True)
    vemgr("stop", name, "--kill")
    assert not [line for line in lines_of("cat", "/proc/self/mountinfo") if str(source) in line]


def test_hostile_targets(vemgr, fresh, source, tmp_path):
    """A VE's root shapes what is mounted on, and what is above it. Nothing is made or mounted outside of the VE."""
    out = outside(tmp_path / "outside")
    before = vemgr.traces()
    with vemgr.client() as client, untouched(out):
        for trick in TRICKS.values():
            for target, place, kind in (("/srv/d", "srv/d", "data"), ("/srv/d/x/y", "srv/d", "data"),
                                        ("/srv/f", "srv/f", "single")):
                start_with(vemgr, client, f"{source}/{kind}:{target}", functools.partial(plant, trick, place, out))
    assert (source / "data/file").read_text() == "of the host\n" and (source / "single").read_text() == "one\n"
    assert sorted(os.listdir(source / "data")) == ["file"]
    vemgr.assert_traces(before)


def plant(trick, place, out, top):
    trick(top / place, out)


def start_with(vemgr, client, mount, shape):
    """A VE whose tree `shape` has shaped starts with the mount in its place, or is refused by that step."""
    name, target = vemgr.new_name(), mount.partition(":")[2]
    client.call("Create", {"name": name, "template": "bb", "settings": {"mount": mount, "network": "none"}})
    (upper(vemgr, name) / "srv").mkdir(parents=True)
    shape(upper(vemgr, name))
    try:
        client.call("Start", {"name": name})
    except RemoteError as error:
        assert f"VE {name} cannot start: bind source=" in str(error)
    else:
        pid = client.call("Show", {"name": name})["pid"]
        assert target in [line.split()[4] for line in lines_of("cat", f"/proc/{pid}/mountinfo")]
    client.call("Destroy", {"name": name, "force": True})


@pytest.mark.parametrize("where", ["last", "middle"])
def test_symlinks_out_are_not_followed(vemgr, fresh, source, tmp_path, where):
    """The classic: the VE replaces what is mounted on by a symlink to a place of the host."""
    (tmp_path / "host").mkdir()
    name = vemgr.create("--mount", f"{source}/data:/srv/a/b")
    top = upper(vemgr, name) / "srv"
    top.mkdir(parents=True)
    if where == "last":
        (top / "a").mkdir()
        (top / "a/b").symlink_to(tmp_path / "host")
    else:
        (top / "a").symlink_to(tmp_path / "host")
    assert "there is a symlink in one of the paths" in vemgr("start", name, code=7).stderr
    assert os.listdir(tmp_path / "host") == []


def test_what_others_put_there_gives_no_rights(vemgr, fresh, source):
    """A set-user-ID program and a device node of the host are dead in the VE."""
    shutil.copy("/bin/busybox", source / "data/busybox")
    os.chmod(source / "data/busybox", 0o4755)
    os.mknod(source / "data/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    name = vemgr.create("--mount", f"{source}/data:/a")
    vemgr("start", name)
    assert "must be suid" in vemgr("exec", "-u", "user", name, "--", "/a/busybox", "passwd", code=None).stderr
    assert vemgr("exec", name, "--", "sh", "-c", "echo x >/a/null", code=None).returncode
