# SPDX-License-Identifier: GPL-2.0-or-later
"""Which verbs are made to fail: what each starts from, how it is called, and how its success is taken back."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import struct
import tarfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.faults.stage import Stage
from tests.kernel.conftest import BUSYBOX, eventually

Step = Callable[[Stage], object]
VE, TEMPLATE = "subject", "imported"
_COMMAND = {"argv": ["echo", "here"], "env": {"A": "b"}, "cwd": "/tmp", "user": "user", "tty": False}


def nothing(_stage: Stage) -> None:
    pass


@dataclass(frozen=True)
class Scenario:
    """`base` makes the state that the verb is called in, from none; `undo` leads back there from the verb's success,
    `clear` to none. `final`: a verb that fails may have done its work all the same, since it cannot be taken back."""

    name: str
    act: Step
    undo: Step
    base: Step = nothing
    clear: Step = nothing
    roles: tuple[str, ...] = ("daemon",)
    final: bool = False
    rules: bool = False
    alone: bool = False  # on a host where no VE has been started yet
    programs: bool = False  # whether the spawner's children are made to fail as well


def create(name: str = VE, template: str = "bb", **settings: str) -> Step:
    return lambda stage: stage.call("Create", name=name, template=template, settings=settings)


def start(name: str = VE) -> Step:
    return lambda stage: stage.call("Start", name=name)


def kill(name: str = VE) -> Step:
    return lambda stage: stage.call("Stop", name=name, kill=True)


def stop(stage: Stage) -> object:
    return stage.call("Stop", name=VE, timeout=20)


def destroy(name: str = VE, force: bool = True) -> Step:
    return lambda stage: stage.call("Destroy", name=name, force=force)


def settings(**values: str) -> Step:
    return lambda stage: stage.call("Set", name=VE, settings=values)


def both(*steps: Step) -> Step:
    def run(stage: Stage) -> None:
        for step in steps:
            step(stage)
    return run


def calling(method: str, **parameters: Any) -> Step:
    return lambda stage: stage.call(method, **parameters)


def execute(stage: Stage) -> None:
    """A command with its output and its status read to the end."""
    _run(stage, "Exec", {"name": VE, "command": _COMMAND})


def run(stage: Stage) -> None:
    _run(stage, "Run", {"name": "ephemeral", "template": "bb", "settings": {},
                        "command": {**_COMMAND, "user": "root"}})


def gone(stage: Stage) -> None:
    """An ephemeral VE goes with its command, in the background."""
    eventually(lambda: "ephemeral" not in [ve["name"] for ve in stage.call("List")["ves"]], "it stays")


def _run(stage: Stage, method: str, parameters: dict[str, Any]) -> None:
    reader, writer = os.pipe()
    try:
        with open(os.devnull, "rb") as null:
            reply = stage.call(method, [null.fileno(), writer, writer], stdio=[0, 1, 2], **parameters)
        os.close(writer)
        writer = -1
        (status,) = reply["descriptors"]
        try:
            assert os.read(reader, 100) == b"here\n"
            assert struct.unpack("=i", os.read(status, 4)) == (0,)
        finally:
            os.close(status)
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)


def execute_on_terminal(stage: Stage) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(20)
        ours.send(struct.pack("4H", 25, 80, 0, 0))
        reply = stage.call("Exec", [theirs.fileno()], stdio=[0], name=VE, command={**_COMMAND, "tty": True})
        (status,) = reply["descriptors"]
        _, (master,), _, _ = socket.recv_fds(ours, 10, 1)
        try:
            said = b""
            while not said.endswith(b"\n"):  # the kernel may give out a line in pieces
                said += os.read(master, 100)
            assert said == b"here\r\n"
            assert struct.unpack("=i", os.read(status, 4)) == (0,)
        finally:
            os.close(status)
            os.close(master)


def _archive() -> bytes:
    text = io.BytesIO()
    with tarfile.open(fileobj=text, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
        for name in ("bin", "etc", "var", "var/empty"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for name, size in (("bin/sh", 3000), ("etc/hosts", 0)):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = size, 0o4755
            archive.addfile(entry, io.BytesIO(bytes([7]) * size))
        with open(BUSYBOX, "rb") as busybox:
            entry = tarfile.TarInfo("bin/true")
            entry.size, entry.mode = os.fstat(busybox.fileno()).st_size, 0o755
            archive.addfile(entry, busybox)
        for name, kind, target in (("etc/link", tarfile.SYMTYPE, "hosts"), ("bin/bash", tarfile.LNKTYPE, "bin/sh")):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, target
            archive.addfile(entry)
        entry = tarfile.TarInfo("var/fifo")
        entry.type = tarfile.FIFOTYPE
        archive.addfile(entry)
    return text.getvalue()


ARCHIVE = _archive()


def feed(writer: int) -> None:
    """More than a pipe holds; whoever reads may stop before the end."""
    with contextlib.suppress(BrokenPipeError), open(writer, "wb") as file:
        file.write(ARCHIVE)


def import_template(stage: Stage) -> None:
    reader, writer = os.pipe()
    feeder = threading.Thread(target=feed, args=(writer,))
    feeder.start()
    try:
        stage.call("ImportTemplate", [reader], name=TEMPLATE, description="a test", archive=0)
    finally:
        os.close(reader)
        feeder.join()



def all_anew(stage: Stage) -> None:
    """As after a shutdown."""
    destroy()(stage)
    stage.call("Shutdown")
    for service in stage.services.values():
        service.wait(20)
    stage.begin()


def push(stage: Stage) -> None:
    """A file of some size, from a pipe, confirmed before it is asked for."""
    ours, theirs = socket.socketpair()
    reader, writer = os.pipe()
    feeder = threading.Thread(target=feed, args=(writer,))
    feeder.start()
    try:
        with ours, theirs:
            ours.send(b"y")
            stage.call("Push", [reader, theirs.fileno()], name=VE, path="/root/pushed", kind="file", stream=0, hold=1)
    finally:
        os.close(reader)
        feeder.join()


def pull(stage: Stage) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, open(os.devnull, "wb") as null:
        stage.call("Pull", [null.fileno(), theirs.fileno()], name=VE, path="/bin", kind="archive", stream=0, hold=1)


def _held(stage: Stage, method: str, **parameters: Any) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stage.call(method, [theirs.fileno()], hold=0, **parameters)


def clone(stage: Stage) -> None:
    _held(stage, "Clone", name=VE, new="twin")


def create_template(stage: Stage) -> None:
    _held(stage, "CreateTemplate", name=TEMPLATE, ve=VE, description="a test")


def export(stage: Stage) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, open(os.devnull, "wb") as null:
        stage.call("Export", [null.fileno(), theirs.fileno()], name=VE, stream=0, hold=1)


def unpush(stage: Stage) -> None:
    _run(stage, "Exec", {"name": VE, "command": {
        **_COMMAND, "user": "root", "argv": ["sh", "-c", "rm /root/pushed && echo here"]}})


KEEPER = ("daemon", "keeper")
ENTERING = (*KEEPER, "helper", "inside")
_running = both(create(), start())
_gone = destroy()

SCENARIOS = [
    Scenario("create", create(description="text"), destroy(force=False)),
    Scenario("create without a network", create(network="none"), destroy(force=False)),
    Scenario("destroy", destroy(force=False), create(), create(), _gone, final=True),
    Scenario("destroy --force", destroy(), _running, _running, _gone, ("daemon", "keeper"), final=True),
    Scenario("set, stopped", settings(description="other"), settings(description="none"),
             create(description="none"), _gone),
    Scenario("set, running", settings(description="other"), settings(description="none"),
             both(create(description="none"), start()), _gone),
    Scenario("set network", settings(network="none"), settings(network="bridge"), create(), _gone),
    Scenario("start, the first", start(), both(_gone, create()), create(), _gone, KEEPER, programs=True),
    Scenario("start, the first of all", start(), both(all_anew, create()), create(), _gone, rules=True, alone=True),
    Scenario("start, a later", start(), kill(), both(_running, kill()), _gone, KEEPER),
    Scenario("start with its own init", start(), kill(), both(create(template="bbinit"), start(), kill()), _gone,
             ("daemon", "keeper"), programs=True),
    Scenario("start without a network", start(), kill(), both(create(network="none"), start(), kill()), _gone,
             ("daemon", "keeper")),
    Scenario("stop", stop, start(), _running, _gone, ("daemon", "keeper"), final=True),
    Scenario("stop --kill", kill(), start(), _running, _gone, ("daemon", "keeper"), final=True),
    Scenario("restart", calling("Restart", name=VE, timeout=20), nothing, _running, _gone, KEEPER, final=True),
    Scenario("suspend", calling("Suspend", name=VE), calling("Resume", name=VE), _running, _gone),
    Scenario("resume", calling("Resume", name=VE), calling("Suspend", name=VE),
             both(_running, calling("Suspend", name=VE)), _gone),
    Scenario("exec", execute, nothing, _running, _gone, ENTERING),
    Scenario("exec -t", execute_on_terminal, nothing, _running, _gone, ENTERING),
    Scenario("clone", clone, destroy("twin"), both(_running, kill()), _gone),
    Scenario("rename", calling("Rename", name=VE, new="twin"), calling("Rename", name="twin", new=VE), create(), _gone),
    Scenario("template create", create_template, calling("RemoveTemplate", name=TEMPLATE), both(_running, kill()),
             _gone),
    Scenario("export", export, nothing, both(_running, kill()), _gone),
    Scenario("push", push, unpush, _running, _gone),
    Scenario("pull", pull, nothing, _running, _gone),
    Scenario("pull, stopped", pull, both(_gone, create()), create(), _gone),
    Scenario("run", run, gone, roles=ENTERING),
    Scenario("template import", import_template, calling("RemoveTemplate", name=TEMPLATE)),
    Scenario("template remove", calling("RemoveTemplate", name=TEMPLATE), import_template, import_template,
             calling("RemoveTemplate", name=TEMPLATE), final=True),
    Scenario("template list", calling("ListTemplates"), nothing),
    Scenario("show", calling("Show", name=VE), nothing, _running, _gone, ("daemon", "keeper")),
    Scenario("start --dry-run", calling("Plan", name=VE), nothing, create(), _gone),
]
