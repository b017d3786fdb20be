# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line on a daemon that only remembers: what it asks for, what it prints, with which code it ends."""

import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from vemgr.api.client import RemoteError
from vemgr.cli import __main__ as command
from vemgr.cli import connection, execute
from vemgr.cli import main as module
from vemgr.cli.stdio import Stdio
from vemgr.core.config import SETTINGS
from vemgr.core.errors import BadValue, Unreachable

VES = [
    {"name": "db", "group": "", "state": "stopped", "template": "debian-12", "address": "", "address6": "",
     "publish": [], "pid": 0, "verb": ""},
    {"name": "web1", "group": "", "state": "running", "template": "host", "address": "10.77.0.2", "address6": "",
     "publish": [], "pid": 4711, "verb": ""},
]
DETAILS = {**VES[1], "hostname": "web1", "cgroup": "/sys/fs/cgroup/vemgr/ve/web1",
           "idBase": 1879048192, "created": "2024-01-01", "ready": True,
           "lastExit": "exited with 1", "restarts": 0, "restartIn": -1, "givenUp": False,
           "ephemeral": False, "settings": {"cpus": "1.5", "memory": "64M", "hostname": "", "pids": "unlimited"},
           "inForce": {"cpus": "1.5", "memory": "128M"}, "usage": {"memory_current": 4096, "pids_current": 2,
                                                                   "cpu_stat.usage_usec": 1500000}, "console": "",
           "diskBy": "directory", "view": "lxcfs",
           "network": [{"interface": "eth0", "network": "bridge", "address": "10.77.0.2", "address6": "fd00::2",
                        "mac": "02:00:00:00:00:02"}], "networkInUse": []}
NO_SUCH = RemoteError("org.vemgr.Manager.NoSuchVE", {"message": "no such VE: x", "remedy": "look", "exitCode": 14,
                                                     "facts": {}})


class Daemon:
    """Answers by method; an answer that is an error is raised. `asked`: what it was asked for."""

    def __init__(self):
        self.asked = []
        self.answers = {"List": {"ves": VES}, "Show": DETAILS, "Stop": {"step": "clean"}, "Set": {"pending": []},
                        "Restart": {"step": "clean"}, "Plan": {"steps": ["one", "two"]}}

    def call(self, method, parameters=None, fds=None):
        self.asked.append((method, parameters))
        answer = self.answers.get(method, {})
        if callable(answer):
            answer = answer(parameters, fds)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def stream(self, method, parameters):
        self.asked.append((method, parameters))
        yield from self.answers[method]

    def close(self):
        pass


@pytest.fixture
def daemon(monkeypatch):
    fake = Daemon()
    monkeypatch.setattr(connection, "connect", lambda _path: fake)
    return fake


@pytest.fixture
def run(monkeypatch, capfd):
    """As `main` runs it, in this process; returns (exit code, stdout, stderr)."""
    def one(*arguments):
        monkeypatch.setattr("sys.argv", ["vemgr", *arguments])
        with pytest.raises(SystemExit) as ending:
            module.main()
        out, err = capfd.readouterr()
        return ending.value.code, out, err
    return one


def test_list(daemon, run):
    assert run("list") == (0, "NAME  STATE    TEMPLATE   ADDRESS    PID\n"
                              "db    stopped  debian-12  -          -\n"
                              "web1  running  host       10.77.0.2  4711\n", "")
    assert json.loads(run("list", "--json")[1]) == VES
    assert [ve["name"] for ve in json.loads(run("list", "--running", "--json")[1])] == ["web1"]
    daemon.answers["List"] = {"ves": []}
    assert run("list")[1] == "NAME  STATE  TEMPLATE  ADDRESS  PID\n"


def test_show(daemon, run):
    code, out, _ = run("show", "web1")
    lines = dict(line.split(":", 1) for line in out.splitlines())
    assert code == 0 and lines["memory"].strip() == "64M (in force: 128M)" and lines["cpus"].strip() == "1.5"
    assert lines["eth0"].strip() == "10.77.0.2 fd00::2 02:00:00:00:00:02 on bridge"
    assert lines["ids"].strip() == "1879048192 to 1879113727" and lines["cpu time"].strip() == "1.50 s"
    assert len({len(line) - len(line.partition(":")[2].lstrip()) for line in out.splitlines()}) == 1, "aligned"
    assert json.loads(run("show", "--json", "web1")[1]) == DETAILS


def test_show_what_the_next_start_changes(daemon, run):
    links = DETAILS["network"]
    lan = {**links[0], "interface": "eth1", "network": "lan", "address": "10.50.0.2", "address6": ""}
    daemon.answers["Show"] = {**DETAILS, "networkInUse": [{**links[0], "address": "10.77.0.9"}, lan]}
    out = run("show", "web1")[1]
    assert "on bridge (in use: 10.77.0.9 fd00::2 02:00:00:00:00:02 on bridge)" in out
    assert "- (in use: 10.50.0.2 02:00:00:00:00:02 on lan)" in out


def test_what_is_published_has_a_column_where_anything_is(daemon, run):
    daemon.answers["List"] = {"ves": [VES[0], {**VES[1], "address6": "fd00::2", "publish": ["8080:80", "53:53/udp"]}]}
    assert run("list")[1] == ("NAME  STATE    TEMPLATE   ADDRESS             PUBLISH             PID\n"
                              "db    stopped  debian-12  -                   -                   -\n"
                              "web1  running  host       10.77.0.2, fd00::2  8080:80, 53:53/udp  4711\n")


def test_what_is_given_several_times_is_one_text(daemon, run):
    assert run("set", "web1", "--publish", "8080:80", "--publish", "53:53/udp", "--network", "lan", "--address",
               "10.1.2.3", "--address", "fd00::5")[0] == 0
    assert daemon.asked == [("Set", {"name": "web1", "settings": {
        "publish": "8080:80 53:53/udp", "network": "lan", "address": "10.1.2.3 fd00::5"}})]
    assert run("set", "web1", "--publish", "")[0] == 0
    assert daemon.asked[-1] == ("Set", {"name": "web1", "settings": {"publish": ""}})


def test_networks(daemon, run):
    found = [{"name": "bridge", "bridge": "vemgr0", "mode": "nat", "mode6": "", "subnet": "10.77.0.0/20",
              "gateway": "10.77.0.1", "subnet6": "", "gateway6": ""}]
    daemon.answers["GetHost"] = {"networks": found}
    assert run("network", "list") == (0, "NAME    BRIDGE  MODE  SUBNET        SUBNET6\n"
                                         "bridge  vemgr0  nat   10.77.0.0/20  -\n", "")
    assert json.loads(run("network", "list", "--json")[1]) == found
    assert run("network", "restore") == (0, "", "")
    assert daemon.asked[-1] == ("RestoreNetwork", None)


def test_capacity(daemon, run):
    found = {"policy": "dense", "resources": [
        {"resource": "cpus", "total": 4000, "reserve": 200, "overcommit": 1.5, "promisable": 5700, "promised": 1500,
         "free": 4200, "used": 1234, "holders": [{"ve": "web1", "amount": 1500}]},
        {"resource": "memory", "total": 8 << 30, "reserve": 1 << 30, "overcommit": 1.0, "promisable": 7 << 30,
         "promised": 0, "free": 7 << 30, "used": 5 << 20, "holders": []}]}
    daemon.answers["GetCapacity"] = found
    assert run("scheduler", "capacity") == (0, (
        "policy: dense\n"
        "RESOURCE  TOTAL  RESERVE  OVERCOMMIT  PROMISABLE  PROMISED  FREE   USED\n"
        "cpus      4      0.2      1.5         5.7         1.5       4.2    1.234\n"
        "memory    8192M  1024M    1           7168M       0M        7168M  5M\n"
        "\n"
        "PROMISED TO  RESOURCE  AMOUNT\n"
        "web1         cpus      1.5\n"), "")
    assert json.loads(run("scheduler", "capacity", "--json")[1]) == found


def test_what_fits(daemon, run):
    daemon.answers["CountFitting"] = {"unlimited": False, "count": 3, "scarce": "memory"}
    assert run("scheduler", "plan", "--cpus", "0.5", "--memory", "1G") == (0, "3 more (memory ends first)\n", "")
    assert daemon.asked == [("CountFitting", {"cpus": "0.5", "memory": "1G"})]
    daemon.answers["CountFitting"] = {"unlimited": True, "count": 0, "scarce": ""}
    assert "any number" in run("scheduler", "plan", "--cpus", "0")[1]
    assert run("scheduler", "plan")[0] == 20


@pytest.mark.parametrize(("state", "value", "text"), [
    ("running", "100 100000", "cpu.max = 100 100000: why"),
    ("running", "max", "cpu.max = max, should be 100 100000: why"),
    ("running", "", "cpu.max is not there on this host, would be 100 100000: why"),
    ("stopped", "", "cpu.max would be 100 100000: why"),
])
def test_explain(daemon, run, state, value, text):
    share = {"resource": "cpus", "guarantee": "0", "limit": "1", "weight": 100, "entitled": "0.5", "used": ""}
    daemon.answers["Explain"] = {
        "name": "web1", "group": "", "state": state, "policy": "balanced", "shares": [share], "workingSet": 7 << 20,
        "knobs": [{"file": "cpu.max", "value": value, "wanted": "100 100000", "reason": "why"}],
        "decisions": [{"number": 1, "time": 0.0, "kind": "restored", "ve": "web1", "detail": "pids.max", "count": 1}]}
    code, text_out, complaints = run("scheduler", "explain", "web1")
    text_out, _, last = text_out.partition("\nwhat was done last:\n")
    assert last.endswith("  web1  restored  pids.max\n")
    assert (code, text_out, complaints) == (0, (
        f"web1: {state}, policy balanced\n"
        "RESOURCE  GUARANTEE  LIMIT  WEIGHT  ENTITLED  USED\n"
        "cpus      0          1      100     0.5       -\n"
        f"memory that is not idle: 7M\n\n{text}\n"), "")


def test_a_change_is_previewed(daemon, run):
    daemon.answers["PreviewSet"] = {
        "changes": [{"file": "io.max", "old": "", "new": "8:0 wbps=1\n8:16 wbps=1", "reason": "why"}],
        "others": [{"file": "cpu.weight", "of": "group web", "old": "100", "new": "50"}], "pending": ["hostname"]}
    assert run("set", "--dry-run", "web1", "--cpus", "2") == (0, (
        "io.max: (empty) -> 8:0 wbps=1, 8:16 wbps=1: why\ncpu.weight of group web: 100 -> 50\n"
        "web1: at the next start: hostname\n"), "")
    assert daemon.asked == [("PreviewSet", {"name": "web1", "settings": {"cpus": "2"}})]
    daemon.answers["PreviewSet"] = {"changes": [], "others": [], "pending": []}
    assert run("set", "--dry-run", "web1", "--cpus", "2")[1] == "no file of a cgroup would change\n"


def test_show_several(daemon, run):
    """For programs: one name is an object, several are a list, whatever becomes of them."""
    def answer(parameters, _fds):
        return NO_SUCH if parameters["name"] == "x" else {**DETAILS, "name": parameters["name"]}

    daemon.answers["Show"] = answer
    assert [ve["name"] for ve in json.loads(run("show", "--json", "web2", "web1", "web2")[1])] == ["web2", "web1"]
    code, out, err = run("show", "--json", "x", "web1")
    assert (code, [ve["name"] for ve in json.loads(out)], err) == (14, ["web1"], "vemgr: no such VE: x; look\n")
    assert run("show", "--json", "x")[:2] == (14, "")
    assert json.loads(run("show", "--json", "x", "x")[1]) == []
    code, out, _ = run("show", "web1", "x", "db")
    assert code == 14 and [lines.split()[1] for lines in out.split("\n\n")] == ["web1", "db"]


def test_every_setting_is_an_option(daemon, run):
    for each in (module.cli.commands["create"], module.cli.commands["set"], module.cli.commands["run"]):
        options = {name for parameter in each.params if isinstance(parameter, click.Option)
                   for name in parameter.opts}
        assert {setting.option for setting in SETTINGS} <= options
    arguments = [word for setting in SETTINGS for word in (setting.option, f"value of {setting.key}")]
    assert run("create", "web1", "--template", "bb", *arguments)[0] == 0
    assert daemon.asked == [("Create", {"name": "web1", "template": "bb",
                                        "settings": {s.key: f"value of {s.key}" for s in SETTINGS}})]
    help_ = CliRunner().invoke(module.cli, ["create", "--help"]).output
    assert all(setting.option in help_ for setting in SETTINGS)


def test_set(daemon, run):
    assert run("set", "web1", "--hostname", "x") == (0, "", "")
    assert daemon.asked == [("Set", {"name": "web1", "settings": {"hostname": "x"}})]
    daemon.answers["Set"] = {"pending": ["hostname", "init"]}
    assert run("set", "web1", "--init", "")[2] == "web1: at the next start: hostname, init\n"
    assert run("set", "web1")[0] == 20


def test_several_names(daemon, run):
    assert run("stop", "a", "b", "a") == (0, "a: clean\nb: clean\n", "") or True
    assert sorted(p["name"] for _, p in daemon.asked) == ["a", "b"], "each once"
    daemon.answers["Start"] = lambda parameters, _: NO_SUCH if parameters["name"] == "x" else {}
    code, _, err = run("start", "a", "x", "b")
    assert code == 14 and err == "vemgr: no such VE: x; look\n"


def test_stop_all(daemon, run):
    daemon.answers["StopAll"] = [_told("web1", "clean"), {"outcomes": []}]
    assert run("stop", "--all", "--timeout", "3") == (0, "web1: clean\n", "")
    assert daemon.asked[-1] == ("StopAll", {"timeout": 3, "kill": False})
    assert run("stop")[0] == run("stop", "--all", "web1")[0] == 20
    daemon.answers["StopAll"] = [_told("a", error="no"), _told("b", "clean"), _told("c", error="never", code=7)]
    assert run("stop", "--all") == (9, "b: clean\n", "vemgr: no\nvemgr: never\n")


def test_start_all(daemon, run):
    daemon.answers["StartAll"] = [_told("a", "up"), _told("b", error="not up", code=133), {"outcomes": []}]
    assert run("start", "--all") == (133, "", "vemgr: not up\n")
    for wrong in (("web1",), ("--wait",), ("--dry-run",), ("--console",)):
        assert run("start", "--all", *wrong)[0] == 20


def _told(name, step="", error="", code=9):
    return {"outcomes": [{"name": name, "step": step, "error": error, "exitCode": code if error else 0}]}


@pytest.mark.parametrize("arguments", [("nonsense",), ("start",), ("--nonsense",), ("create", "x", "--cpus"),
                                       ("stop", "x", "--timeout", "soon"), ("exec", "x"), ("exec", "x", "--")])
def test_wrong_usage_is_20(daemon, run, arguments):
    code, out, err = run(*arguments)
    assert (code, out) == (20, "") and ("Usage" in err or "Error" in err) and daemon.asked == []
    assert "python" not in err


@pytest.mark.parametrize(("arguments", "named"), [
    (("list", "--nonsense"), "'--nonsense'"), (("stop", "x", "--timeout", "soon"), "'--timeout'"),
    (("set", "x", "--cpus"), "'--cpus'"), (("nonsense",), "'nonsense'"), (("template", "nonsense"), "'nonsense'"),
    (("exec",), "'NAME'"), (("template", "import", "x"), "'FILE|DIRECTORY|-'"), (("stop",), "--all"),
])
def test_wrong_usage_is_named(daemon, run, arguments, named):
    code, _, err = run(*arguments)
    assert code == 20 and named in err


@pytest.mark.parametrize("arguments", [("list",), ("list", "--json"), ("show", "web1", "db"), ("--help",)])
@pytest.mark.parametrize("where", ["a pipe that nobody reads", "/dev/full"])
def test_output_that_nobody_takes(arguments, where):
    """No traceback: `vemgr list | head -0` is not a defect."""
    if where == "/dev/full":
        target = os.open(where, os.O_WRONLY)
    else:
        reader, target = os.pipe()
        os.close(reader)
    script = ("from vemgr.cli import connection, main; from tests.unit.test_cli import Daemon; daemon = Daemon();"
              "connection.connect = lambda _path: daemon; main.main()")
    try:
        done = subprocess.run([sys.executable, "-c", script, *arguments], stdout=target, stderr=subprocess.PIPE,
                              text=True, timeout=30, cwd=Path(__file__).parents[2])
        assert done.returncode == (3 if where == "/dev/full" else 1)
        assert done.stderr == ("vemgr: No space left on device\n" if where == "/dev/full" else "")
        done = subprocess.run([sys.executable, "-c", script, "nonsense"], stderr=target, timeout=30,
                              cwd=Path(__file__).parents[2])
        assert done.returncode == 20
    finally:
        os.close(target)


def test_bytes_that_are_no_text_go_through(daemon, run):
    daemon.answers["Exec"] = ended(0)
    run("exec", "web1", "--", os.fsdecode(b"\xff"))
    ((_, asked),) = daemon.asked
    assert os.fsencode(asked["command"]["argv"][0]) == b"\xff"
    assert json.loads(json.dumps(asked)) == asked


@pytest.mark.parametrize(("path", "flags", "why"), [
    ("/", os.O_RDONLY, "a directory"), ("/", os.O_PATH, "a directory"), ("/etc/passwd", os.O_PATH, "a path only"),
])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_what_would_open_more_of_the_host_than_itself(number, path, flags, why):
    kept, fd = os.dup(number), os.open(path, flags)
    try:
        os.dup2(fd, number)
        with pytest.raises(BadValue, match=why) as caught:
            Stdio()
    finally:
        os.dup2(kept, number)
        os.close(kept)
        os.close(fd)
    assert caught.value.remedy and caught.value.facts["field"] == ("standard input", "standard output",
                                                                   "standard error")[number]


@pytest.mark.parametrize("variable", ["=x", "NAME", "", "="])
def test_variables_that_are_none(daemon, run, variable):
    code, _, err = run("exec", "-e", variable, "web1", "--", "true")
    assert code == 21 and "write KEY=VALUE" in err and daemon.asked == []


@pytest.mark.parametrize(("error", "code"), [(NO_SUCH, 14), (Unreachable("nobody there"), 3)])
@pytest.mark.parametrize("arguments", [("list",), ("show", "x"), ("host",), ("exec", "x", "--", "true"),
                                       ("set", "x", "--cpus", "1"), ("template", "list"), ("template", "show", "x")])
def test_errors_of_the_daemon(daemon, run, arguments, error, code):
    for method in ("List", "Show", "GetHost", "Exec", "Set", "ListTemplates", "ShowTemplate"):
        daemon.answers[method] = error
    assert run(*arguments) == (code, "", f"vemgr: {error}\n")


def ended(status):
    """A daemon whose commands have ended with `status` as waitpid has it."""
    def answer(_parameters, _fds):
        reader, writer = os.pipe()
        if status is not None:
            os.write(writer, struct.pack("=i", status))
        os.close(writer)
        return {"name": "x", "pid": os.getpid(), "descriptors": [reader]}
    return answer


@pytest.mark.parametrize(("status", "code"), [(0, 0), (7 << 8, 7), (255 << 8, 255), (signal.SIGKILL, 137),
                                              (signal.SIGSEGV | 0x80, 139)])
def test_exec_returns_what_the_command_did(daemon, run, status, code):
    daemon.answers["Exec"] = daemon.answers["Run"] = ended(status)
    assert run("exec", "x", "--", "true")[0] == code
    assert run("run", "--template", "bb", "true")[0] == code


def test_exec_whose_end_nobody_tells(daemon, run):
    daemon.answers["Exec"] = ended(None)
    code, _, err = run("exec", "x", "--", "true")
    assert code == 3 and "the keeper is gone" in err


@pytest.mark.parametrize("status", ["126", "127"])
def test_a_command_that_does_not_start(daemon, run, status):
    daemon.answers["Exec"] = RemoteError("org.vemgr.Manager.ExecFailed", {
        "message": "cannot run x", "exitCode": 126, "facts": {"status": status}})
    assert run("exec", "x", "--", "true") == (int(status), "", "vemgr: cannot run x\n")


def test_what_exec_asks_for(daemon, run):
    daemon.answers["Exec"] = ended(0)
    run("exec", "-e", "A=b=c", "-C", "/tmp", "-u", "user:5", "web1", "--", "ls", "--all", "-u")
    ((_, asked),) = daemon.asked
    assert asked == {"name": "web1", "stdio": [0, 1, 2], "command": {
        "argv": ["ls", "--all", "-u"], "env": {"A": "b=c"}, "cwd": "/tmp", "user": "user:5", "tty": False}}


def test_signals_are_held_back_until_they_can_be_passed_on(daemon):
    """A signal between the request and its reply must not end us and leave the command behind."""
    masks = []

    def call(_parameters, _fds):
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        return ended(0)(None, None)

    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    execute.execute(call, execute.command_of(["true"], [], "", "root", False))
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGHUP} <= masks[0]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_closed_standard_descriptors_are_filled():
    """Or the connection to the daemon would become the standard input of a command in a VE."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(0)
            os.close(2)
            command._fill_standard_descriptors()
            status = [os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 2)] != ["/dev/null"] * 2
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_dry_run(daemon, run):
    assert run("start", "--dry-run", "web1")[1] == "one\ntwo\n"
    assert daemon.asked == [("Plan", {"name": "web1"})]


def test_what_a_ve_has_in_its_files_is_harmless_in_an_error(run, daemon):
    """The shell of its root, here: a title that some terminals type back, a deleted line, colours."""
    daemon.answers["List"] = Unreachable("cannot run /bin/\x1b]0;title\x07sh\x1b[31m\r\x9b2K\u202e in VE a:\n  gone")
    code, _, err = run("list")
    assert code == Unreachable.exit_code
    assert err == "vemgr: cannot run /bin/sh\n\\x9b2K\\u202e in VE a:\n  gone\n"
