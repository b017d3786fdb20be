# SPDX-License-Identifier: GPL-2.0-or-later
"""Bind mounts as text and as values, and which sources are refused."""

import dataclasses
import os

import pytest

from tests.unit.test_plan import DEBIAN, WEB1, plan_of
from vemgr.core.binds import MOST_BINDS, BindMount, parse_binds, show_binds
from vemgr.core.config import Settings, parse_settings, show_settings
from vemgr.core.errors import BadValue, VolumeNotFound
from vemgr.core.plan import Bind, Network, Plan, WriteFile
from vemgr.runtime.binding import bind_operations
from vemgr.runtime.planning import make_plan
from vemgr.runtime.volumes import Volumes


@pytest.mark.parametrize(("text", "found"), [
    ("/srv/a:/a", [BindMount("/srv/a", "/a")]),
    ("/srv/a/:/a/:ro", [BindMount("/srv/a", "/a", read_only=True)]),
    ("/c:/x/y /b:/x-y /a:/x", [BindMount("/a", "/x"), BindMount("/c", "/x/y"), BindMount("/b", "/x-y")]),
    ("data:/a b-1:/b:ro", [BindMount("data", "/a"), BindMount("b-1", "/b", read_only=True)]),
    ("/a:/process", [BindMount("/a", "/process")]), ("/a:/run/a", [BindMount("/a", "/run/a")]),
    ("none", []), ("", []),
])
def test_what_is_read_is_shown_again(text, found):
    binds = parse_binds("mount", text)
    assert list(binds) == found
    assert parse_binds("mount", show_binds(binds)) == binds
    assert parse_settings(show_settings(Settings(mount=binds))).mount == binds


@pytest.mark.parametrize("text", [
    "/a", "/a:b", "/a:/b:rw", "/a:/b:ro:ro", ":/b", "/a:", "/:/b", "/a:/", "/a/../b:/c", "/a:/b/../c",
    "/a//b:/c", "/./a:/c", "/a:/proc", "/a:/proc/sys", "/a:/sys/fs", "/a:/dev/x", "none /a:/b", "/a:/b /c:/b",
    "a:b", "A:/b", "a/c:/b", ".:/b", "..:/b", "-a:/b",
    "/\u200ba:/b", "/a:/" + 1024 * "b", "/\udcff:/b", " ".join(f"/a:/{number}" for number in range(MOST_BINDS + 1)),
])
def test_refused(text):
    with pytest.raises(BadValue):
        parse_binds("mount", text)


@pytest.fixture
def tree(tmp_path):
    base = tmp_path.resolve()
    for name in ("state/ve/x", "data/deep"):
        (base / name).mkdir(parents=True)
    (base / "file").write_text("")
    (base / "link").symlink_to("data")
    os.mkfifo(base / "fifo")
    return base


def operations(tree, source, target="/a"):
    return bind_operations((BindMount(str(source), target),), (f"{tree}/state", "/proc/self"),
                           Volumes(f"{tree}/state/volumes"))


def test_sources(tree):
    assert operations(tree, tree / "data/deep") == (Bind(f"{tree}/data/deep", "a", directory=True),)
    assert operations(tree, tree / "file", "/a/b") == (Bind(f"{tree}/file", "a/b", directory=False),)


@pytest.mark.parametrize(("name", "why"), [
    ("missing", "no such file"), ("file/x", "not a directory"), ("fifo", "neither"), ("link", "a symlink is in it"),
    ("link/deep", "a symlink is in it"), ("state", "vemgr's own"), ("state/ve", "vemgr's own"),
    ("state/ve/x", "vemgr's own"), ("", "vemgr's own"),
])
def test_sources_refused(tree, name, why):
    with pytest.raises(BadValue, match=why) as refused:
        operations(tree, str(tree / name))
    assert refused.value.facts["field"] == "mount"


def test_volumes_are_below_the_state_directory_and_not_refused_for_it(tree):
    with pytest.raises(VolumeNotFound):
        operations(tree, "data")
    (tree / "state/volumes/data").mkdir(parents=True)
    assert operations(tree, "data") == (Bind(f"{tree}/state/volumes/data", "a", directory=True),)
    (tree / "state/volumes/link").symlink_to(tree / "data")
    with pytest.raises(VolumeNotFound):
        operations(tree, "link")


def test_a_symlinked_state_directory_is_found(tree):
    (tree / "state-link").symlink_to("state")
    with pytest.raises(BadValue, match="vemgr's own"):
        bind_operations((BindMount(f"{tree}/state/ve", "/a"),), (f"{tree}/state-link",), Volumes("/nowhere"))


def test_the_plan_mounts_after_all_files_are_written():
    """Otherwise host name and hosts would be written to a directory of the host that is mounted on /etc."""
    binds = (Bind("/srv/etc", "etc"),)
    definition = dataclasses.replace(WEB1, settings=Settings(mount=(BindMount("/srv/etc", "/etc"),)))
    plan = make_plan(definition, DEBIAN, data="/d", stage="/s", resolv_conf="nameserver 10.77.0.1\n", binds=binds)
    kinds = [type(operation) for operation in plan.operations]
    assert kinds[-2:] == [Bind, Network]
    assert WriteFile not in kinds[kinds.index(Bind):]
    assert "bind source=/srv/etc target=etc directory=True read_only=False" in plan.describe()
    assert Plan.from_json(plan.to_json()) == plan
    assert not [operation for operation in plan_of().operations if isinstance(operation, Bind)]
