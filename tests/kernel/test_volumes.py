# SPDX-License-Identifier: GPL-2.0-or-later
"""Volumes: kept by vemgr, mounted by VEs, outliving them."""

import os
import stat

import pytest

from tests.kernel.conftest import eventually
from vemgr.api.client import RemoteError


@pytest.fixture
def volume(vemgr):
    vemgr("volume", "create", "data")
    yield "data"
    if left := named(vemgr, "data"):
        if left["users"]:
            vemgr("destroy", "--force", *left["users"])
        vemgr("volume", "remove", "data")


def inside(vemgr, name, script, code=0):
    return vemgr("exec", name, "--", "sh", "-c", script, code=code).stdout


def named(vemgr, name):
    return next((volume for volume in vemgr.json("volume", "list") if volume["name"] == name), None)


def test_it_outlives_a_ve_and_has_the_right_owners_in_the_next(vemgr, fresh, volume):
    before = vemgr.traces()
    first, second = (fresh.create("--mount", "data:/srv/data") for _ in range(2))
    vemgr("start", first)
    inside(vemgr, first, "echo kept >/srv/data/file && chown 1000:44 /srv/data/file && chmod 640 /srv/data/file")
    vemgr("destroy", "--force", first)
    assert named(vemgr, "data")["users"] == [second]
    vemgr("start", second)
    assert inside(vemgr, second, "stat -c '%u %g %a' /srv/data/file; cat /srv/data/file") == "1000 44 640\nkept\n"
    inside(vemgr, second, "rm /srv/data/file")
    vemgr("destroy", "--force", second)
    vemgr.assert_traces(before)


def test_several_have_it_at_once_and_one_only_for_reading(vemgr, fresh, volume):
    writer, reader = fresh.create("--mount", "data:/data"), fresh.create("--mount", "data:/data:ro")
    vemgr("start", writer, reader)
    inside(vemgr, writer, "echo seen >/data/file")
    assert inside(vemgr, reader, "cat /data/file; echo more >>/data/file || cat /data/file") == "seen\nseen\n"


def test_it_is_not_removed_while_a_ve_has_it(vemgr, fresh, volume):
    name = fresh.create("--mount", "data:/data")
    vemgr("start", name)
    assert f"in use by {name}" in vemgr("volume", "remove", "data", code=9).stderr
    vemgr("set", name, "--mount", "none")  # at the next start
    assert named(vemgr, "data")["users"] == []
    assert f"in use by {name}" in vemgr("volume", "remove", "data", code=9).stderr
    inside(vemgr, name, "touch /data/file")
    vemgr("stop", "--kill", name)
    vemgr("volume", "remove", "data")
    assert named(vemgr, "data") is None
    eventually(lambda: os.listdir(vemgr.state / "volumes") == [], "its files stay")


def test_a_volume_that_is_not_there(vemgr, fresh):
    before = vemgr.traces()
    assert "volume gone not found" in vemgr("create", "x", "--template", "bb", "--mount", "gone:/data", code=92).stderr
    name = fresh.create()
    vemgr("set", name, "--mount", "gone:/data", code=92)
    for verb in (["remove"], ["show"], ["set", "--size", "1G"]):
        vemgr("volume", *verb, "gone", code=92)
    vemgr("volume", "create", "gone")
    vemgr("set", name, "--mount", "gone:/data")
    os.rmdir(vemgr.state / "volumes/gone")  # by hand
    vemgr("start", name, code=92)
    vemgr("destroy", name)
    vemgr.assert_traces(before)


def test_names_and_limits_that_are_none(vemgr):
    with vemgr.client() as client:
        for name in ("", ".", "..", "../x", "a/b", ".hidden", "A", "x" * 64, "-x", "ä", "a\nb"):
            for method in ("CreateVolume", "RemoveVolume", "ShowVolume"):
                with pytest.raises(RemoteError, match="for name"):
                    client.call(method, {"name": name})
        for limit in ({"size": "1K"}, {"size": "-1"}, {"size": "much"}, {"inodes": "0"}):
            with pytest.raises(RemoteError, match=f"for {next(iter(limit))}"):
                client.call("CreateVolume", {"name": "odd", **limit})
    assert named(vemgr, "odd") is None and not (vemgr.state / "x").exists()


def test_a_size_where_nothing_counts_is_refused(vemgr, volume):
    """/var/tmp has no project quotas, or nobody would have to be told; tests/system/test_quota.py has the others."""
    if named(vemgr, "data")["used"] is not None:
        assert vemgr("volume", "set", "data", "--size", "1G").returncode == 0
        return
    assert "no project quotas" in vemgr("volume", "create", "sized", "--size", "1G", code=5).stderr
    assert "quotas" in vemgr("volume", "set", "data", "--size", "1G", code=5).stderr
    assert named(vemgr, "sized") is None


def test_it_is_there_once(vemgr, volume):
    assert "exists already" in vemgr("volume", "create", "data", code=44).stderr


def test_nobody_else_of_the_host_reaches_it_and_nothing_is_followed_out_of_it(vemgr, fresh, volume, tmp_path):
    """A VE's root makes programs of the host's root in it, for whoever could run them."""
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim/file").touch()
    name = fresh.create("--mount", "data:/data")
    vemgr("start", name)
    inside(vemgr, name, f"cp /bin/busybox /data/su && chmod 4755 /data/su && ln -s {tmp_path}/victim /data/out && "
                        f"mkdir -p /data/deep/deeper && ln -s {tmp_path}/victim/file /data/deep/deeper/file && "
                        "chmod 777 /data && mkfifo /data/fifo")
    assert stat.S_IMODE(os.stat(vemgr.state / "volumes").st_mode) == 0o700
    vemgr("destroy", "--force", name)
    vemgr("volume", "remove", "data")
    eventually(lambda: os.listdir(vemgr.state / "volumes") == [], "its files stay")
    assert (tmp_path / "victim/file").exists()


def test_it_is_kept_by_a_clone_and_a_rename(vemgr, fresh, volume):
    name = fresh.create("--mount", "data:/data")
    vemgr("clone", name, "copy")
    try:
        vemgr("rename", name, "other")
        assert named(vemgr, "data")["users"] == ["copy", "other"]
        vemgr("destroy", "other")
    finally:
        vemgr("destroy", "--force", "copy")


def test_what_was_interrupted_is_cleaned_by_the_next_daemon(make_instance):
    with make_instance() as vemgr:
        vemgr("volume", "create", "data")
        vemgr.kill(vemgr.daemon_pid())
        for left in (".data.0123abcd.partial", ".old.0123abcd.removed", ".somebody-elses"):
            (vemgr.state / "volumes" / left / "deep").mkdir(parents=True)
        assert [volume["name"] for volume in vemgr.json("volume", "list")] == ["data"]
        eventually(lambda: sorted(os.listdir(vemgr.state / "volumes")) == [".somebody-elses", "data"], "leftovers stay")
