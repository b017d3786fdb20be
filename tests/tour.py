# SPDX-License-Identifier: GPL-2.0-or-later
"""README.md's tour and the man pages' examples, for the tests that follow them: in the kernel ring on any host, in the
system ring with limits."""

import re
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[1]
README = PROJECT / "README.md"
PAGES = sorted((PROJECT / "docs/man").iterdir())
NEEDS_CGROUP_V2 = "# needs cgroup v2"
NOT_ENFORCEABLE = 5  # exit code of vemgr
CONTROLLERS = {"cpu", "memory", "pids"}  # that the tour's limits need


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


def steps():
    """The console blocks of the section "Five minutes"."""
    section = re.search(r"^## Five minutes\n(.*?)^## ", README.read_text(), re.DOTALL | re.MULTILINE)
    assert section
    found = []
    for block in re.findall(r"^```console\n(.*?)^```$", section[1], re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(Step(line.removeprefix("$ "), ""))
            else:
                found[-1].output += f"{line}\n"
    return found


def differs(expected, printed):
    """Whether `printed` is not what README shows: numbers and the widths of columns may differ, "..." is anything."""
    words = [re.sub(r"\d+", r"\\d+", re.escape(word)) for word in expected.split()]
    pattern = r"\s+".join(words).replace(re.escape("..."), r"(?:.*)")
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is None


def follow(types, controllers):
    """Run the tour. `types`: runs a line in a shell and returns its exit code and what it printed."""
    able = set(controllers) >= CONTROLLERS
    for step in steps():
        if step.needs_controllers and not able:
            if step.sets_a_limit:
                assert types(step.command)[0] == NOT_ENFORCEABLE, step.command
            continue
        code, printed = types(step.command)
        assert code == (127 if "cannot run" in step.output else 0), f"$ {step.command}\n{printed}"
        assert not differs(step.output, printed), f"$ {step.command}\n{printed}\nbut README shows:\n{step.output}"


_ROFF = {"\\-": "-", "\\(aq": "'", "\\e": "\\"}
_LIMITS = re.compile(r" --(?:cpus|memory|pids) \S+")


def displays(page):
    """The literal displays of a man page, each as its text."""
    for display in re.findall(r"^\.Bd -literal.*?\n(.*?)^\.Ed$", page.read_text(), re.DOTALL | re.MULTILINE):
        yield re.sub(r"\\(?:-|\(aq|e)", lambda escape: _ROFF[escape[0]], display)


def examples():
    """The command lines in the man pages, and the pages they are of; a display is commands or a file of TOML."""
    return [(page.name, line) for page in PAGES if page.suffix in (".1", ".8") for text in displays(page)
            for line in text.splitlines() if line]


def follow_examples(types, controllers, place):
    """Run them in the order in which they stand. A VE of the same name begins anew with each example that creates it.
    `place`: paths of the examples, as `/srv/files`, and what they are here."""
    able = set(controllers) >= CONTROLLERS
    for page, line in examples():
        command = re.sub("|".join(map(re.escape, place)), lambda path: place[path[0]], line)
        if made := re.match(r"vemgr create (\S+)", command):
            types(f"vemgr destroy --force {made[1]}")
        if _LIMITS.search(command) and not able:
            assert types(command)[0] == NOT_ENFORCEABLE, command
            command = _LIMITS.sub("", command)
        code, printed = types(command)
        assert code == 0, f"{page}: {command}\n{printed}"
