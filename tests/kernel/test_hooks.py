# SPDX-License-Identifier: GPL-2.0-or-later
"""Hooks at the turns of a VE's life, and what their failures do to it."""

import os
import shutil

import pytest

from tests.kernel.conftest import eventually

STAGES = ("pre-start", "post-start", "pre-stop", "post-stop")


@pytest.fixture
def stage(fresh, tmp_path):
    """`add` a hook, `said` is what hooks have written to the log."""
    class Hooked:
        log = tmp_path / "log"
        name = fresh.create()

        def add(self, hook, script, *, of=None):
            directory = (fresh.state / "ve" / of / "hooks" if of else fresh.base / "hooks") / hook
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "a").write_text(f"#!/bin/sh\n{script}\n")
            (directory / "a").chmod(0o755)

        def note_all(self):
            for hook in STAGES:
                self.add(hook, f'echo "$VEMGR_HOOK ${{VEMGR_PID:-}}$VEMGR_ENDED" >> {self.log}')

        def said(self):
            lines = self.log.read_text().splitlines() if self.log.exists() else []
            self.log.unlink(missing_ok=True)
            return lines

    yield Hooked()
    shutil.rmtree(fresh.base / "hooks", ignore_errors=True)  # other tests have this vemgr too


def test_every_turn(fresh, stage):
    stage.note_all()
    fresh("start", stage.name)
    pid = fresh.show(stage.name)["pid"]
    assert stage.said() == ["pre-start ", f"post-start {pid}"]
    fresh("stop", stage.name)
    assert stage.said() == [f"pre-stop {pid}", "post-stop exited with 0"]
    fresh("start", stage.name)
    fresh("stop", "--kill", stage.name)
    assert [line.split()[0] for line in stage.said()] == ["pre-start", "post-start", "post-stop"]
    fresh("start", stage.name)
    os.kill(fresh.show(stage.name)["pid"], 9)
    eventually(lambda: stage.log.read_text().count("\n") == 3, "no post-stop")
    assert stage.said()[2] == "post-stop killed by signal 9"


def test_a_start_that_a_hook_refuses(fresh, stage):
    fresh("start", stage.name)
    fresh("stop", stage.name)
    before = fresh.traces()
    stage.add("pre-start", "echo not on Sundays; exit 1", of=stage.name)
    failed = fresh("start", stage.name, code=79)
    assert f"of VE {stage.name} ended with 1: not on Sundays" in failed.stderr
    stage.add("pre-start", "exit 0", of=stage.name)
    stage.add("post-start", f"kill -0 $VEMGR_PID && echo $VEMGR_PID > {stage.log}; exit 2", of=stage.name)
    fresh("start", stage.name, code=79)
    assert fresh.state_of(stage.name) == "stopped" and not os.path.exists(f"/proc/{int(stage.said()[0])}")
    hooks = fresh.state / "ve" / stage.name / "hooks"
    for hook in ("pre-start", "post-start"):
        (hooks / hook / "a").unlink()
        (hooks / hook).rmdir()
    hooks.rmdir()
    fresh.assert_traces(before)


def test_no_hook_holds_up_a_stop(fresh, stage):
    for hook in ("pre-stop", "post-stop"):
        stage.add(hook, "sleep 100")
    fresh("start", stage.name)
    assert fresh.out("stop", stage.name) == f"{stage.name}: clean\n"  # a second for each, then they are killed
    log = (fresh.run / "daemon.log").read_text()
    assert log.count("has not ended within 1 s, and was killed; goes on all the same") == 2


def test_a_daemon_that_dies_in_a_hook(fresh, stage):
    stage.add("post-start", f"touch {stage.log}; sleep 0.8")
    starting = fresh.popen("start", stage.name)
    eventually(stage.log.exists, "the hook does not run")
    fresh.kill(fresh.daemon_pid())
    assert starting.wait(20) == 3
    starting.communicate()
    assert fresh.state_of(stage.name) == "running"
