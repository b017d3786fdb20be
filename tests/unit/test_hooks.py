# SPDX-License-Identifier: GPL-2.0-or-later
"""Which programs are hooks, what they are told, and how their failures are told."""

import asyncio
import os
import time
from pathlib import Path

import pytest

from vemgr.core.config import Definition
from vemgr.core.errors import HookFailed
from vemgr.core.links import Link
from vemgr.runtime.hooks import Hooks, Stage
from vemgr.runtime.store import Store

WEB1 = Definition(name="web1", template="bb", id_base=1 << 20, created="now", links=(Link(address="10.77.0.2"),))


class World:
    def __init__(self, directory):
        self.common, self.own = directory / "hooks", directory / "ve/web1/hooks"
        self.log = directory / "log"
        self.hooks = Hooks(str(self.common), 1, Store(str(directory / "ve")))

    def add(self, directory, name, script, mode=0o755):
        path = directory / "pre-start" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(mode)
        if os.getuid() == 0:
            os.chown(path, 0, 0)
        return path

    def run(self, **facts):
        asyncio.run(self.hooks.run(Stage.PRE_START, WEB1, **facts))

    def fails(self):
        with pytest.raises(HookFailed) as failure:
            self.run()
        return failure.value


@pytest.fixture
def world(tmp_path, monkeypatch):
    real = os.stat

    def as_root(path, **options):  # so that the ring runs for other users too
        found = real(path, **options)
        return os.stat_result((*found[:4], 0, *found[5:])) if "pre-start" in str(path) else found

    monkeypatch.setattr("vemgr.runtime.hooks.os.stat", as_root)
    return World(tmp_path)


def test_without_any(world):
    world.run()


def test_order_and_environment(world):
    told = " ".join(f"$VEMGR_{key}" for key in ("HOOK", "VE", "TEMPLATE", "ADDRESS", "ID_BASE", "PID"))
    note = f'echo "$0 {told} $PWD" >> {world.log}'
    world.add(world.own, "1", note)
    for name in ("20-b.sh", "10-a", "backup~", ".hidden", "x.dpkg-old"):
        world.add(world.common, name, note)
    world.add(world.common, "no-program", note, 0o644)
    (world.common / "pre-start/directory").mkdir()
    world.run(pid="7")
    lines = [line.split() for line in world.log.read_text().splitlines()]
    assert [line[0].rpartition("/")[2] for line in lines] == ["10-a", "20-b.sh", "1"]
    assert {tuple(line[1:]) for line in lines} == {("pre-start", "web1", "bb", "10.77.0.2", str(1 << 20), "7", "/")}


def test_a_failure_says_what_the_hook_has_said(world):
    path = world.add(world.common, "a", "echo the disk; echo is not there >&2; exit 3")
    world.add(world.common, "b", f"touch {world.log}")
    assert world.fails().message == f"hook {path} of VE web1 ended with 3: the disk is not there"
    assert not world.log.exists()
    asyncio.run(world.hooks.try_(Stage.PRE_START, WEB1))
    assert world.log.exists(), "the others run all the same where nothing may be held up"


def test_a_hook_that_does_not_end_is_killed_with_its_children(world):
    world.add(world.common, "a", f"sleep 100 & echo $! > {world.log}; wait")
    began = time.monotonic()
    assert "has not ended within 1 s, and was killed" in world.fails().message
    assert time.monotonic() - began < 20
    child = int(world.log.read_text())
    while is_alive(child):
        assert time.monotonic() - began < 20
        time.sleep(0.01)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_daemon_that_a_hook_leaves_holds_nothing_up(world):
    world.add(world.common, "a", f"setsid sleep 5 & echo $! > {world.log}")
    began = time.monotonic()
    world.run()
    assert time.monotonic() - began < 4
    os.kill(int(world.log.read_text()), 9)


@pytest.mark.parametrize(("script", "mode", "why"), [
    ("exit 0", 0o777, "others than root may write it"),
    ("kill -9 $$", 0o755, "was killed by signal 9"),
])
def test_refusals(world, script, mode, why):
    world.add(world.common, "a", script, mode)
    assert why in world.fails().message


def test_no_interpreter(world):
    world.add(world.common, "a", "").write_text("#!/no/such/interpreter\n")
    assert "cannot be run: No such file or directory" in world.fails().message
