# SPDX-License-Identifier: GPL-2.0-or-later
"""The keeper under load, under a hostile VE, and started from an odd place."""

import os
import resource
import signal
import subprocess
import time

import pytest

from vemgr.api.client import RemoteError


@pytest.fixture(scope="module")
def own(make_instance):
    with make_instance() as instance:
        yield instance


def wait_for(condition, timeout=20):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it does not come to be"
        time.sleep(0.05)


def begin(client, ve, argv, **more):
    """A command whose end nobody here waits for; returns its pid."""
    null = os.open(os.devnull, os.O_RDWR)
    fds = [null, os.dup(null), os.dup(null)]
    command = {"argv": argv, "env": {}, "cwd": "", "user": "root", "tty": False, **more}
    try:
        reply = client.call("Exec", {"name": ve, "command": command, "stdio": [0, 1, 2]}, fds)
    finally:
        for fd in fds:
            os.close(fd)
    for fd in reply["descriptors"]:
        os.close(fd)
    return reply["pid"]


def test_a_stopped_daemon_loses_nothing(own):
    """More ends of commands than its socket takes: it has to hear of all of them, and must not believe the keeper
    dead, or it would kill every VE."""
    names = [own.create(), own.create()]
    own("start", *names)
    before = {ve["name"]: ve["pid"] for ve in own.json("list")}
    with own.client() as client:
        pids = [begin(client, names[number % 2], ["sleep", "1000"]) for number in range(400)]
    daemon, keeper = own.daemon_pid(), own.keeper_pid()
    os.kill(daemon, signal.SIGSTOP)
    try:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))
    finally:
        os.kill(daemon, signal.SIGCONT)
    assert {ve["name"]: ve["pid"] for ve in own.json("list")} == before
    assert (own.daemon_pid(), own.keeper_pid()) == (daemon, keeper)
    assert "keeper has ended" not in (own.run / "daemon.log").read_text()
    assert own.out("exec", names[0], "--", "hostname") == f"{names[0]}\n"
    own("destroy", "--force", *names)


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("flood", ["cat /dev/zero > /dev/console", "while :; do echo > /dev/console; done"])
def test_a_flood_on_the_console_costs_the_ve_and_not_the_keeper(own, flood):
    name = own.create("--init", f"sh -c '{flood}'")
    own("start", name)
    keeper = own.keeper_pid()
    time.sleep(0.5)
    began, used = time.monotonic(), cpu_seconds(keeper)
    time.sleep(3)
    assert (cpu_seconds(keeper) - used) / (time.monotonic() - began) < 0.1
    assert own.state_of(name) == "running"
    own("stop", "--kill", name)
    own("set", name, "--init", "sh -c 'seq 1 30000; echo the last word; exit 3'")
    own("start", name, code=None)
    wait_for(lambda: own.state_of(name) == "stopped")
    assert own.show(name)["console"].endswith("30000\nthe last word\n")
    own("destroy", name)


def test_commands_that_cannot_be(own):
    name = own.create()
    own("start", name)
    with own.client() as client:
        for env in ({"": "x"}, {"A=B": "x"}):
            with pytest.raises(RemoteError) as refused:
                begin(client, name, ["true"], env=env)
            assert refused.value.code == 21
        with pytest.raises(RemoteError) as refused:
            begin(client, name, ["echo", "\x01" * 60_000])
        assert refused.value.code == 21
        begin(client, name, ["true"])
    own("destroy", "--force", name)


def test_nothing_of_who_started_the_keeper_stays(make_instance):
    """The first command of an administrator starts it, from wherever he is."""
    def odd():
        os.setpriority(os.PRIO_PROCESS, 0, 7)
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        resource.setrlimit(resource.RLIMIT_CPU, (900, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_STACK, (4 << 20, resource.RLIM_INFINITY))
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("300")
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))

    with make_instance(template=False) as instance:
        subprocess.run(instance.command("list"), env=instance.environment(), check=True, timeout=60,
                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, preexec_fn=odd)
        keeper = instance.keeper_pid()
        assert os.sched_getaffinity(keeper) == os.sched_getaffinity(1)
        assert os.sched_getscheduler(keeper) == os.SCHED_OTHER
        assert resource.prlimit(keeper, resource.RLIMIT_CPU)[0] == resource.RLIM_INFINITY
        assert resource.prlimit(keeper, resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
        assert resource.prlimit(keeper, resource.RLIMIT_STACK)[0] == 8 << 20
        capable = capabilities_of_us()
        if capable >> 23 & 1:  # CAP_SYS_NICE
            assert os.getpriority(os.PRIO_PROCESS, keeper) == 0
        if capable >> 24 & 1:  # CAP_SYS_RESOURCE
            with open(f"/proc/{keeper}/oom_score_adj") as file:
                assert file.read() == "0\n"


def capabilities_of_us():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
