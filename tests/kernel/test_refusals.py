# SPDX-License-Identifier: GPL-2.0-or-later
"""What is refused, with which exit code and which words, and that nothing is left of it."""

import shutil
import subprocess

import pytest

from vemgr.api.client import RemoteError
from vemgr.core.config import SETTINGS

GOOD = {"cpus": "1", "cpu-burst": "50ms", "cpu-guarantee": "0.1", "cpu-weight": "200", "cpu-mask": "0", "memory": "64M",
        "memory-guarantee": "16M", "swap": "0", "pids": "50",
        "io-weight": "200", "io-read": "1M/s", "io-write": "1M/s", "iops-read": "100", "iops-write": "100"}
_NEEDED = {"swap": ("--memory", "64M"), "cpu-burst": ("--cpus", "1")}


@pytest.fixture
def unchanged(vemgr):
    """The test must leave the list of VEs and the state directory as they were."""
    before = vemgr.json("list"), vemgr.files()
    yield vemgr
    assert (vemgr.json("list"), vemgr.files()) == before


@pytest.mark.parametrize("name", [
    "a/b", "../x", "a.b", ".", "", "A", "a b", "a_b", "x" * 64, "é", "a\n", "-a", "a-", "a\u0661",
])
def test_bad_names(unchanged, name):
    assert "bad value" in unchanged("create", "--template", "bb", "--", name, code=21).stderr
    with unchanged.client() as client:
        for method in ("Start", "Stop", "Restart", "Suspend", "Resume", "Show", "Plan", "Destroy"):
            with pytest.raises(RemoteError) as refused:
                client.call(method, {"name": name})
            assert refused.value.code == 21


def test_the_longest_name(fresh):
    name = "x" * 63
    fresh("create", name, "--template", "bb")
    fresh("start", name)
    assert fresh.out("exec", name, "--", "hostname") == f"{name}\n"


@pytest.mark.parametrize(("option", "value"), [
    ("memory", "1X"), ("memory", "1M"), ("memory", "-5M"), ("memory", ""), ("memory", "9999999T"), ("cpus", "0"),
    ("cpus", "nan"), ("cpus", "1e3"), ("cpus", "99999999"), ("cpu-weight", "0"), ("cpu-weight", "10001"),
    ("cpu-mask", "3-1"), ("cpu-mask", "a"), ("pids", "0"), ("pids", "1.5"), ("io-weight", "0"), ("io-read", "10"),
    ("iops-write", "-1"), ("network", "tap"), ("hostname", "-x"), ("hostname", "a..b"), ("hostname", "x" * 65),
    ("init", "'"), ("on-boot", "maybe"), ("stop-timeout", "1h"), ("description", "two\nlines"), ("swap", "64M"),
    ("address", "10.0.0"), ("address", "10.0.0.256"), ("address", "::1"), ("address", "x"),
])
def test_bad_values(unchanged, option, value):
    with unchanged.client() as client, pytest.raises(RemoteError) as refused:
        client.call("Create", {"name": "refused", "template": "bb", "settings": {option: value}})
    assert (refused.value.identifier, refused.value.code) == ("BadValue", 21)
    assert f"for {option}" in str(refused.value) and refused.value.facts["field"] == option


def test_a_bad_value_on_the_command_line(unchanged):
    answer = unchanged("create", "refused", "--template", "bb", "--memory", "1X", code=21)
    assert answer.stderr == ("vemgr: bad value '1X' for memory: not a size; write a number with K, M, G or T, "
                             "or 'unlimited'\n")


def test_addresses_nobody_may_have(unchanged, running):
    subnet = unchanged.json("host")["subnet"]
    prefix = subnet.split("/")[0].rpartition(".")[0]
    for address in (f"{prefix}.0", f"{prefix}.1", "192.0.2.1", "127.0.0.1", "0.0.0.0"):
        assert "for address" in unchanged("create", "refused", "--template", "bb", "--address", address, code=21).stderr
    theirs = unchanged.show(running)["address"]
    answer = unchanged("create", "refused", "--template", "bb", "--address", theirs, code=78)
    assert f"taken by VE {running}" in answer.stderr
    unchanged("create", "refused", "--template", "bb", "--address", theirs, "--network", "none", code=21)


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s.controller], ids=lambda s: s.key)
def test_limits_that_this_host_cannot_enforce(unchanged, ve, setting):
    if setting.controller in unchanged.json("host")["controllers"]:
        pytest.skip(f"this host enforces {setting.controller}: the system ring tests it")
    given = [setting.option, GOOD[setting.key], *_NEEDED.get(setting.key, ())]
    for answer in (unchanged("create", "refused", "--template", "bb", *given, code=5),
                   unchanged("set", ve, *given, code=5)):
        assert f"no {setting.controller} controller" in answer.stderr
        assert "systemd.unified_cgroup_hierarchy=1" in answer.stderr, "the remedy"


def test_every_limit_is_in_the_test_above():
    assert set(GOOD) == {s.key for s in SETTINGS if s.controller}


@pytest.mark.parametrize("arguments", [
    ("nonsense",), ("create",), ("create", "refused", "--nonsense"), ("start",), ("stop",), ("set", "refused"),
    ("exec", "refused"), ("exec",), ("stop", "refused", "--timeout", "soon"), ("template",), ("--nonsense",),
])
def test_wrong_usage(unchanged, arguments):
    answer = unchanged(*arguments, code=None)
    # Without a verb click prints the help; newer versions call that a usage error too.
    assert answer.returncode == 20 or (arguments == ("template",) and "Usage" in answer.stdout + answer.stderr)
    assert answer.stdout == "" or "Usage" in answer.stdout


def test_a_ve_that_there_is_not(unchanged):
    for verb in ("start", "stop", "restart", "suspend", "resume", "destroy", "show"):
        answer = unchanged(verb, "missing", code=14)
        assert answer.stderr == "vemgr: no such VE: missing; 'vemgr list' shows those there are\n"
    unchanged("set", "missing", "--description", "x", code=14)
    unchanged("exec", "missing", "--", "true", code=14)
    unchanged("start", "--dry-run", "missing", code=14)


def test_wrong_states(vemgr, ve):
    for verb in ("stop", "restart", "suspend", "resume"):
        assert f"VE {ve} is not running but stopped" in vemgr(verb, ve, code=31).stderr
    vemgr("exec", ve, "--", "true", code=31)
    vemgr("enter", ve, code=31)
    vemgr("create", ve, "--template", "bb", code=44)
    vemgr("start", ve)
    assert f"VE {ve} is running already" in vemgr("start", ve, code=32).stderr
    assert f"VE {ve} is running already" in vemgr("resume", ve, code=32).stderr
    assert "stop it first, or use --force" in vemgr("destroy", ve, code=32).stderr
    vemgr("suspend", ve)
    assert f"VE {ve} is suspended already" in vemgr("start", ve, code=32).stderr
    vemgr("suspend", ve, code=31)
    vemgr("destroy", ve, code=32)
    vemgr("destroy", "--force", ve)


# Templates


def test_templates_that_are_none(unchanged):
    assert "--template" in unchanged("create", "refused", code=29).stderr
    assert "'vemgr template list'" in unchanged("create", "refused", "--template", "missing", code=91).stderr
    for name in ("../bb", "a/b", "", "A", "x" * 64, "."):
        unchanged("create", "refused", "--template", name, code=29 if name == "" else 21)
        unchanged("template", "show", "--", name, code=21)
        unchanged("template", "remove", "--", name, code=21)
        unchanged("template", "import", "--", name, "/etc", code=21)
    unchanged("template", "show", "missing", code=91)
    unchanged("template", "remove", "missing", code=91)


def test_a_template_that_is_in_use(unchanged, ve):
    answer = unchanged("template", "remove", "bb", code=9)
    assert ve in answer.stderr
    assert ve in unchanged.out("template", "show", "bb")


def test_imports_that_are_refused(unchanged, tmp_path):
    garbage = tmp_path / "garbage.tar.gz"
    garbage.write_bytes(b"this is no archive" * 1000)
    unchanged("template", "import", "refused", str(garbage), code=47)
    unchanged("template", "import", "refused", str(tmp_path / "missing"), code=21)
    unchanged("template", "import", "bb", str(garbage), code=44)
    (tmp_path / "empty").mkdir()
    answer = unchanged("template", "import", "refused", str(tmp_path / "empty"), code=47)
    assert "neither /bin nor /usr" in answer.stderr
    unchanged("template", "import", "refused", "-", input="", code=47)
    assert [name for name in (unchanged.state / "templates").iterdir() if "refused" in name.name] == []


def test_an_archive_on_standard_input(fresh, tmp_path):
    (tmp_path / "bin").mkdir()
    shutil.copy("/bin/busybox", tmp_path / "bin/busybox")
    (tmp_path / "bin/sh").symlink_to("busybox")
    archive = subprocess.run(["tar", "-C", str(tmp_path), "-czf", "-", "."], capture_output=True, check=True).stdout
    fresh("template", "import", "piped", "-", "--description", "from a pipe", input=archive, text=False)
    assert "from a pipe" in fresh.out("template", "list")
    assert fresh.out("run", "--template", "piped", "--", "/bin/sh", "-c", "echo works") == "works\n"
    fresh("template", "remove", "piped")
    assert "piped" not in fresh.out("template", "list")


@pytest.fixture
def doomed(fresh):
    """A template that a test may ruin, and a VE of it."""
    fresh.import_busybox("doomed")
    name = fresh.create(template="doomed")
    yield name
    fresh("destroy", "--force", name, code=None)
    shutil.rmtree(fresh.state / "templates/doomed", ignore_errors=True)


def test_a_template_removed_by_hand(vemgr, doomed):
    before = vemgr.cgroups(), vemgr.links()
    shutil.rmtree(vemgr.state / "templates/doomed")
    assert "template doomed not found" in vemgr("start", doomed, code=91).stderr
    vemgr("start", "--dry-run", doomed, code=91)
    assert vemgr.state_of(doomed) == "stopped" and (vemgr.cgroups(), vemgr.links()) == before
    vemgr("destroy", doomed)


def test_a_template_removed_by_hand_while_a_ve_runs_on_it(vemgr, doomed):
    vemgr("start", doomed)
    shutil.rmtree(vemgr.state / "templates/doomed")
    assert vemgr.out("stop", doomed) == f"{doomed}: killed: its template is gone, so the way to stop it is unknown\n"
    vemgr("destroy", doomed)


@pytest.mark.parametrize("text", ["= nonsense", 'format = 99\nkind = "archive"\n', "", "\0", 'kind = "evil"'])
def test_a_template_whose_description_is_broken(vemgr, doomed, text):
    record = vemgr.state / "templates/doomed/template.toml"
    record.write_text(text)
    assert "template.toml" in vemgr("start", doomed, code=47).stderr
    assert "doomed" not in vemgr.out("template", "list")
    vemgr("create", "refused", "--template", "doomed", code=47)
    assert vemgr.state_of("refused") is None


def test_a_template_whose_tree_is_gone(vemgr, doomed):
    shutil.rmtree(vemgr.state / "templates/doomed/rootfs")
    assert "rootfs is missing" in vemgr("start", doomed, code=91).stderr


# vemgr.toml


@pytest.mark.parametrize(("text", "code"), [
    ("= x", 3), ("nonsense = 1", 20), ('state-dir = "relative"', 21), ("bridge = 5", 21), ("run-dir = []", 21),
])
def test_a_host_configuration_that_is_wrong(unchanged, tmp_path, text, code):
    config = tmp_path / "vemgr.toml"
    config.write_text(text)
    answer = unchanged("--config", str(config), "list", code=code)
    assert answer.stderr.startswith("vemgr: ")


def test_a_host_configuration_that_the_daemon_refuses(unchanged, tmp_path):
    """The command line starts the daemon, which finds the fault: its last words must reach the user."""
    config = tmp_path / "vemgr.toml"
    config.write_text(f'state-dir = "/proc/nowhere"\nrun-dir = "{tmp_path}/run"\n')
    answer = unchanged("--config", str(config), "list", code=3)
    assert "/proc/nowhere" in answer.stderr
    # The keeper that came up for it has nothing to keep.
    subprocess.run(["pkill", "-f", f"run-dir {tmp_path}/run"], check=True)
