# SPDX-License-Identifier: GPL-2.0-or-later
"""More verbs that are made to fail: on groups, volumes, VEs with disks, mounts or hooks, and VEs from files."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from tests.faults.stage import Stage
from tests.faults.verbs import VE, Scenario, Step, both, calling, create, destroy, kill, nothing, settings, start

GROUP, PARENT, VOLUME, TWIN = "team", "acme", "data", "twin"
_HOOKS = ("pre-start", "post-start", "pre-stop", "post-stop")
_KEEPER = ("daemon", "keeper")
_gone = destroy()


def _stopped(**texts: str) -> Step:
    """A VE that has run once, so that all it needs has been made."""
    return both(create(**texts), start(), kill())


def _mounting(stage: Stage) -> None:
    shared = stage.base / "shared"
    shared.mkdir(exist_ok=True)
    (shared / "file").write_text("of the host")
    stage.call("CreateVolume", name=VOLUME)
    _stopped(mount=f"{shared}:/srv/shared {shared}/file:/etc/single:ro {VOLUME}:/srv/data")(stage)


def _hooked(stage: Stage) -> None:
    _stopped()(stage)
    for name in _HOOKS:
        hook = stage.state / "ve" / VE / "hooks" / name / "a"
        hook.parent.mkdir(parents=True)
        hook.write_text("#!/bin/sh\nexit 0\n")
        hook.chmod(0o755)


def _exported(stage: Stage) -> None:
    _stopped()(stage)
    with _file(stage, "wb") as fds:
        stage.call("Export", fds, name=VE, stream=0, hold=1)


@contextlib.contextmanager
def _file(stage: Stage, mode: str) -> Any:
    ours, theirs = socket.socketpair()
    with ours, theirs, open(stage.base / "exported", mode) as file:
        yield [file.fileno(), theirs.fileno()]


def _import(stage: Stage) -> None:
    with _file(stage, "rb") as fds:
        stage.call("Import", fds, name=TWIN, template="", settings={}, stream=0, hold=1)


_groups = both(calling("CreateGroup", name=PARENT, parent="", settings={}),
               calling("CreateGroup", name=GROUP, parent=PARENT, settings={}))
_no_groups = both(calling("RemoveGroup", name=GROUP), calling("RemoveGroup", name=PARENT))
_one_group = calling("CreateGroup", name=GROUP, parent=PARENT, settings={})
_volume, _no_volume = calling("CreateVolume", name=VOLUME), calling("RemoveVolume", name=VOLUME)
_disk = _stopped(disk="32M", network="none")


def _described(text: str) -> Step:
    return calling("SetGroup", name=GROUP, settings={"description": text})


FEATURES = [
    Scenario("group create", _one_group, calling("RemoveGroup", name=GROUP),
             calling("CreateGroup", name=PARENT, parent="", settings={}), calling("RemoveGroup", name=PARENT)),
    Scenario("group set", _described("other"), _described("none"), both(_groups, _described("none")), _no_groups),
    Scenario("group remove", calling("RemoveGroup", name=GROUP), _one_group, _groups, _no_groups, final=True),
    Scenario("start in a group", start(), kill(), both(_groups, _stopped(group=GROUP)), both(_gone, _no_groups),
             _KEEPER),
    Scenario("volume create", _volume, _no_volume),
    Scenario("volume remove", _no_volume, _volume, _volume, _no_volume, final=True),
    Scenario("start with mounts", start(), kill(), _mounting, both(_gone, _no_volume), _KEEPER),
    Scenario("create with a disk", create(disk="32M", network="none"), destroy(force=False)),
    Scenario("start with a disk", start(), kill(), _disk, _gone, _KEEPER),
    Scenario("set disk, grown", settings(disk="48M"), both(_gone, _disk), _disk, _gone),
    Scenario("destroy with a disk", destroy(force=False), _disk, _disk, _gone, final=True),
    Scenario("start with hooks", start(), kill(), _hooked, _gone, _KEEPER),
    Scenario("start --wait", calling("Start", name=VE, wait=20), kill(), _stopped(), _gone, _KEEPER),
    Scenario("import", _import, destroy(TWIN), _exported, _gone),
    Scenario("set --dry-run", calling("PreviewSet", name=VE, settings={"description": "other"}), nothing,
             both(create(), start()), _gone),
]
