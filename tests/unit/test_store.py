# SPDX-License-Identifier: GPL-2.0-or-later
"""Definitions on disk. A crash or a full disk at any system call must leave the old definition or the new one."""

import contextlib
import dataclasses
import errno
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vemgr.core.config import Definition, Settings, parse_settings
from vemgr.core.errors import NoSpace, NoSuchVE, SystemFailure, VEExists, VemgrError
from vemgr.core.links import Link
from vemgr.kernel.removal import remove_tree
from vemgr.runtime import store as module
from vemgr.runtime.store import Store

WEB1 = Definition(name="web1", template="bb", id_base=1879048192, created="2024-01-01T00:00:00+00:00",
                  links=(Link(address="10.77.0.2", address6="fd00::2"), Link("lan", "10.50.0.2")),
                  settings=parse_settings({"memory": "512M", "description": 'quoted " and ü'}))
CHANGED = dataclasses.replace(WEB1, settings=parse_settings({"cpus": "1.5"}), started=True)
#: The calls that change something on disk, all of which may fail.
CALLS = ("open", "write", "fsync", "rename", "mkdir")


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "ve"))


def sweep(store):
    """What a daemon does when it starts."""
    left = store.leftovers()
    for path in left:
        store.purge(path)
    return [os.path.basename(path) for path in left]


def tree(store):
    return sorted(os.path.relpath(os.path.join(top, name), store.directory)
                  for top, directories, files in os.walk(store.directory) for name in (*directories, *files))


class Fails:
    """Counts the calls and lets number `at` fail. With `crash` all that follow fail too: the process is dead."""

    def __init__(self, monkeypatch, at, code=errno.EIO, crash=False):
        self.count, self.at, self.code, self.crash = 0, at, code, crash
        for name in CALLS:
            monkeypatch.setattr(module.os, name, self._wrap(name, getattr(os, name)))
        if crash:  # a dead process does not clean up either
            monkeypatch.setattr(module.os, "unlink", self._wrap("unlink", os.unlink))
            monkeypatch.setattr(module, "remove_tree", self._wrap("remove_tree", remove_tree))

    def _wrap(self, name, call):
        def wrapped(*arguments, **options):
            if name in CALLS:
                self.count += 1
            if self.count == self.at or (self.crash and self.count > self.at):
                raise OSError(self.code, os.strerror(self.code), name)
            return call(*arguments, **options)
        return wrapped


def test_create_and_load(store):
    store.create(WEB1)
    assert store.load("web1") == WEB1 and store.names() == ["web1"] and tree(store) == ["web1", "web1/config.toml"]
    for path in (store.path("web1"), f"{store.path('web1')}/config.toml", store.directory):
        assert os.stat(path).st_mode & 0o077 == 0
    with pytest.raises(VEExists):
        store.create(CHANGED)
    assert store.load("web1") == WEB1 and tree(store) == ["web1", "web1/config.toml"]
    with pytest.raises(NoSuchVE):
        store.load("web2")


def test_a_definition_comes_back_where_what_belongs_to_it_fails(store):
    store.create(WEB1)
    path = Path(store.path("web1"), "config.toml")
    path.write_text(f"# mine\n{path.read_text()}")
    before = path.read_text()
    other = dataclasses.replace(WEB1, settings=Settings(description="other"))
    with pytest.raises(NoSpace), store.saved(other):
        assert store.load("web1") == other
        raise NoSpace("none left")
    assert path.read_text() == before
    with store.saved(other):
        pass
    assert store.load("web1") == other and path.read_text().startswith("# mine\n")
    assert os.listdir(path.parent) == ["config.toml"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=40).filter(str.isprintable),
       st.booleans())
def test_any_description_round_trips(tmp_path, text, flag):
    store = Store(str(tmp_path / "any"))
    definition = dataclasses.replace(WEB1, name="any", started=flag, settings=Settings(description=text))
    if "any" not in store.names():
        store.create(definition)
    store.save(definition)
    assert store.load("any") == definition


def test_save_keeps_what_an_administrator_has_written(store):
    store.create(WEB1)
    path = f"{store.path('web1')}/config.toml"
    with open(path) as file:
        text = file.read()
    with open(path, "w") as file:
        file.write("# mine\n" + text.replace("[settings]", "# theirs\n[settings] # limits\n# the boss wants it\n"))
    store.save(CHANGED)
    with open(path) as file:
        after = file.read()
    assert store.load("web1") == CHANGED
    assert "# mine\n" in after and "# limits" in after and "# the boss wants it" in after and "512M" not in after


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("action", ["create", "save"])
def test_each_call_fails_once(store, code, action):
    """The error names the family, and the old state is in force (or the new one, where only the sync failed)."""
    for at in range(1, 40):
        if action == "save" and not store.names():
            store.create(WEB1)
        with pytest.MonkeyPatch.context() as patch:
            failing = Fails(patch, at, code)
            try:
                getattr(store, action)(WEB1 if action == "create" else CHANGED)
                assert failing.count < at, "a failure was swallowed"
                break
            except VemgrError as error:
                assert isinstance(error, NoSpace if code in (errno.ENOSPC, errno.EDQUOT) else SystemFailure)
        if action == "save":
            assert store.load("web1") in (WEB1, CHANGED)
            store.save(WEB1)
            assert tree(store) == ["web1", "web1/config.toml"]
        else:
            assert tree(store) in ([], ["web1", "web1/config.toml"])
            shutil.rmtree(store.path("web1"), ignore_errors=True)
    assert at > 4, "the calls were not counted"


@pytest.mark.parametrize("action", ["create", "save", "remove"])
def test_a_crash_after_each_call(tmp_path, action):
    """Every prefix of the calls leaves the old or the new state once the next daemon has swept."""
    for at in range(1, 40):
        store = Store(str(tmp_path / f"ve{at}"))
        if action != "create":
            store.create(WEB1)
        with pytest.MonkeyPatch.context() as patch:
            failing = Fails(patch, at, crash=True)
            with contextlib.suppress(VemgrError):
                getattr(store, action)({"create": WEB1, "save": CHANGED, "remove": "web1"}[action])
            done = failing.count < at
        again = Store(store.directory)
        sweep(again)
        if again.names():
            assert again.load("web1") in ((WEB1,) if action in ("create", "remove") else (WEB1, CHANGED))
        assert [name for name in tree(again) if name.startswith(".")] == []
        if action == "save":
            again.save(WEB1)  # what the crash has left in the VE's directory is no hindrance
        if done:
            break
    assert at > 2
    assert bool(again.names()) == (action != "remove")


@pytest.mark.parametrize("text", ["", "= x", "format = 1", "format = 2\n[ve]", "format = 1\n[ve]\ntemplate = 'x'",
                                  "format = 1\nve = 5", "\0", "format = 1\n[ve]\ntemplate='x'\nid-base='x'\ncreated=''",
                                  "format=1\n[ve]\ntemplate='x'\nid-base=1\ncreated=''\n[settings]\nmemory='1X'",
                                  "format=1\n[ve]\ntemplate='x'\nid-base=1\ncreated=''\n[settings]\nnonsense='1'",
                                  "format=1\nsettings=3\n[ve]\ntemplate='x'\nid-base=1\ncreated=''",
                                  "format=1\nsettings=3\n[ve]\ntemplate='x'\nid-base=1879048192\ncreated=''",
                                  "format=1\n[ve]\ntemplate='x'\nid-base=inf\ncreated=''", "x = " + "[" * 5000,
                                  "\udcff", "format = " + "9" * 5000])
def test_a_broken_definition_says_where_to_mend_it(store, text):
    os.mkdir(store.path("web1"))
    path = f"{store.path('web1')}/config.toml"
    with open(path, "w", errors="surrogateescape") as file:
        file.write(text)
    assert store.salvage("web1").template == "?"
    with pytest.raises(VemgrError, match="web1") as broken:
        store.load("web1")
    assert broken.value.remedy == f"mend {path}" and broken.value.exit_code == 3
    assert store.names() == ["web1"], "it is left alone"


def test_a_definition_of_the_first_format_can_be_read(store):
    os.mkdir(store.path("web1"))
    with open(f"{store.path('web1')}/config.toml", "w") as file:
        file.write("format = 1\n[ve]\ntemplate = 'bb'\nid-base = 1879048192\ncreated = ''\naddress = '10.77.0.2'\n")
    definition = store.load("web1")
    assert definition.links == (Link(address="10.77.0.2"),)
    store.save(definition)
    assert store.load("web1") == definition
    assert store.salvage("web1").links == definition.links


def test_remove(store):
    store.create(WEB1)
    os.makedirs(f"{store.path('web1')}/data/0/upper/deep/deeper")
    os.symlink("/etc", f"{store.path('web1')}/data/0/upper/link")
    gone = store.remove("web1")
    assert store.names() == [] and sweep(store) == [os.path.basename(gone)]
    assert tree(store) == [] and os.path.exists("/etc/passwd")
    assert store.purge(store.remove("web1")), "deleted by hand, it can be destroyed all the same"
    assert tree(store) == []


def test_sweep(store):
    os.makedirs(f"{store.directory}/.web3.partial/x")
    os.makedirs(f"{store.directory}/.web2.removed/x")
    store.create(WEB1)
    os.makedirs(f"{store.directory}/.snapshot")
    assert sorted(sweep(store)) == [".web2.removed", ".web3.partial"]
    assert store.names() == ["web1"] and sweep(store) == []
    assert os.path.exists(f"{store.directory}/.snapshot"), "not ours"


def test_a_state_directory_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SystemFailure, match="cannot make the state directory"):
        Store(str(tmp_path / "file/ve"))


def test_a_tree_that_is_there_is_left_alone_and_one_that_is_not_right_is_put_right(store, monkeypatch):
    mine = dataclasses.replace(WEB1, id_base=os.getuid())
    store.create(mine)
    upper, chowned = f"{store.path('web1')}/data/0/upper", []
    monkeypatch.setattr(module.os, "chown", lambda path, uid, gid: chowned.append((path, uid, gid)))
    assert store.trees(mine, 1)
    assert chowned.pop() == (upper, mine.id_base, mine.id_base)
    assert not store.trees(mine, 1)
    assert not chowned
    os.chmod(upper, 0o700)
    assert not store.trees(mine, 1)
    assert os.stat(upper).st_mode & 0o777 == 0o755
    assert chowned.pop() == (upper, mine.id_base, mine.id_base)
    os.rmdir(f"{store.path('web1')}/data/0/work")
    store.trees(mine, 1)
    assert os.path.isdir(f"{store.path('web1')}/data/0/work")
    chowned.clear()
    store.trees(dataclasses.replace(mine, id_base=mine.id_base + 65536), 1)
    assert len(chowned) == 1


def test_trees_that_cannot_be_deleted_when_they_are_dropped_go_out_of_sight(store, monkeypatch):
    """Then as what a destroyed VE leaves: with the next that is purged, or with the next daemon."""
    mine = dataclasses.replace(WEB1, id_base=os.getuid())
    store.create(mine)
    store.trees(mine, 1)
    data = f"{store.path('web1')}/data"
    Path(f"{data}/0/upper/etc").mkdir()

    def no_memory(path):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), path)

    with monkeypatch.context() as patched:
        patched.setattr(module.shutil, "rmtree", no_memory)
        gone = store.drop_trees("web1", 1)
    assert not os.path.exists(data)
    assert store.leftovers() == [gone]
    assert store.names() == ["web1"]
    assert store.purge(gone)
    store.trees(mine, 1)
    assert store.drop_trees("web1", 1) == ""
    assert not os.path.exists(data)
    assert not store.leftovers()
