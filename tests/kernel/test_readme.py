# SPDX-License-Identifier: GPL-2.0-or-later
"""README.md's tour: its commands do what it says, and print what it shows."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
NEEDS_CGROUP_V2 = "# needs cgroup v2"
NOT_ENFORCEABLE = 5  # exit code of vemgr
CONTROLLERS = {"cpu", "memory", "pids"}


@dataclass
class Step:
    command: str
    output: str

    @property
    def needs_controllers(self):
        return self.command.endswith(NEEDS_CGROUP_V2)

    @property
    def sets_a_limit(self):
        return self.command.startswith(("sudo vemgr set ", "sudo vemgr create ", "sudo vemgr run "))


def tour_of(text):
    """The console blocks of the section "Five minutes", as steps."""
    section = re.search(r"^## Five minutes\n(.*?)^## ", text, re.DOTALL | re.MULTILINE)
    assert section
    steps = []
    for block in re.findall(r"^```console\n(.*?)^```$", section[1], re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            if line.startswith("$ "):
                steps.append(Step(line.removeprefix("$ "), ""))
            else:
                steps[-1].output += f"{line}\n"
    return steps


def pattern_of(expected):
    """What an output has to match: numbers and the widths of columns may differ, "..." stands for anything."""
    words = [re.sub(r"\d+", r"\\d+", re.escape(word)) for word in expected.split()]
    return r"\s+".join(words).replace(re.escape("..."), r"(?:.*)")


def differing(expected, printed):
    """Whether `printed` is not what README shows."""
    return re.fullmatch(pattern_of(expected), printed.strip(), re.DOTALL) is None


class Reader:
    """Who follows the tour: a shell in which `sudo` and `vemgr` mean an instance of the test's own."""

    def __init__(self, instance, directory):
        self.instance, self.bin = instance, directory
        self.program("sudo", 'exec "$@"')
        self.program("vemgr", f'exec "{sys.executable}" -m vemgr.cli.main "$@"')

    def program(self, name, text):
        (self.bin / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.bin / name).chmod(0o755)

    def types(self, line):
        """The line's exit code and what it prints, with the paths of a usual installation."""
        environment = self.instance.environment(LC_ALL="C")
        environment["PATH"] = f"{self.bin}:{environment['PATH']}"
        done = subprocess.run(
            ["nsenter", f"--net=/run/netns/{self.instance.netns}", "bash", "-c", line], cwd="/", env=environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
        )
        return done.returncode, done.stdout.replace(str(self.instance.state), "/var/lib/vemgr")


@pytest.fixture
def reader(make_instance, tmp_path):
    with make_instance(template=False) as instance:
        yield Reader(instance, tmp_path)


def test_the_tour_works_as_written(reader):
    steps = tour_of((PROJECT / "README.md").read_text())
    assert len(steps) > 10
    code, output = reader.types("vemgr host --json")
    assert code == 0, output
    able = set(json.loads(output)["controllers"]) >= CONTROLLERS
    for step in steps:
        if step.needs_controllers and not able:
            if step.sets_a_limit:
                assert reader.types(step.command)[0] == NOT_ENFORCEABLE, step.command
            continue
        code, output = reader.types(step.command)
        expected = 127 if "cannot run" in step.output else 0
        assert code == expected, f"{step.command}: {output}"
        assert not differing(step.output, output), f"$ {step.command}\n{output}\nbut README shows:\n{step.output}"
    assert reader.types("vemgr list --json") == (0, "[]\n")


def test_what_readme_shows_is_compared():
    assert not differing("web1  running  10.77.0.2", "web1 running   10.71.0.33\n")
    assert not differing("name: a\n...\n", "name: a\nstate: b\nids: c\n")
    assert not differing("", "")
    assert differing("web1  running", "web1  stopped")
    assert differing("", "a warning")
