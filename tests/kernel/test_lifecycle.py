# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs on VEs through the command line: states, what a stop says, reboot, several at once."""

import os
import re
import signal
import subprocess
import threading
import time

import pytest

from vemgr.api.client import RemoteError

DEAF = "sh -c 'trap : TERM; while :; do sleep 0.1; done'"  # handles SIGTERM, by not ending


def wait_for(condition, timeout=10):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it does not come to be"
        time.sleep(0.05)


def test_the_life_of_a_ve(fresh):
    name = fresh.create()
    assert fresh.state_of(name) == "stopped"
    fresh("start", name)
    shown = fresh.show(name)
    assert (shown["state"], shown["template"], shown["hostname"]) == ("running", "bb", name)
    assert os.readlink(f"/proc/{shown['pid']}/ns/pid") != os.readlink("/proc/self/ns/pid")
    assert fresh.out("exec", name, "--", "hostname") == f"{name}\n"
    fresh("exec", name, "--", "sh", "-c", "echo kept > /root/file")
    assert re.fullmatch(rf"{name}: clean\n", fresh.out("stop", name))
    stopped = fresh.show(name)
    assert (stopped["state"], stopped["pid"], stopped["lastExit"]) == ("stopped", 0, "exited with 0")
    fresh("start", name)
    assert fresh.out("exec", name, "--", "cat", "/root/file") == "kept\n"
    assert fresh.out("restart", name) == f"{name}: clean\n"
    assert fresh.state_of(name) == "running" and fresh.show(name)["pid"] != shown["pid"]
    fresh("stop", "--kill", name)
    fresh("destroy", name)
    assert fresh.state_of(name) is None and not (fresh.state / "ve" / name).exists()
    fresh("show", name, code=14)


def test_suspend_holds_every_process(vemgr, running):
    ticks = vemgr.state / "ve" / running / "data/0/upper/ticks"
    clock = vemgr.popen("exec", running, "--", "sh", "-c", "while :; do echo >> /ticks; usleep 10000; done")
    wait_for(lambda: ticks.exists() and ticks.stat().st_size > 3)
    vemgr("suspend", running)
    assert vemgr.state_of(running) == "suspended"
    held = ticks.stat().st_size
    time.sleep(0.3)
    assert ticks.stat().st_size == held
    vemgr("exec", running, "--", "true", code=31)
    vemgr("suspend", running, code=31)
    vemgr("resume", running)
    wait_for(lambda: ticks.stat().st_size > held)
    assert vemgr.state_of(running) == "running"
    vemgr("stop", "--kill", running)
    assert clock.communicate(timeout=20)[0] == "" and clock.returncode == 128 + signal.SIGKILL


def test_list_and_show(vemgr, running):
    (entry,) = (ve for ve in vemgr.json("list") if ve["name"] == running)
    details = vemgr.show(running)
    assert entry == {key: details[key] for key in ("name", "group", "state", "template", "address", "address6",
                                                  "publish", "pid", "verb")}
    lines = vemgr.out("list").splitlines()
    assert lines[0].split() == ["NAME", "STATE", "TEMPLATE", "ADDRESS", "PID"]
    assert [running, "running", "bb", entry["address"], str(entry["pid"])] in [line.split() for line in lines]
    text = vemgr.out("show", running)
    assert re.search(rf"^hostname: +{running}$", text, re.MULTILINE)
    assert re.search(r"^cpu time: +\d+\.\d\d s$", text, re.MULTILINE)
    assert details["usage"]["cpu_stat.usage_usec"] > 0
    vemgr("stop", "--kill", running)
    assert running not in vemgr.out("list", "--running")
    assert running in vemgr.out("list")


def test_set(vemgr, running):
    changed = vemgr("set", running, "--hostname", "other.example", "--description", "a line", "--stop-timeout", "3")
    assert changed.stderr == f"{running}: at the next start: hostname\n"
    settings = vemgr.show(running)["settings"]
    assert (settings["hostname"], settings["description"], settings["stop-timeout"]) == ("other.example", "a line", "3")
    definition = vemgr.state / "ve" / running / "config.toml"
    definition.write_text("# by hand\n" + definition.read_text())
    assert vemgr.out("exec", running, "--", "hostname") == f"{running}\n"
    vemgr("restart", running)
    assert vemgr.out("exec", running, "--", "hostname") == "other.example\n"
    vemgr("set", running, "--hostname", "default", "--on-boot", "yes")
    assert vemgr.show(running)["hostname"] == running
    text = definition.read_text()
    assert text.startswith("# by hand\n") and 'on-boot = "yes"' in text and "other.example" not in text
    vemgr("set", running, code=20)
    vemgr("set", running, "--stop-timeout", "-1", code=21)
    assert definition.read_text() == text


def test_a_definition_edited_by_hand_counts_at_the_next_start(vemgr, ve):
    definition = vemgr.state / "ve" / ve / "config.toml"
    definition.write_text(definition.read_text() + 'hostname = "edited"\n')
    vemgr("start", ve)
    assert vemgr.out("exec", ve, "--", "hostname") == "edited\n"
    vemgr("stop", "--kill", ve)
    definition.write_text("format = [")
    assert "mend" in vemgr("start", ve, code=3).stderr
    assert vemgr.state_of(ve) == "stopped"


def test_run(fresh):
    before = fresh.traces()
    assert fresh.out("run", "--template", "bb", "--", "sh", "-c", "echo hi; exit 5", code=5) == "hi\n"
    assert fresh.out("run", "--template", "bb", "--name", "once", "--network", "none", "--", "hostname") == "once\n"
    assert "cannot run nope" in fresh("run", "--template", "bb", "--", "nope", code=127).stderr
    fresh("run", "--template", "bb", "--", "sh", "-c", "kill -9 $$", code=137)
    fresh("run", "--template", "missing", "--", "true", code=91)
    fresh("run", "--", "true", code=29)
    fresh("run", "--template", "bb", "--init", "/nonexistent", "--", "true", code=7)
    fresh("run", "--template", "bb", "--cwd", "not/absolute", "--", "true", code=21)
    wait_for(lambda: fresh.json("list") == [])
    fresh.assert_traces(before)


def test_several_names_at_once(fresh):
    names = [fresh.new_name() for _ in range(6)]
    fresh("create", *names, "--template", "bb")
    began = time.monotonic()
    fresh("start", *names)
    took = time.monotonic() - began
    assert {ve["name"] for ve in fresh.json("list") if ve["state"] == "running"} >= set(names)
    addresses = {ve["address"] for ve in fresh.json("list")}
    assert len(addresses) == len(fresh.json("list")), "two VEs share an address"
    assert took < 6, "six small VEs need no second each"
    answer = fresh("stop", *names, "missing", "--kill", code=14)
    assert sorted(answer.stdout.splitlines()) == sorted(f"{name}: killed: on request" for name in names)
    assert "no such VE: missing" in answer.stderr
    fresh("destroy", *names)


def test_the_same_name_created_twice_at_once(fresh):
    outcomes = []

    def one():
        with fresh.client() as client:
            try:
                client.call("Create", {"name": "twin", "template": "bb", "settings": {}})
                outcomes.append("created")
            except RemoteError as error:
                outcomes.append(error.identifier)

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["VEExists"] * 7 + ["created"]
    two = [fresh.popen("create", "twin2", "--template", "bb") for _ in range(2)]
    assert sorted(process.communicate(timeout=30) and process.returncode for process in two) == [0, 44]
    assert (fresh.state / "ve/twin2/config.toml").exists()


def test_addresses_of_concurrent_creates_differ(fresh):
    names = [fresh.new_name() for _ in range(10)]
    fresh("create", *names, "--template", "bb")
    found = [(ve["address"]) for ve in fresh.json("list") if ve["name"] in names]
    bases = {fresh.show(name)["idBase"] for name in names}
    assert len(set(found)) == len(bases) == len(names)


# How a stop ends


def test_stop_of_an_init_without_a_handler_says_so(fresh):
    name = fresh.create("--init", "sleep 1000")
    fresh("start", name)
    began = time.monotonic()
    assert fresh.out("stop", name) == f"{name}: killed: init does not handle SIGTERM\n"
    assert 4 < time.monotonic() - began < 12


def test_stop_after_the_time_is_up(fresh):
    name = fresh.create("--init", DEAF)
    fresh("start", name)
    assert fresh.out("stop", "--timeout", "1", name) == f"{name}: killed: 1 s passed\n"
    fresh("set", name, "--stop-timeout", "1")
    fresh("start", name)
    assert fresh.out("stop", name) == f"{name}: killed: 1 s passed\n"
    fresh("start", name)
    assert fresh.out("stop", "--timeout", "0", name) == f"{name}: killed: on request\n"
    fresh("stop", "--timeout", "-1", name, code=21)


def test_stop_of_a_suspended_ve(vemgr, running):
    vemgr("suspend", running)
    assert vemgr.out("stop", running) == f"{running}: clean\n"
    vemgr("start", running)
    vemgr("suspend", running)
    assert vemgr.out("stop", "--kill", running) == f"{running}: killed: on request\n"
    assert vemgr.state_of(running) == "stopped"


def test_stop_lets_the_processes_of_the_ve_end_themselves(vemgr, running):
    ended = vemgr.popen("exec", running, "--", "sh", "-c",
                        'trap "echo saved > /saved; exit 4" TERM; echo ready; while :; do sleep 0.05; done')
    assert ended.stdout.readline() == "ready\n"
    assert vemgr.out("stop", running) == f"{running}: clean\n"
    ended.communicate(timeout=20)
    assert ended.returncode == 4
    assert (vemgr.state / "ve" / running / "data/0/upper/saved").read_text() == "saved\n"


def test_a_verb_in_progress_refuses_others(fresh):
    name = fresh.create("--init", DEAF)
    fresh("start", name)
    stopping = fresh.popen("stop", "--timeout", "3", name)
    wait_for(lambda: fresh.show(name)["verb"] == "stop")
    with fresh.client() as client:  # a command line each would take longer than the stop on a busy host
        for verb in ("Start", "Stop", "Destroy", "Suspend", "Restart"):
            with pytest.raises(RemoteError, match="'stop' is in progress"):
                client.call(verb, {"name": name})
        with pytest.raises(RemoteError) as refused:
            client.call("Set", {"name": name, "settings": {"description": "x"}})
        assert refused.value.code == 9
    assert stopping.communicate(timeout=20)[0] == f"{name}: killed: 3 s passed\n"
    fresh("start", name)


# What the VE does to itself


@pytest.mark.parametrize(("template", "command"), [("bb", ["reboot", "-f"]), ("bbinit", ["reboot"])])
def test_reboot_from_inside(fresh, template, command):
    name = fresh.create(template=template)
    fresh("start", name)
    before = fresh.show(name)["pid"]
    fresh("exec", name, "--", *command, code=None)
    wait_for(lambda: fresh.show(name)["pid"] not in (0, before), 15)
    shown = fresh.show(name)
    assert (shown["state"], shown["lastExit"]) == ("running", "rebooted")
    fresh("exec", name, "--", "true")


@pytest.mark.parametrize(("template", "command"), [("bb", ["poweroff", "-f"]), ("bbinit", ["poweroff"])])
def test_poweroff_from_inside(fresh, template, command):
    name = fresh.create(template=template)
    fresh("start", name)
    fresh("exec", name, "--", *command, code=None)
    wait_for(lambda: fresh.state_of(name) == "stopped", 15)
    assert fresh.show(name)["lastExit"] == "powered off"
    fresh("start", name)


def test_the_templates_own_init(fresh):
    name = fresh.create(template="bbinit")
    fresh("start", name)
    assert fresh.out("exec", name, "--", "cat", "/proc/1/comm") == "init\n"
    assert fresh.out("stop", name) == f"{name}: clean\n"


ASKED_BY_A_PIPE = """#!/bin/sh
trap '' TERM PWR
sleep 1
mkfifo /run/initctl
read request </run/initctl
echo "$request" >/root/asked
"""
POWEROFF = "#!/bin/sh\n[ -p /run/initctl ] && echo halt >/run/initctl\n"


def test_an_init_that_only_poweroff_ends(fresh):
    """sysvinit, OpenRC: they are told by a pipe, and need a moment until they have it. No signal does it."""
    def like_sysvinit(tree):
        for name, text in (("init", ASKED_BY_A_PIPE), ("poweroff", POWEROFF)):
            (tree / "sbin" / name).write_text(text)
            (tree / "sbin" / name).chmod(0o755)
        (tree / "bin/poweroff").unlink()
        (tree / "etc/inittab").write_text("::sysinit:/bin/true\n")

    fresh.import_busybox("sysv", change=like_sysvinit)
    name = fresh.create(template="sysv")
    fresh("start", name)  # and before it has its pipe:
    assert fresh.out("stop", name) == f"{name}: clean\n"
    fresh("start", name)
    fresh("pull", f"{name}:/root/asked", str(fresh.base / "asked"))
    assert (fresh.base / "asked").read_text() == "halt\n"
    fresh("exec", name, "--", "rm", "/sbin/poweroff")
    assert fresh.out("stop", "--timeout", "1", name) == f"{name}: killed: 1 s passed\n"
    fresh("destroy", name)
    fresh("template", "remove", "sysv")


def test_an_init_that_is_not_there(fresh):
    before = fresh.traces()
    for init in ("/nonexistent", "nonexistent", "/etc/passwd", "/etc"):
        name = fresh.create("--init", init)
        assert "its init cannot be run" in fresh("start", name, code=7).stderr
        assert fresh.state_of(name) == "stopped"
        fresh("destroy", name)
    fresh.assert_traces(before)


def test_an_init_that_ends_at_once(fresh):
    name = fresh.create("--init", "/bin/false")
    before = fresh.traces()
    fresh("start", name, code=None)
    wait_for(lambda: fresh.state_of(name) == "stopped")
    assert fresh.show(name)["lastExit"] == "exited with 1"
    fresh("set", name, "--init", "sh -c 'echo the reason; exit 3'")
    fresh("start", name, code=None)
    wait_for(lambda: fresh.state_of(name) == "stopped" and fresh.show(name)["lastExit"] == "exited with 3")
    wait_for(lambda: fresh.traces()["cgroups"] == before["cgroups"])


# Network


def test_network_none(fresh):
    name = fresh.create("--network", "none")
    fresh("start", name)
    assert fresh.show(name)["address"] == ""
    links = fresh.out("exec", name, "--", "ip", "-o", "link").splitlines()
    assert [line.split()[1] for line in links] == ["lo:"]
    fresh("exec", name, "--", "ping", "-c1", "-W2", "127.0.0.1")


def test_network(fresh):
    one, other = fresh.create(), fresh.create()
    fresh("start", one, other)
    gateway = fresh.json("host")["subnet"].split("/")[0].rpartition(".")[0] + ".1"
    theirs = fresh.show(other)["address"]
    fresh("exec", one, "--", "ping", "-c1", "-W2", gateway)
    fresh("exec", one, "--", "ping", "-c1", "-W2", theirs)
    assert f"{theirs}/" in fresh.out("exec", other, "--", "ip", "-4", "-o", "addr", "show", "eth0")
    assert fresh.out("exec", one, "--", "ip", "route", "show", "default").startswith(f"default via {gateway}")
    assert f"{fresh.show(one)['address']} {one}" in fresh.out("exec", one, "--", "cat", "/etc/hosts")
    assert len([link for link in fresh.links() if link != "lo"]) >= 3  # the bridge and two links


def test_a_bridge_without_a_free_port(fresh):
    name = fresh.create()
    fresh("start", name)
    fresh("stop", "--kill", name)
    bridge = next(link for link in fresh.links() if link != "lo")
    before = fresh.traces()
    links = [f"x{number}" for number in range(1023)]
    batch = [line for link in links for line in (
        f"link add {link} type veth peer name p{link}", f"link set {link} master {bridge}")]
    fresh.ip_batch(batch)
    failed = fresh("start", name, code=7)
    assert "start: network: RTM_NEWLINK" in failed.stderr and "no more than 1023 ports" in failed.stderr
    fresh.ip_batch([f"link del {link}" for link in links])
    fresh.assert_traces(before)
    fresh("start", name)


def test_an_address_that_was_given(fresh):
    prefix = fresh.json("host")["subnet"].split("/")[0].rpartition(".")[0]
    name = fresh.create("--address", f"{prefix}.77")
    fresh("start", name)
    assert f"{prefix}.77/" in fresh.out("exec", name, "--", "ip", "-4", "-o", "addr", "show", "eth0")
    fresh("set", name, "--address", f"{prefix}.78")
    fresh("restart", name)
    assert f"{prefix}.78/" in fresh.out("exec", name, "--", "ip", "-4", "-o", "addr", "show", "eth0")


# The template `host`


def test_the_hosts_own_system_as_a_template(fresh):
    name = fresh.create(template="host")
    fresh("start", name)
    assert fresh.out("exec", name, "--", "cat", "/etc/hostname") == f"{name}\n"
    fresh("exec", name, "--", "sh", "-c", "touch /usr/vemgr-test && test -e /usr/vemgr-test && rm /usr/bin/env")
    assert not os.path.exists("/usr/vemgr-test") and os.path.exists("/usr/bin/env")
    root = fresh.out("exec", name, "--", "stat", "-c", "%u:%g", "/usr/bin/stat")
    assert root == "0:0\n", "the links to the host are id-mapped"
    assert fresh.out("stop", name) == f"{name}: clean\n"


def test_dry_run_changes_nothing(vemgr, ve):
    before = vemgr.traces()
    steps = vemgr.out("start", "--dry-run", ve).splitlines()
    assert steps[0].startswith("clone namespaces=") and steps[-1] == "exec built-in init"
    assert any(step.startswith("overlay target=/") for step in steps)
    vemgr.assert_traces(before)
    assert vemgr.state_of(ve) == "stopped"


def test_commands_start_what_is_missing(make_instance):
    """Two first commands at once start one daemon and one keeper."""
    with make_instance(template=False) as instance:
        processes = [instance.popen("list", "--json") for _ in range(4)]
        assert [process.communicate(timeout=40)[0] for process in processes] == ["[]\n"] * 4
        log = (instance.run / "daemon.log").read_text()
        assert log.count("ready, version") == 1, log
        assert subprocess.run(["pgrep", "-fc", str(instance.config)], capture_output=True).stdout == b"1\n"


# Says that it is up when told to, by a file; and has a child that says so before.
NOTIFIER = """#!/usr/bin/python3
import os, socket, time
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect(os.environ["NOTIFY_SOCKET"])
if os.fork() == 0:
    notify.send(b"READY=1")
    os._exit(0)
os.wait()
notify.send(b"STATUS=not yet")
open("/said", "w").close()
while not os.path.exists("/go"):
    if os.path.exists("/end"):
        os._exit(4)
    time.sleep(0.02)
notify.send(b"READY=1")
time.sleep(1000)
"""


@pytest.fixture
def notifier(vemgr):
    """A VE whose init is a systemd as far as we can see, and its root directory."""
    name = vemgr.create(template="host")
    vemgr("start", name)
    vemgr("stop", "--kill", name)
    vemgr("set", name, "--init", "/systemd")
    root = vemgr.state / "ve" / name / "data/0/upper"
    (root / "systemd").write_text(NOTIFIER)
    (root / "systemd").chmod(0o755)
    yield name, root
    vemgr("destroy", "--force", name)


def test_start_waits_for_what_init_says(vemgr, notifier):
    name, root = notifier
    before = vemgr.traces()
    starting = vemgr.popen("start", "--wait", name)
    wait_for((root / "said").exists)
    assert starting.poll() is None and vemgr.show(name)["state"] == "running" and not vemgr.show(name)["ready"]
    assert "running (coming up)" in vemgr.out("show", name)
    vemgr("exec", name, "--", "touch", "/go")
    assert starting.communicate(timeout=20)[1] == "" and starting.returncode == 0 and vemgr.show(name)["ready"]
    assert vemgr.out("events", name).endswith("ready\n")
    vemgr("stop", "--kill", name)
    assert not vemgr.show(name)["ready"]
    for made in ("said", "go"):
        (root / made).unlink()
    vemgr.assert_traces(before)


def test_an_init_that_does_not_say_so(vemgr, notifier):
    name, root = notifier
    failed = vemgr("start", "--wait", "--timeout", "1", name, code=133)
    assert f"VE {name} runs but has not said within 1 s that it is up" in failed.stderr
    assert vemgr.state_of(name) == "running"
    vemgr("stop", "--kill", name)
    (root / "end").touch()
    failed = vemgr("start", "--wait", name, code=133)
    assert f"VE {name} was started but has ended before it was up: exited with 4" in failed.stderr


def test_a_new_daemon_knows_who_is_up(vemgr, notifier):
    name, root = notifier
    vemgr("start", name)
    wait_for((root / "said").exists)
    vemgr.kill(vemgr.daemon_pid())
    assert not vemgr.show(name)["ready"]
    vemgr("exec", name, "--", "touch", "/go")
    wait_for(lambda: vemgr.show(name)["ready"])
    vemgr.kill(vemgr.daemon_pid())
    assert vemgr.show(name)["ready"]


def test_inits_that_cannot_say_it_are_up_at_once(vemgr, ve):
    vemgr("start", "--wait", "--timeout", "0", ve)
    assert vemgr.show(ve)["ready"]
    vemgr("stop", "--kill", ve)
