# SPDX-License-Identifier: GPL-2.0-or-later
"""`vemgr compare`: a real comparison of host and VE, killed in the middle and taken up again."""

import os
import signal
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.chance import seed
from tests.kernel.conftest import ROOT, eventually
from vemgr.compare import schema

WORKS = ("syscall", "start", "request", "between")
OPTIONS = ("--driver", "host", "--driver", "ve", "--noise", "100", "--template", "bb",
           *(word for work in WORKS for word in ("--workload", work)))


@pytest.fixture
def output():
    with tempfile.TemporaryDirectory(prefix="compare-", dir="/var/tmp") as directory:
        yield Path(directory) / "result"


def processes_with(text):
    found = []
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            found += [int(entry)] * (text.encode() in Path(f"/proc/{entry}/cmdline").read_bytes())
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def lines_in(output):
    path = output / "samples.jsonl"
    return path.read_bytes().splitlines() if path.exists() else []


def test_a_killed_comparison_is_taken_up_again(fresh, output):
    before = {ve["name"] for ve in fresh.json("list")}
    options = (*OPTIONS, "--repeat", "3", "--output", str(output))
    process = fresh.popen("compare", *options)
    eventually(lambda: process.poll() is not None or len(lines_in(output)) > 8, lambda: lines_in(output), timeout=120)
    process.send_signal(signal.SIGKILL)
    said = process.communicate()
    kept = lines_in(output)
    assert process.returncode == -signal.SIGKILL, said

    refused = fresh("compare", "run", *options, code=21)
    assert "not empty" in refused.stderr and "--resume" in refused.stderr

    done = fresh("compare", "run", "--resume", "--output", str(output), timeout=120)
    assert {ve["name"] for ve in fresh.json("list")} == before
    assert processes_with("/var/tmp/vemgr-compare/probe") == []
    assert lines_in(output)[:len(kept) - 1] == kept[:-1]

    report = schema.decode((output / "report.json").read_bytes(), "report")
    assert report.complete
    assert [column.why for column in report.header.columns] == ["", ""]
    for figure in ("syscall", "request.median", "request.p99", "between.median", "between.stream"):
        for driver in ("host", "ve"):
            found = report.values(figure, driver)
            assert len(found) == 3 and min(found) > 0, (figure, driver, done.stdout)
    assert len(report.values("start.first", "ve")) == len(report.values("start.stop", "ve")) == 3
    assert "the host is not an instance" in report.why_absent("start", "host")
    assert "system call" in done.stdout and "left" in done.stdout
    HTMLParser().feed((output / "report.html").read_text())

    assert fresh("compare", "diff", str(output), str(output / "report.json")).stdout.startswith("15 figures: 0 worse")
    assert fresh("compare", "report", str(output)).stdout == (output / "report.txt").read_text()


def test_an_update_by_a_new_template_leaves_none(fresh, output):
    before = {template["name"] for template in fresh.json("template", "list")}
    fresh("compare", "--template", "bb", "--driver", "ve", "--workload", "update", "--repeat", "1", "--noise", "100",
          "--output", str(output), timeout=120)
    report = schema.decode((output / "report.json").read_bytes(), "report")
    assert report.values("update.kernels", "ve") == report.values("update.systems", "ve") == [1.0]
    size = (Path("/bin/busybox").stat().st_size >> 20) * 0.9
    assert report.values("update.each-disk", "ve")[0] > 4 * size and report.values("update.shared-disk", "ve")[0] > size
    assert report.values("update.each", "ve")[0] > 0 < report.values("update.shared", "ve")[0]
    assert {template["name"] for template in fresh.json("template", "list")} == before


def test_nothing_stays_of_a_run_that_is_killed_at_any_moment(can_run_ves):
    """Two moments of one work in one column, by chance; `python -m tests.kills` has all of them."""
    works = ("start", "between", "fsync", "density")
    done = subprocess.run(
        [sys.executable, "-m", "tests.kills", "--sample", "1", "--points", "2", "--seed", str(seed("kills")),
         "--driver", "ve", "--driver", "host", "--driver", "lxc", "--driver", "runc",
         *(word for work in works for word in ("--workload", work))],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=280)
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize(("options", "code", "words"), [
    (("--driver", "vmware"), 21, ("vmware", "kvm", "host, ve")),
    (("--workload", "quake"), 21, ("quake", "syscall, ")),
    (("--template", "gone"), 91, ("gone",)),
    (("--template", "host"), 21, ("guest",)),
    (("--memory", "1M"), 21, ("--memory",)),
    (("--resume",), 20, ("--output",)),
], ids=lambda value: " ".join(value) if isinstance(value, tuple) and value[0].startswith("--") else None)
def test_what_cannot_be_done_is_refused_at_once(fresh, output, options, code, words):
    given = options if "--resume" in options else (*options, "--output", str(output))
    refused = fresh("compare", *given, code=code)
    assert all(word in refused.stderr for word in words if word != "kvm"), refused.stderr
    assert not output.exists()


def test_several_templates_want_a_choice(fresh, output):
    refused = fresh("compare", "--output", str(output), code=29)
    assert "bb" in refused.stderr and "--template" in refused.stderr
