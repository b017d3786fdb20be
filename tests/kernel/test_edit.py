# SPDX-License-Identifier: GPL-2.0-or-later
"""edit: what an editor does to the text, and what comes of it."""

import shutil

import pytest

from tests.kernel.conftest import Terminal


@pytest.fixture
def editor(tmp_path):
    """Makes an editor of a shell command, in which "$1" is the file."""
    def make(command):
        path = tmp_path / "editor"
        path.write_text(f"#!/bin/sh\n{command}\n")
        path.chmod(0o755)
        return {"VISUAL": str(path)}
    return make


def settings(vemgr, name):
    return vemgr.show(name)["settings"]


def test_changes(vemgr, ve, editor):
    before = settings(vemgr, ve)
    assert "nothing has changed" in vemgr("edit", ve, env=editor("true")).stderr
    assert settings(vemgr, ve) == before
    lines = r'description = "a \\"word\\""\nstop-timeout = 7\non-boot = true\n'
    vemgr("edit", ve, env=editor(f"""printf '{lines}' >> "$1" """))
    after = settings(vemgr, ve)
    assert after == {**before, "description": 'a "word"', "stop-timeout": "7", "on-boot": "yes"}
    assert "nothing has changed" in vemgr("edit", ve, env=editor("true")).stderr, "it reads what it has written"
    # As many editors do: a new file in the place of the old one. What is left out is the default again.
    vemgr("edit", ve, env=editor("""sed /stop-timeout/d "$1" > "$1.new" && mv "$1.new" "$1" """), code=None)
    assert settings(vemgr, ve)["stop-timeout"] == "30"
    vemgr("start", ve)
    done = vemgr("edit", ve, env=editor("""echo 'hostname = "other"' >> "$1" """))
    assert "at the next start: hostname" in done.stderr


@pytest.mark.parametrize(("command", "code", "why"), [
    ("echo 'a b' >> \"$1\"", 21, "at line "),
    ("printf 'nothing = 1\\n' > \"$1\"", 20, "line 1: unknown setting: nothing"),
    ("printf '\\n\\nstop-timeout = \"x\"\\npids = \"9\"\\n' > \"$1\"", 21, "line 3: bad value 'x' for stop-timeout"),
    ("printf 'description = \"y\"\\npids = [1]\\n' > \"$1\"", 21, "line 2: bad value '[1]' for pids"),
    ("printf 'address = \"10.0.0.1\"\\nnetwork = \"none\"\\n' > \"$1\"", 21, "no address"), ("exit 3", 3, "code 3"),
])
def test_errors(vemgr, ve, editor, command, code, why):
    before = settings(vemgr, ve)
    assert why in vemgr("edit", ve, env=editor(command), code=code).stderr
    assert settings(vemgr, ve) == before


def test_once_more(vemgr, ve, editor, tmp_path):
    """On a terminal, an error leads back to the text as it was left."""
    script = f"""if [ -e {tmp_path}/second ]; then sed -i s/wrong/33/ "$1"; else
        touch {tmp_path}/second; echo 'stop-timeout = "wrong"' >> "$1"; fi"""
    terminal = Terminal(vemgr, command=["env", f"VISUAL={editor(script)['VISUAL']}", *vemgr.command("edit", ve)])
    try:
        terminal.expect("bad value 'wrong' for stop-timeout")
        terminal.expect("Edit again?")
        terminal.type("y\n")
        assert terminal.wait() == 0
    finally:
        terminal.close()
    assert settings(vemgr, ve)["stop-timeout"] == "33"


def test_profiles(vemgr, fresh):
    directory = vemgr.base / "profiles"
    directory.mkdir()
    try:
        (directory / "slow.toml").write_text('stop-timeout = 60\ndescription = "slow"\n')
        (directory / "early.toml").write_text('boot-priority = 7\ndescription = "early"\n')
        name = vemgr.create("--profile", "slow", "--profile", "early", "--stop-timeout", "9")
        found = vemgr.show(name)["settings"]
        assert [found[key] for key in ("stop-timeout", "boot-priority", "description", "profile")] == [
            "9", "7", "early", "slow early"]
        (directory / "slow.toml").write_text("stop-timeout = 70\n")
        vemgr("set", name, "--description", "changed")
        assert vemgr.show(name)["settings"]["stop-timeout"] == "9", "values are copied"
        vemgr("set", name, "--profile", "slow")
        found = vemgr.show(name)["settings"]
        assert (found["stop-timeout"], found["description"], found["profile"]) == ("70", "changed", "slow")
        assert "there are: early, slow" in vemgr("set", name, "--profile", "fast", code=21).stderr
        assert "stop-timeout" in vemgr.out("profile", "show", "slow")
        assert [each["name"] for each in vemgr.json("profile", "list")] == ["early", "slow"]
    finally:
        shutil.rmtree(directory)
