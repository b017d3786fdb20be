# SPDX-License-Identifier: GPL-2.0-or-later
"""The shell scripts and systemd units, as far as they can be checked without running them."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
LIBRARY = PROJECT / "scripts/lib.sh"
LIBRARIES = sorted(PROJECT.glob("scripts/*.sh"))
PROGRAMS = sorted({*filter(Path.is_file, PROJECT.glob("scripts/*")), PROJECT / ".ci/run"} - {*LIBRARIES})
SHELL = [path for path in [*PROGRAMS, *LIBRARIES] if path in LIBRARIES or "bash" in path.read_text().partition("\n")[0]]
UNITS = sorted(PROJECT.glob("systemd/*"))


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        (pytest.fail if os.environ.get("VEMGR_MUST_WORK") else pytest.skip)(f"{name} is not installed")
    return found


def name(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("path", SHELL, ids=name)
def test_shellcheck_has_nothing_to_say(path):
    done = subprocess.run([tool("shellcheck"), "--external-sources", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", SHELL, ids=name)
def test_a_shell_script_stops_at_the_first_error(path):
    assert path in LIBRARIES or "\nset -euo pipefail\n" in path.read_text()


@pytest.mark.parametrize("path", PROGRAMS, ids=name)
def test_a_program_can_be_executed(path):
    assert os.access(path, os.X_OK)


@pytest.mark.parametrize("path", [*PROGRAMS, *LIBRARIES, *UNITS], ids=name)
def test_the_licence_is_named(path):
    assert "# SPDX-License-Identifier: GPL-2.0-or-later" in path.read_text().splitlines()[:2]


@pytest.fixture
def units(tmp_path):
    """The units, with commands that exist here in place of those that quickstart installs."""
    for path in UNITS:
        text = re.sub(r"^(Exec\w+=)/opt/vemgr/bin/[\w-]+", r"\1/bin/true", path.read_text(), flags=re.MULTILINE)
        (tmp_path / path.name).write_text(text)
    return sorted(tmp_path.iterdir())


def test_systemd_accepts_the_units(units):
    command = [tool("systemd-analyze"), "verify", "--man=no", "--generators=no", *units]
    done = subprocess.run(command, capture_output=True, text=True)
    # What other units of this machine may be accused of is not our business.
    assert [line for line in done.stderr.splitlines() if "vemgr" in line] == []


def test_quickstart_installs_every_unit():
    listed = re.search(r"units=\((.*?)\)", LIBRARY.read_text(), re.DOTALL)
    assert listed
    assert sorted(listed[1].split()) == [path.name for path in UNITS]


def test_quickstart_installs_every_man_page():
    listed = re.search(r"manual=\((.*?)\)", LIBRARY.read_text())
    assert listed
    assert sorted(listed[1].split()) == sorted(path.name for path in PROJECT.glob("docs/man/*"))


def test_quickstart_installs_and_uninstall_removes_completions(tmp_path):
    """In a place of its own, by a program that says what it was asked for."""
    program = tmp_path / "bin/vemgr"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$_VEMGR_COMPLETE"\n')
    program.chmod(0o755)
    library = LIBRARY.read_text().replace("/usr/local/share", f"{tmp_path}/share")
    install, remove = ((PROJECT / "scripts" / name).read_text() for name in ("quickstart", "uninstall"))
    install = re.search(r"^install_completions\(\) \{.*?^\}", install, re.DOTALL | re.MULTILINE)[0]
    remove = re.search(r'    for file in "\$\{completions.*?^    done', remove, re.DOTALL | re.MULTILINE)[0]
    begin = f"set -euo pipefail\n{library}\nprefix={tmp_path}\n"
    subprocess.run(["bash", "-c", f"{begin}{install}\ninstall_completions"], check=True)
    written = {path.relative_to(tmp_path / "share"): path.read_text().strip()
               for path in (tmp_path / "share").rglob("*") if path.is_file()}
    assert sorted(written.values()) == ["bash_source", "fish_source", "zsh_source"]
    subprocess.run(["bash", "-c", f"{begin}{remove}"], check=True)
    assert list((tmp_path / "share").rglob("*")) == []


def directives(unit: str) -> list[str]:
    return (PROJECT / "systemd" / unit).read_text().splitlines()


def test_a_running_ve_survives_the_daemon():
    """Nothing that stops or restarts the daemon may reach keeper or VEs."""
    for unit in ("vemgr-keeper.service", "vemgr-ves.service"):
        for line in directives(unit):
            assert not (line.startswith(("Requires=", "BindsTo=", "PartOf=")) and "vemgr.service" in line), unit


def test_one_ve_out_of_memory_does_not_end_all():
    assert "OOMPolicy=continue" in directives("vemgr-keeper.service")
