# SPDX-License-Identifier: GPL-2.0-or-later
"""The power goes at any moment: what was promised is there, and what was not is there as a whole or not at all."""

import dataclasses
import errno
import io
import json
import os
import tarfile

import pytest

from tests.unit.power_cut import Data, Names, Recorder, crashes, files_of, lay_out
from vemgr.core.config import Definition, parse_settings
from vemgr.core.errors import SystemFailure, TemplateNotFound
from vemgr.core.groups import Group, parse_group_settings
from vemgr.core.links import Link
from vemgr.kernel import durable
from vemgr.runtime.group_store import GroupStore
from vemgr.runtime.store import Store
from vemgr.templates.store import Templates

WEB1 = Definition(name="web1", template="bb", id_base=1879048192, created="2024-01-01T00:00:00+00:00",
                  links=(Link(address="10.77.0.2"),), settings=parse_settings({"memory": "512M"}))
WEB2 = dataclasses.replace(WEB1, name="web2", id_base=WEB1.id_base + 65536, links=(Link(address="10.77.0.3"),))
CHANGED = dataclasses.replace(WEB1, settings=parse_settings({"cpus": "1.5"}), started=True)


@pytest.fixture
def disk(tmp_path):
    """The directory that is the whole disk."""
    root = tmp_path / "disk"
    root.mkdir()
    return root


@pytest.fixture
def record(disk, monkeypatch, tmp_path):
    """record(ACTION): do it, and yield whether it had returned, and the directory, for each state after a power cut."""
    def cuts(action):
        recorder = Recorder(disk)
        with recorder.recording(monkeypatch):
            action()
        assert recorder.calls, "nothing was recorded"
        for made, state in crashes(recorder):
            after = tmp_path / "after"
            lay_out(state, after, files_of(recorder))
            yield made == len(recorder.calls), after
    return cuts


def restart(after):
    """What a daemon does when it comes up: {name: definition}."""
    store = Store(str(after / "ve"))
    for name in store.names():
        store.tidy(name)
    found = {name: store.load(name) for name in store.names()}
    for path in store.leftovers():
        store.purge(path)
    assert all(not name.startswith(".") for name in os.listdir(store.directory))
    for name in found:
        assert os.listdir(store.path(name)) == ["config.toml"]
    return found


def test_the_first_create(disk, record):
    """With the directories above it: a VE that was created is not lost because they were."""
    states = []
    for returned, after in record(lambda: Store(str(disk / "ve")).create(WEB1)):
        states.append(restart(after))
        assert states[-1] in ({}, {"web1": WEB1}) and (not returned or states[-1])
    assert {} in states and {"web1": WEB1} in states
    assert len(states) > 20


@pytest.mark.parametrize("action, before, ends", [
    (lambda store: store.create(WEB2), [WEB1], [{"web1": WEB1}, {"web1": WEB1, "web2": WEB2}]),
    (lambda store: store.save(CHANGED), [WEB1, WEB2], [{"web1": WEB1, "web2": WEB2}, {"web1": CHANGED, "web2": WEB2}]),
    (lambda store: store.remove("web1"), [WEB1, WEB2], [{"web1": WEB1, "web2": WEB2}, {"web2": WEB2}]),
    (lambda store: store.purge(store.remove("web1")), [WEB1, WEB2], [{"web1": WEB1, "web2": WEB2}, {"web2": WEB2}]),
    (lambda store: [store.save(CHANGED), store.save(WEB1), store.save(CHANGED)], [WEB1],
     [{"web1": WEB1}, {"web1": CHANGED}]),
], ids=["create", "save", "remove", "destroy", "saves"])
def test_a_change(disk, record, action, before, ends):
    store = Store(str(disk / "ve"))
    for definition in before:
        store.create(definition)
    states = []
    for returned, after in record(lambda: action(store)):
        states.append(restart(after))
        assert states[-1] in ends and (not returned or states[-1] == ends[-1])
        for definition in states[-1].values():
            Store(str(after / "ve")).save(definition)  # what is left is no hindrance
    assert all(end in states for end in ends)


def test_a_save_after_a_cut_in_a_save(disk, record):
    """A file that was half-written is overwritten, not continued."""
    store = Store(str(disk / "ve"))
    store.create(WEB1)
    (disk / "ve/web1/config.toml.new").write_text("x" * 4000)
    for returned, after in record(lambda: store.save(CHANGED)):
        found = restart(after)
        assert found == {"web1": CHANGED} or (not returned and found == {"web1": WEB1})


def archive():
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name in ("bin", "usr"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        entry = tarfile.TarInfo("bin/sh")
        entry.size = 5000
        tar.addfile(entry, io.BytesIO(b"s" * 5000))
    data.seek(0)
    return data


def templates(after):
    """What the next daemon finds: {name: content of its only file}, all of which is right."""
    store = Templates(after / "templates")
    store.sweep()
    found = {}
    for template in store.list():
        with open(after / f"templates/{template.name}/rootfs/bin/sh", "rb") as file:
            found[template.name] = file.read()
    if (after / "templates").exists():
        assert sorted(os.listdir(after / "templates")) == sorted(found), "a template that cannot be used"
    return found


SMALL, LARGE = (Group("acme", "", parse_group_settings({"cpus": cpus})) for cpus in ("1", "2"))


@pytest.mark.parametrize("action, before, ends", [
    (lambda store: store.save(SMALL), [], [[], [SMALL]]),
    (lambda store: store.save(LARGE), [SMALL], [[SMALL], [LARGE]]),
    (lambda store: store.remove("acme"), [SMALL], [[SMALL], []]),
], ids=["create", "save", "remove"])
def test_a_group(disk, record, action, before, ends):
    def store(root):
        return GroupStore(str(root / "group"))

    for group in before:
        store(disk).save(group)
    seen = []
    for returned, after in record(lambda: action(store(disk))):
        seen.append(store(after).load())
        assert seen[-1] in ends and (not returned or seen[-1] == ends[-1])
        assert not [name for name in files_below(after) if name.endswith(".new")]
    assert all(end in seen for end in ends)


def files_below(directory):
    return [name for _, _, names in os.walk(directory) for name in names]


def test_a_group_whose_removal_fails_is_there(tmp_path, monkeypatch):
    store = GroupStore(str(tmp_path))
    store.save(SMALL)

    def broken(_fd):
        monkeypatch.undo()
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(SystemFailure, match="cannot remove group acme"):
        store.remove("acme")
    assert store.load() == [SMALL]


def test_an_import(disk, record):
    whole = {"t": b"s" * 5000}
    states = []
    for returned, after in record(
            lambda: Templates(disk / "templates").import_archive("t", archive(), description="")):
        states.append(templates(after))
        assert states[-1] in ({}, whole) and (not returned or states[-1] == whole)
    assert {} in states and whole in states


def test_removing_a_template(disk, record):
    """One that is half deleted is not found by its name."""
    store = Templates(disk / "templates")
    store.import_archive("t", archive(), description="")
    states = []
    for returned, after in record(lambda: store.remove("t", [])):
        states.append(templates(after))
        assert states[-1] in ({}, {"t": b"s" * 5000}) and not (returned and states[-1])
    assert {} in states and {"t": b"s" * 5000} in states


def test_a_file_of_the_daemon(disk, record):
    """The subnet, once chosen, is chosen for good: VEs have its addresses."""
    path = disk / "network.json"
    path.write_text(json.dumps({"subnet": "10.77.0.0/16"}))
    for returned, after in record(lambda: durable.replace_file(str(path), json.dumps({"subnet": "10.78.0.0/16"}))):
        subnet = json.loads((after / "network.json").read_text())["subnet"]
        assert subnet == "10.78.0.0/16" or (not returned and subnet == "10.77.0.0/16")


def test_what_is_left_of_a_replacement(tmp_path):
    for name in ("a.new", "a", "new", "b.new.toml"):
        (tmp_path / name).touch()
    (tmp_path / "c.new").mkdir()
    durable.remove_unfinished(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["a", "b.new.toml", "c.new", "new"]


def test_directories(disk, record):
    for returned, after in record(lambda: durable.make_directories(str(disk / "a/b/c"))):
        assert not returned or (after / "a/b/c").is_dir()
    assert os.stat(disk / "a").st_mode & 0o777 == 0o700
    durable.make_directories(str(disk / "a/b"))


# The model itself


def test_the_model_finds_a_missing_fsync(disk, record):
    """The mistakes of the field: a rename without fsync of the file, and without fsync of the directory."""
    path = disk / "config"
    path.write_text("old")

    def careless():
        fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.write(fd, b"new")
        os.close(fd)
        os.rename(f"{path}.new", path)

    found = {(returned, (after / "config").read_bytes()) for returned, after in record(careless)}
    assert {(True, b"old"), (True, b"new"), (True, b""), (True, b"n\0\0")} <= found


def test_the_model_knows_what_is_certain(disk, record):
    def careful():
        fd = os.open(disk / "x", os.O_WRONLY | os.O_CREAT, 0o600)
        os.write(fd, b"text")
        os.fsync(fd)
        os.close(fd)
        fd = os.open(disk, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)

    cuts = [(returned, sorted(os.listdir(after))) for returned, after in record(careful)]
    assert (True, []) not in cuts and (False, []) in cuts and (True, ["x"]) in cuts
    assert Data(1, b"x") != Names(())


def test_a_template_that_is_missing_a_part_is_not_found(tmp_path):
    (tmp_path / "templates/t").mkdir(parents=True)
    with pytest.raises(TemplateNotFound):
        Templates(tmp_path / "templates").show("t")
