# SPDX-License-Identifier: GPL-2.0-or-later
"""What must hold when something is killed, full, starved or repeated: nothing half-done, nothing left behind."""

import itertools
import os
import resource
import signal
import subprocess
import time

import pytest

from vemgr.api.client import RemoteError


@pytest.fixture
def own(make_instance):
    """An instance to be killed."""
    with make_instance() as instance:
        yield instance


def wait_for(condition, timeout=15):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it does not come to be"
        time.sleep(0.05)


def has_its_reply(process):
    """Whether the command line has heard that its command runs: from then on it passes signals on."""
    with open(f"/proc/{process.pid}/status") as file:
        caught = next(int(line.split()[1], 16) for line in file if line.startswith("SigCgt:"))
    return bool(caught >> (signal.SIGUSR1 - 1) & 1)


def states(instance):
    return {ve["name"]: ve["state"] for ve in instance.json("list")}


def test_kill_of_the_daemon(own):
    names = [own.create(name=name) for name in ("one", "two", "frozen", "dies", "stopped")]
    own("start", *names[:4])
    own("suspend", "frozen")
    pids = {ve["name"]: ve["pid"] for ve in own.json("list")}
    command = own.popen("exec", "one", "--", "sh", "-c", "echo ready; read line; echo $line; exit 6",
                        stdin=subprocess.PIPE)
    assert command.stdout.readline() == "ready\n"
    ephemeral = own.popen("run", "--template", "bb", "--name", "once", "--", "sh", "-c", "echo ready; read x; exit 5",
                          stdin=subprocess.PIPE)
    assert ephemeral.stdout.readline() == "ready\n"
    wait_for(lambda: has_its_reply(command) and has_its_reply(ephemeral))
    own.kill(own.daemon_pid())
    os.kill(pids["dies"], signal.SIGKILL)
    # An exec needs no daemon any more.
    assert command.communicate("still\n", timeout=10)[0] == "still\n"
    assert command.returncode == 6
    ephemeral.communicate("x\n", timeout=10)
    assert ephemeral.returncode == 5
    wait_for(lambda: states(own) == {"one": "running", "two": "running", "frozen": "suspended", "dies": "stopped",
                                     "stopped": "stopped"})
    assert {ve["name"]: ve["pid"] for ve in own.json("list")} == {**pids, "dies": 0}
    assert own.show("dies")["lastExit"] == "killed by signal 9"
    assert own.out("exec", "one", "--", "hostname") == "one\n"
    own("exec", "two", "--", "ping", "-c1", "-W2", own.show("one")["address"])
    own("resume", "frozen")
    assert own.out("stop", "one") == "one: clean\n"
    own("start", "one", "dies")
    own("destroy", "--force", *names)


def test_kill_of_the_daemon_again_and_again(own):
    """At any moment of a start: the VE runs or does not, and can be stopped and started afterwards."""
    name = own.create()
    for delay in (0.0, 0.01, 0.02, 0.03, 0.05, 0.08):
        daemon = own.daemon_pid()
        start = own.popen("start", name, stderr=subprocess.DEVNULL)
        time.sleep(0.07 + delay)  # what the command line itself needs
        own.kill(daemon)
        start.communicate(timeout=30)
        assert own.state_of(name) in ("running", "stopped")
        if own.state_of(name) == "running":
            own("exec", name, "--", "true")
            own("stop", "--kill", name)
        own("start", name)
        own("exec", name, "--", "true")
        own("stop", "--kill", name)
    assert own.cgroups() == [own.cgroup, f"{own.cgroup}/ve"]


def test_kill_of_the_keeper(own):
    name = own.create()
    before = own.cgroups(), own.links()
    own("start", name)
    pid = own.show(name)["pid"]
    command = own.popen("exec", name, "--", "sh", "-c", "echo ready; sleep 1000")
    assert command.stdout.readline() == "ready\n"
    wait_for(lambda: has_its_reply(command))
    own.kill(own.keeper_pid())
    assert "the keeper is gone" in command.communicate(timeout=20)[1]
    assert command.returncode == 3
    wait_for(lambda: states(own) == {name: "stopped"})
    wait_for(lambda: not os.path.exists(f"/proc/{pid}/ns/pid") or not os.listdir(f"/proc/{pid}/fd"))
    assert own.show(name)["lastExit"] == "ended with the keeper"
    wait_for(lambda: own.cgroups() == before[0])
    own("start", name)
    assert own.out("exec", name, "--", "hostname") == f"{name}\n"
    own("stop", "--kill", name)
    wait_for(lambda: (own.cgroups(), [link for link in own.links() if link.startswith("ve")]) == (before[0], []))


def test_a_start_waits_for_a_keeper_that_is_taken_up_again(own):
    name = own.create()
    own("start", name)
    keeper, daemon = own.keeper_pid(), own.daemon_pid()
    with own.client() as client:
        for _ in range(3):
            own.kill(own.keeper_pid())
            wait_for(lambda: own.state_of(name) == "stopped")  # and the command line has started another keeper
            client.call("Start", {"name": name})
    assert own.keeper_pid() != keeper and own.daemon_pid() == daemon
    assert own.state_of(name) == "running"


def test_kill_of_the_spawner(own):
    """VEs go on, and the next start does not fail for it."""
    name, other = own.create(), own.create()
    own("start", name)
    before = own.descriptors(own.keeper_pid())
    pid, spawner, keeper = own.show(name)["pid"], own.spawner_pid(), own.keeper_pid()
    own.kill(spawner)
    wait_for(lambda: len(own.descriptors(keeper)) < len(before))
    own("start", other)
    assert own.show(name)["pid"] == pid and own.keeper_pid() == keeper and own.spawner_pid() != spawner
    own("stop", "--kill", other)
    wait_for(lambda: own.descriptors(keeper) == before)


def test_kill_of_both(own):
    name = own.create()
    own("start", name)
    daemon, keeper = own.daemon_pid(), own.keeper_pid()
    own.kill(daemon)
    own.kill(keeper)
    assert states(own) == {name: "stopped"}
    wait_for(lambda: own.cgroups() == [own.cgroup, f"{own.cgroup}/ve"])
    own("start", name)
    own("exec", name, "--", "true")


def test_end_of_the_daemon_on_request(own):
    """A planned restart: SIGTERM, and the next command brings a new one."""
    name = own.create()
    own("start", name)
    pid, daemon = own.show(name)["pid"], own.daemon_pid()
    os.kill(daemon, signal.SIGTERM)
    wait_for(lambda: not os.path.exists(f"/proc/{daemon}/fd/0"))
    assert own.show(name)["pid"] == pid and own.daemon_pid() != daemon


def test_shutdown(own):
    names = [own.create(), own.create()]
    own("start", names[0])
    with own.client() as client, pytest.raises(RemoteError) as refused:
        client.call("Shutdown")
    assert refused.value.code == 32 and own.state_of(names[0]) == "running"
    own("shutdown")
    wait_for(lambda: own.links() == ["lo"] and own.cgroups() == [] and own.ruleset() == "")
    assert states(own) == {name: "stopped" for name in names}, "definitions are kept, a command starts all anew"
    own("start", *names)


def test_fifty_cycles_leave_nothing(own):
    def cycle(client, name):
        client.call("Create", {"name": name, "template": "bb", "settings": {}})
        client.call("Start", {"name": name})
        client.call("Stop", {"name": name})
        client.call("Destroy", {"name": name})

    def memory(pid):
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    with own.client() as client:
        for _ in range(3):
            cycle(client, "warm-up")
        before = own.traces()
        pids = own.daemon_pid(), own.keeper_pid()
        used = [memory(pid) for pid in pids]
        for number in range(50):
            cycle(client, f"cycle-{number % 7}")
            if number % 10 == 0:
                own("run", "--template", "bb", "--", "true")
        own.assert_traces(before)
        grown = [memory(pid) - size for pid, size in zip(pids, used, strict=True)]
    assert (own.daemon_pid(), own.keeper_pid()) == pids
    assert max(grown) < 8 << 20, "daemon or keeper grows"


def test_failed_execs_leave_nothing(own):
    name = own.create()
    own("start", name)
    own("exec", name, "--", "true")
    before = own.traces()
    for _ in range(10):
        own("exec", name, "--", "nope", code=127)
        own("exec", "-u", "nobody-here", name, "--", "true", code=126)
        own("exec", "-t", name, "--", "nope", code=127, input="")
    own.assert_traces(before)


# A full disk


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 12 MB for the state directory."""
    image, mountpoint = tmp_path / "image", tmp_path / "disk"
    mountpoint.mkdir()
    subprocess.run(["truncate", "-s", "12M", str(image)], check=True)
    made = subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", str(image)], capture_output=True)
    mounted = made.returncode == 0 and subprocess.run(["mount", "-o", "loop", str(image), str(mountpoint)],
                                                      capture_output=True).returncode == 0
    if not mounted:  # no loop devices here: a tmpfs can be full too
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "small", str(mountpoint)], check=True)
    yield mountpoint
    subprocess.run(["umount", str(mountpoint)], check=True)


def fill(directory):
    """Take every block; root's reserve too."""
    with open(directory / "filler", "wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError as error:
                assert error.strerror == "No space left on device"


def test_a_full_disk(make_instance, small_disk):
    with make_instance(small_disk / "state") as own:
        kept = own.create()
        own("start", kept)
        own("stop", "--kill", kept)
        never = own.create()
        definition = (own.state / "ve" / kept / "config.toml").read_text()
        fill(small_disk)
        before = own.files()
        assert "no space left" in own("create", "refused", "--template", "bb", code=46).stderr
        own("run", "--template", "bb", "--", "true", code=46)
        assert "no space left" in own("set", kept, "--description", "x" * 400, code=46).stderr
        own("start", never, code=46)
        tree = own.base / "more"
        (tree / "bin").mkdir(parents=True)
        (tree / "bin/big").write_bytes(os.urandom(1 << 20))
        own("template", "import", "refused", str(tree), code=46)
        assert own.files() == before, "something half-done"
        assert (own.state / "ve" / kept / "config.toml").read_text() == definition
        assert {ve["state"] for ve in own.json("list")} == {"stopped"}
        # A daemon that starts on a full disk serves, and a destroy makes room.
        own.kill(own.daemon_pid())
        assert set(states(own)) == {kept, never}
        own("destroy", never)
        (small_disk / "filler").unlink()
        own("set", kept, "--description", "there is room again")
        own("start", kept)
        own("exec", kept, "--", "true")
        own("destroy", "--force", kept)


# Operations of a start that fail


@pytest.mark.parametrize("whose", ["keeper", "spawner"])
def test_every_step_of_a_start_can_fail_for_want_of_descriptors(own, whose):
    """A limit on its descriptors makes the operations of the plan fail, one after another, as it is raised."""
    name = own.create()
    own("start", name)
    own("stop", "--kill", name)
    before = own.traces()
    keeper, daemon = own.keeper_pid(), own.daemon_pid()
    limited = keeper if whose == "keeper" else own.spawner_pid()
    soft, hard = resource.prlimit(limited, resource.RLIMIT_NOFILE)
    taken = {int(fd) for fd in os.listdir(f"/proc/{limited}/fd")}
    lowest = next(number for number in itertools.count() if number not in taken)
    failed = set()
    with own.client() as client:
        for limit in range(lowest, lowest + 80):
            resource.prlimit(limited, resource.RLIMIT_NOFILE, (limit, hard))
            try:
                client.call("Start", {"name": name})
            except RemoteError as error:
                assert error.code in (3, 7), error
                failed.add(error.facts.get("operation", error.identifier).split()[0])
                assert client.call("Show", {"name": name})["state"] == "stopped"
                assert own.cgroups() == before["cgroups"]
                continue
            client.call("Stop", {"name": name, "kill": True})
            break
        else:
            pytest.fail(f"it never starts: {failed}")
    resource.prlimit(limited, resource.RLIMIT_NOFILE, (soft, hard))
    assert (own.keeper_pid(), own.daemon_pid()) == (keeper, daemon), "no failure ends the keeper"
    assert len(failed) >= (1 if whose == "keeper" else 3), failed
    own.assert_traces(before)
    own("start", name)


def test_the_daemon_runs_out_of_descriptors(own):
    name = own.create()
    own("start", name)
    own("stop", "--kill", name)
    before = own.traces()
    daemon = own.daemon_pid()
    soft, hard = resource.prlimit(daemon, resource.RLIMIT_NOFILE)
    with own.client() as client:
        time.sleep(0.2)
        lowest = len(os.listdir(f"/proc/{daemon}/fd"))
        for limit in range(lowest, lowest + 40):
            resource.prlimit(daemon, resource.RLIMIT_NOFILE, (limit, hard))
            try:
                client.call("Start", {"name": name})
            except RemoteError as error:
                assert error.code in (3, 7, 12, 47), error
                assert "defect" not in str(error), error
                assert client.call("Show", {"name": name})["state"] == "stopped"
                continue
            client.call("Stop", {"name": name, "kill": True})
            break
        else:
            pytest.fail("it never starts")
        resource.prlimit(daemon, resource.RLIMIT_NOFILE, (soft, hard))
    assert own.daemon_pid() == daemon
    own.assert_traces(before)


def test_a_layer_that_cannot_be_shifted(vemgr, fresh):
    """proc has no id-mapped mounts: the first operation of the plan fails."""
    vemgr.import_busybox("unshiftable")
    rootfs = vemgr.state / "templates/unshiftable/rootfs"
    name = vemgr.create(template="unshiftable")
    vemgr("start", name)
    vemgr("stop", "--kill", name)
    before = vemgr.traces()
    subprocess.run(["mount", "--bind", "/proc", str(rootfs)], check=True)
    try:
        assert "layer index=0" in vemgr("start", name, code=7).stderr
    finally:
        subprocess.run(["umount", str(rootfs)], check=True)
    vemgr.assert_traces(before)
    vemgr("start", name)
    vemgr("destroy", "--force", name)
    vemgr("template", "remove", "unshiftable")


def test_a_data_directory_that_cannot_be_written(vemgr, ve):
    before = vemgr.traces()
    data = vemgr.state / "ve" / ve
    subprocess.run(["mount", "--bind", str(data), str(data)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(data)], check=True)
    try:
        assert "Read-only" in vemgr("start", ve, code=3).stderr
        assert "Read-only" in vemgr("set", ve, "--description", "x", code=3).stderr
    finally:
        subprocess.run(["umount", str(data)], check=True)
    vemgr.assert_traces(before)
    vemgr("start", ve)
