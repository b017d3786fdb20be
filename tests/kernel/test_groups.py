# SPDX-License-Identifier: GPL-2.0-or-later
"""Groups of VEs on this host's kernel, whichever controllers it has: where cgroups are, what is told and refused."""

import os
import signal

import pytest

from tests.kernel.conftest import eventually, is_alive


@pytest.fixture
def grouped(fresh):
    """The instance, with group `team` in group `acme`, and group `other`."""
    fresh("group", "create", "acme", "--description", "a tenant")
    fresh("group", "create", "team", "--parent", "acme")
    fresh("group", "create", "other")
    yield fresh
    names = [ve["name"] for ve in fresh.json("list") if ve["group"]]
    if names:
        fresh("destroy", "--force", *names)
    for name in ("team", "acme", "other"):
        fresh("group", "remove", name)


def place(vemgr, name):
    """Where the cgroup of a VE is that runs, below those of all VEs."""
    cgroup = vemgr.show(name)["cgroup"]
    with open(f"/proc/{vemgr.show(name)['pid']}/cgroup", encoding="ascii") as file:
        assert next(line for line in file if line.startswith("0::")).strip().endswith(cgroup.partition("/ve/")[2])
    return cgroup.partition("/ve/")[2]


def test_a_ve_lives_in_its_group(grouped):
    before = grouped.traces()
    name = grouped.create("--group", "team")
    grouped("start", name)
    assert place(grouped, name) == f"_acme/_team/{name}"
    assert grouped.out("exec", name, "--", "cat", "/proc/self/cgroup").endswith("0::/\n"), "its own root, as without"
    assert grouped.json("stats", name)[0]["counters"][0]["held"] > 0
    grouped("suspend", name)
    with open(f"{grouped.show(name)['cgroup']}/cgroup.events", encoding="ascii") as file:
        assert "frozen 1" in file.read()
    grouped("resume", name)
    explained = grouped.json("scheduler", "explain", name)
    assert explained["group"] == "team"
    assert {"../cpu.max", "../../cpu.max"} <= {knob["file"] for knob in explained["knobs"]}
    assert f"{name}: running in group team" in grouped.out("scheduler", "explain", name)
    found = grouped.json("group", "show", "team")
    assert (found["parent"], found["ves"], found["running"]) == ("acme", [name], [name])
    assert found["usage"]["cpu_usec"] > 0
    assert grouped.json("doctor")[0] and "left by something" not in grouped.out("doctor", code=None)
    grouped("destroy", "--force", name)
    grouped.assert_traces(before)


def test_groups_are_told(grouped):
    name = grouped.create("--group", "other")
    table = [line.split() for line in grouped.out("group", "list").splitlines()]
    assert table[0][:4] == ["NAME", "PARENT", "VES", "RUNNING"]
    assert [row[:4] for row in table[1:]] == [["acme", "-", "-", "-"], ["other", "-", "1", "-"],
                                              ["team", "acme", "-", "-"]]
    assert "GROUP" in grouped.out("list") and grouped.show(name)["settings"]["group"] == "other"
    assert "a tenant" in grouped.out("group", "show", "acme")
    grouped("group", "set", "acme", "--description", "another line")
    grouped.kill(grouped.daemon_pid())
    assert grouped.json("group", "show", "acme")["settings"]["description"] == "another line"
    assert grouped.json("group", "show", "team")["parent"] == "acme"


def test_a_ve_that_runs_stays_in_its_group_until_it_starts_again(grouped):
    name = grouped.create("--group", "team")
    grouped("start", name)
    assert "at the next start: group" in grouped("set", name, "--group", "other").stderr
    assert place(grouped, name) == f"_acme/_team/{name}"
    assert (grouped.show(name)["settings"]["group"], grouped.show(name)["inForce"]["group"]) == ("other", "team")
    grouped.kill(grouped.daemon_pid())
    assert grouped.show(name)["inForce"]["group"] == "team", "the next daemon looks where it is"
    for used in ("team", "other"):
        assert name in grouped("group", "remove", used, code=9).stderr
    grouped("restart", "--timeout", "0", name)
    assert place(grouped, name) == f"_other/{name}"
    assert not os.path.exists(f"{grouped.cgroup}/ve/_acme")
    grouped("set", name, "--group", "none")
    grouped("restart", "--timeout", "0", name)
    assert place(grouped, name) == name and not os.path.exists(f"{grouped.cgroup}/ve/_other")


def test_what_ends_while_no_daemon_runs_is_cleaned(grouped):
    before = grouped.traces()
    names = [grouped.create("--group", group) for group in ("team", "other")]
    grouped("start", *names)
    pids = [grouped.show(name)["pid"] for name in names]
    grouped.kill(grouped.daemon_pid())
    os.kill(pids[0], signal.SIGKILL)
    eventually(lambda: not is_alive(pids[0]), "an init that was killed", timeout=30)
    os.makedirs(f"{grouped.cgroup}/ve/_empty/_left")
    eventually(lambda: grouped.state_of(names[0]) == "stopped", "seen by the next daemon", timeout=30)
    assert place(grouped, names[1]) == f"_other/{names[1]}"
    eventually(lambda: [entry for entry in os.listdir(f"{grouped.cgroup}/ve") if entry.startswith("_")] == ["_other"],
               grouped.cgroups, timeout=30)
    assert grouped("exec", names[1], "--", "true")
    grouped("destroy", "--force", *names)
    grouped.assert_traces(before)


def test_refusals(grouped):
    name = grouped.new_name()
    assert "no such group: missing" in grouped("create", name, "--template", "bb", "--group", "missing", code=14).stderr
    grouped("create", name, "--template", "bb", "--group", "../x", code=21)
    grouped("create", name, "--template", "bb")
    grouped("set", name, "--group", "missing", code=14)
    for words, code in (
            (("create", "acme"), 44), (("create", "x", "--parent", "missing"), 14), (("create", "_x"), 21),
            (("remove", "acme"), 9), (("remove", "missing"), 14), (("show", "missing"), 14), (("set", "acme"), 20),
            (("set", "missing", "--description", "x"), 14), (("set", "acme", "--cpus", "much"), 21)):
        grouped("group", *words, code=code)
    grouped("scheduler", "plan", "--cpus", "1", "--group", "missing", code=14)
    if "memory" not in grouped.json("host")["controllers"]:
        assert "no memory controller" in grouped("group", "set", "acme", "--memory", "1G", code=5).stderr
        assert grouped.json("group", "show", "acme")["settings"]["memory"] == "unlimited"
    # A definition by hand may name what is not there: the VE does not start, and nothing is left of the try.
    path = grouped.state / "ve" / name / "config.toml"
    before = grouped.traces()
    text = path.read_text()
    path.write_text(f'{text}\n[settings]\ngroup = "missing"\n' if "[settings]" not in text
                    else text.replace("[settings]", '[settings]\ngroup = "missing"'))
    assert "no such group: missing" in grouped("start", name, code=14).stderr
    grouped.assert_traces(before)
    path.write_text(text)


def test_what_is_copied_keeps_its_group_and_what_comes_from_elsewhere_does_not(grouped, tmp_path):
    name = grouped.create("--group", "team")
    grouped("clone", name, "twin")
    assert grouped.show("twin")["settings"]["group"] == "team"
    grouped("export", name, str(tmp_path / "ve.tar"))
    assert "group = 'team'" in grouped("import", str(tmp_path / "ve.tar"), "--name", "plain").stderr
    assert grouped.show("plain")["settings"]["group"] == "none"
    grouped("import", str(tmp_path / "ve.tar"), "--name", "known", "--trusted")
    assert grouped.show("known")["settings"]["group"] == "team"
    (grouped.base / "profiles").mkdir(exist_ok=True)
    profile = grouped.base / "profiles/tenant.toml"
    profile.write_text('group = "other"\n')
    try:
        assert grouped.show(grouped.create("--profile", "tenant"))["settings"]["group"] == "other"
    finally:
        profile.unlink()
