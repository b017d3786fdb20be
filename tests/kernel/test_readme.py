# SPDX-License-Identifier: GPL-2.0-or-later
"""README.md's tour: its commands do what it says, and print what it shows."""

import json
import os
import re
import shutil
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


class Instance:
    """vemgr apart from the machine's own: directories, network namespace, bridge, table and cgroup of its own."""

    def __init__(self, directory):
        self.directory = directory
        self.netns = f"vemgr-tour-{os.getpid()}"
        name = f"vetour{os.getpid() % 10**6}"
        settings = {"state-dir": f"{directory}/state", "run-dir": f"{directory}/run", "bridge": name, "table": name,
                    "cgroup": name}
        (directory / "vemgr.toml").write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in settings.items()))
        (directory / "bin").mkdir()
        self.program("sudo", 'exec "$@"')
        self.program("vemgr", f'exec "{sys.executable}" -m vemgr.cli.main "$@"')
        subprocess.run(["ip", "netns", "add", self.netns], check=True, timeout=20)
        self.shell("ip link set lo up")

    def program(self, name, text):
        path = self.directory / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def shell(self, command):
        """Run a line as README's reader would; exit code and output, with the paths of a usual installation."""
        # Not `ip netns exec`: it mounts another /sys, without the cgroup tree.
        done = subprocess.run(
            ["nsenter", f"--net=/run/netns/{self.netns}", "bash", "-c", command], cwd="/", text=True, timeout=120,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={"PATH": f"{self.directory}/bin:{os.environ['PATH']}", "PYTHONPATH": str(PROJECT), "LC_ALL": "C",
                 "VEMGR_CONFIG": f"{self.directory}/vemgr.toml"},
        )
        return done.returncode, done.stdout.replace(f"{self.directory}/state", "/var/lib/vemgr")

    def close(self):
        try:
            code, output = self.shell("vemgr shutdown --timeout 1")
            assert code == 0, output
        finally:
            subprocess.run(["ip", "netns", "del", self.netns], timeout=20)


def probe():
    """Why no VE can be made here, "" if one can: a network namespace with a bridge, and mounts, are what it takes."""
    if shutil.which("ip") is None or shutil.which("nsenter") is None:
        return "iproute2 and util-linux are not installed"
    command = ["unshare", "--net", "--mount", "ip", "link", "add", "probe", "type", "bridge"]
    return "" if subprocess.run(command, capture_output=True, timeout=20).returncode == 0 else "no namespaces here"


@pytest.fixture
def instance(tmp_path_factory):
    why = probe()
    if why:
        (pytest.fail if os.environ.get("VEMGR_MUST_WORK") else pytest.skip)(why)
    instance = Instance(tmp_path_factory.mktemp("tour"))
    yield instance
    instance.close()


def test_the_tour_works_as_written(instance):
    steps = tour_of((PROJECT / "README.md").read_text())
    assert len(steps) > 10
    code, output = instance.shell("vemgr host --json")
    assert code == 0, output
    able = set(json.loads(output)["controllers"]) >= CONTROLLERS
    for step in steps:
        if step.needs_controllers and not able:
            if step.sets_a_limit:
                assert instance.shell(step.command)[0] == NOT_ENFORCEABLE, step.command
            continue
        code, output = instance.shell(step.command)
        expected = 127 if "cannot run" in step.output else 0
        assert code == expected, f"{step.command}: {output}"
        assert not differing(step.output, output), f"$ {step.command}\n{output}\nbut README shows:\n{step.output}"
    assert instance.shell("vemgr list --json") == (0, "[]\n")


def test_what_readme_shows_is_compared():
    assert not differing("web1  running  10.77.0.2", "web1 running   10.71.0.33\n")
    assert not differing("name: a\n...\n", "name: a\nstate: b\nids: c\n")
    assert not differing("", "")
    assert differing("web1  running", "web1  stopped")
    assert differing("", "a warning")
