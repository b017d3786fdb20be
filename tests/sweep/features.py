# SPDX-License-Identifier: GPL-2.0-or-later
"""More of what is swept: verbs on groups and volumes, VEs with disks, mounts and hooks of their own, and VEs in files.

CI takes a few of these by chance each time (`tests.kernel.test_sweep`).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

from tests.sweep.stage import Stage
from tests.sweep.verbs import SUBJECT, Step, Verb, both, ensure

GROUP, PARENT, VOLUME, TWIN = "team", "acme", "data", "twin"
_HOOKS = ("pre-start", "post-start", "pre-stop", "post-stop")
_BOTH, _ALL = ("daemon", "keeper"), ("daemon", "keeper", "child")
_ABSENT, _NO_TWIN = ensure(SUBJECT, "absent"), ensure(TWIN, "absent")


def _of(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, **more}


def _group(name: str, there: bool, parent: str = "") -> Step:
    def step(stage: Stage) -> None:
        now = any(group["name"] == name for group in stage.call("ListGroups")["groups"])
        if there and not now:
            stage.call("CreateGroup", name=name, parent=parent, settings={})
        if now and not there:
            stage.call("RemoveGroup", name=name)
    return step


def _volume(there: bool) -> Step:
    def step(stage: Stage) -> None:
        now = any(volume["name"] == VOLUME for volume in stage.call("ListVolumes")["volumes"])
        if there and not now:
            stage.call("CreateVolume", name=VOLUME)
        if now and not there:
            stage.call("RemoveVolume", name=VOLUME)
    return step


def _made(state: str, settings: Callable[[Stage], dict[str, str]]) -> Step:
    """The subject with settings that depend on the stage."""
    return lambda stage: ensure(SUBJECT, state, **settings(stage))(stage)


def _mounts(stage: Stage) -> dict[str, str]:
    """A directory and a file of the host, and a volume."""
    shared = f"{stage.base}/shared"
    os.makedirs(shared, exist_ok=True)
    with open(f"{shared}/file", "w", encoding="ascii") as file:
        file.write("of the host")
    return {"mount": f"{shared}:/srv/shared {shared}/file:/etc/single:ro {VOLUME}:/srv/data"}


def _hooked(stage: Stage) -> None:
    for hook in _HOOKS:
        directory = f"{stage.state}/ve/{SUBJECT}/hooks/{hook}"
        os.makedirs(directory, exist_ok=True)
        with open(f"{directory}/a", "w", encoding="ascii") as file:
            file.write("#!/bin/sh\nexit 0\n")
        os.chmod(f"{directory}/a", 0o755)


def _exported(stage: Stage) -> None:
    """A file that a VE can be made of."""
    if os.path.exists(f"{stage.base}/exported"):
        return
    ours, theirs = socket.socketpair()
    with ours, theirs, open(f"{stage.base}/exported", "wb") as file:
        stage.call("Export", [file.fileno(), theirs.fileno()], name=SUBJECT, stream=0, hold=1)


def _to_file(_stage: Stage) -> Iterator[list[int]]:
    ours, theirs = socket.socketpair()
    with ours, theirs, open(os.devnull, "wb") as file:
        yield [file.fileno(), theirs.fileno()]


def _from_file(stage: Stage) -> Iterator[list[int]]:
    ours, theirs = socket.socketpair()
    with ours, theirs, open(f"{stage.base}/exported", "rb") as file:
        yield [file.fileno(), theirs.fileno()]


def _held(_stage: Stage) -> Iterator[list[int]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield [theirs.fileno()]


_GROUPS = both(_group(PARENT, True), _group(GROUP, True, PARENT))
_IN_GROUP = {state: both(_GROUPS, ensure(SUBJECT, state, group=GROUP)) for state in ("stopped", "running")}
_WITH_DISK = {state: ensure(SUBJECT, state, disk="32M", network="none") for state in ("stopped", "running")}
_STOPPED = ensure(SUBJECT, "stopped")
_MOUNTING = both(_volume(True), _made("stopped", _mounts))
_EXPORT = _of(SUBJECT, stream=0, hold=1)

FEATURES = {verb.name: verb for verb in (
    Verb("group-create", both(_group(PARENT, True), _group(GROUP, False)),
         ("CreateGroup", _of(GROUP, parent=PARENT, settings={"description": "new"}))),
    Verb("group-set", both(_GROUPS, lambda stage: stage.call("SetGroup", name=GROUP, settings={"description": ""})),
         ("SetGroup", _of(GROUP, settings={"description": "another"}))),
    Verb("group-remove", _GROUPS, ("RemoveGroup", _of(GROUP))),
    Verb("group-start", _IN_GROUP["stopped"], ("Start", _of(SUBJECT)),
         targets=_ALL),
    Verb("group-stop", _IN_GROUP["running"], ("Stop", _of(SUBJECT, kill=True)), targets=_BOTH),
    Verb("volume-create", _volume(False), ("CreateVolume", _of(VOLUME))),
    Verb("volume-remove", _volume(True), ("RemoveVolume", _of(VOLUME))),
    Verb("mount-start", _MOUNTING, ("Start", _of(SUBJECT)), targets=_ALL),
    Verb("disk-create", _ABSENT, ("Create", _of(SUBJECT, template="bb", settings={"disk": "32M"}))),
    Verb("disk-start", _WITH_DISK["stopped"], ("Start", _of(SUBJECT)), targets=_ALL),
    Verb("disk-stop", _WITH_DISK["running"], ("Stop", _of(SUBJECT, kill=True)), targets=_BOTH),
    Verb("disk-grow", both(_ABSENT, _WITH_DISK["stopped"]), ("Set", _of(SUBJECT, settings={"disk": "48M"}))),
    Verb("disk-destroy", both(_WITH_DISK["running"], _WITH_DISK["stopped"]), ("Destroy", _of(SUBJECT, force=False))),
    Verb("disk-clone", both(_NO_TWIN, _WITH_DISK["stopped"]), ("Clone", _of(SUBJECT, new=TWIN, hold=0)), stdio=_held),
    Verb("hooked-start", both(_STOPPED, _hooked), ("Start", _of(SUBJECT)), targets=_ALL),
    Verb("hooked-stop", both(_STOPPED, _hooked, ensure(SUBJECT, "running")), ("Stop", _of(SUBJECT, timeout=20)),
         targets=_BOTH),
    Verb("start-wait", _STOPPED, ("Start", _of(SUBJECT, wait=20)), targets=_BOTH),
    Verb("set-preview", ensure(SUBJECT, "running"), ("PreviewSet", _of(SUBJECT, settings={"description": "another"}))),
    Verb("export", _STOPPED, ("Export", _EXPORT), stdio=_to_file),
    Verb("import", both(_NO_TWIN, _STOPPED, _exported),
         ("Import", _of(TWIN, template="", settings={}, stream=0, hold=1)), stdio=_from_file),
)}
