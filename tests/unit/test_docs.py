# SPDX-License-Identifier: GPL-2.0-or-later
"""The documentation says what the code does, as far as that can be compared."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import types
from dataclasses import fields
from pathlib import Path

import click
import pytest

from vemgr.cli.main import cli
from vemgr.core.config import SETTINGS
from vemgr.core.host import HostConfig
from vemgr.core.metrics import MetricsConfig
from vemgr.core.networks import NetworkConfig
from vemgr.core.scheduling import SchedulerConfig
from vemgr.core.uplink import UplinkConfig

PROJECT = Path(__file__).parents[2]
PAGES = sorted((PROJECT / "docs/man").iterdir())
TEXTS = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md")])


def name(path):
    return str(path.relative_to(PROJECT))


def man_page(file):
    """The page as one line of plain words, without roff's escapes."""
    text = (PROJECT / "docs/man" / file).read_text().replace("\\-", "-")
    return re.sub(r"\s+", " ", text)


def make_docs():
    path = PROJECT / "scripts/make-docs"
    module = types.ModuleType("make_docs")
    module.__file__ = str(path)
    exec(compile(path.read_text(), path, "exec"), module.__dict__)
    return module


def test_what_follows_from_the_code_is_fresh():
    done = subprocess.run([sys.executable, PROJECT / "scripts/make-docs", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", ["docs/man/vemgr.1", "SECURITY.md"])
def test_a_stale_part_is_found(file):
    module = make_docs()
    text = (PROJECT / file).read_text()
    for part in module.PARTS[file]:
        line = next(iter(part()))
        stale = text.replace(line, "something else", 1)
        assert stale != text
        assert module.fresh(stale, part) == text


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_man_page_has_no_mistakes(page):
    if shutil.which("groff") is None:
        (pytest.fail if os.environ.get("VEMGR_MUST_WORK") else pytest.skip)("groff is not installed")
    done = subprocess.run(["groff", "-ww", "-mdoc", "-Tutf8", page], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.sub(r"\x1b\[\d+m|.\x08", "", done.stdout).count("SEE ALSO") == 1


def commands(group, prefix=""):
    for verb, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{verb} ")
        else:
            yield f"{prefix}{verb}", command


VERBS = dict(commands(cli))


@pytest.mark.parametrize("verb", VERBS)
def test_the_man_page_has_every_verb_and_option(verb):
    page = man_page("vemgr.1")
    start = re.search(rf"\.It (Xo \.)?Cm {verb}\b", page)
    assert start
    entry = page[start.start():start.end() + 1500]
    known = {setting.option for setting in SETTINGS}
    for parameter in VERBS[verb].params:
        long = [option for option in parameter.opts if option.startswith("--")]
        if isinstance(parameter, click.Option) and long[0] not in known:
            where = page if verb == "run" else entry
            assert f"Fl {long[0].removeprefix('-')}" in where, long[0]


def test_the_man_page_of_the_configuration_has_every_key_and_default():
    page = man_page("vemgr.toml.5")
    keys = [field for field in (*fields(HostConfig), *fields(NetworkConfig), *fields(SchedulerConfig),
                          *fields(MetricsConfig))
            if field.name not in ("networks", "name", "scheduler", "metrics", "uplink")]
    for field in keys:
        default = field.default if isinstance(field.default, int) else f"Qq {field.default}"
        assert f".It Ic {field.name.replace('_', '-')} No = {default} " in page
    uplink = fields(UplinkConfig)
    for field in uplink:  # three of its defaults are words
        assert f".It Ic {field.name.replace('_', '-')} No = " in page
    assert page.count(".It Ic ") == len(keys) + len(uplink)


def test_the_example_of_the_configuration_is_one():
    page = (PROJECT / "docs/man/vemgr.toml.5").read_text().replace("\\-", "-")
    example = re.search(r"^\.Sh EXAMPLES\n\.Bd -literal.*?\n(.*?)^\.Ed$", page, re.DOTALL | re.MULTILINE)[1]
    config = HostConfig.from_mapping(tomllib.loads(example))
    assert {network.name for network in config.networks} >= {"bridge", "lan", "backend"}
    assert config.metrics.listen and config.scheduler.policy == "dense"


@pytest.mark.parametrize("text", TEXTS, ids=name)
def test_links_within_the_project_lead_somewhere(text):
    for target in re.findall(r"\]\(([^)#:]+)\)", text.read_text()):
        assert (text.parent / target).exists(), target


def test_every_dependency_has_its_reason():
    hacking = (PROJECT / "docs/HACKING.md").read_text()
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    for requirement in project["dependencies"] + project["optional-dependencies"]["test"]:
        assert f"- **{re.split(r'[<>=]', requirement)[0]}**" in hacking, requirement


def test_hacking_names_every_package_and_no_file_that_is_not_there():
    hacking = (PROJECT / "docs/HACKING.md").read_text()
    for package in (PROJECT / "vemgr").glob("*/__init__.py"):
        assert f"| `vemgr/{package.parent.name}` |" in hacking
    for file in re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|md|toml|1))`", hacking):
        assert any((PROJECT / folder / file).exists() for folder in ("", "vemgr")), file
