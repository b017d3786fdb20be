# SPDX-License-Identifier: GPL-2.0-or-later
"""`vemgr events`, and the kernel telling that a file of a cgroup has changed."""

import json
import os
import secrets

import pytest

from tests.kernel.conftest import eventually
from vemgr.kernel.cgroups import cgroup2_mountpoint
from vemgr.kernel.inotify import Inotify


def kinds(vemgr, *arguments):
    lines = vemgr.out("events", "--json", *arguments).splitlines()
    return [(event["kind"], event["detail"]) for event in map(json.loads, lines)]


def test_a_life(fresh):
    ve = fresh.create()
    fresh("start", ve)
    fresh("suspend", ve)
    fresh("resume", ve)
    fresh("set", ve, "--description", "x")
    fresh("stop", "--kill", ve)
    fresh("start", ve)
    os.kill(fresh.show(ve)["pid"], 9)
    eventually(lambda: kinds(fresh, ve)[-1][0] == "crashed", "its end is not told")
    fresh("destroy", ve)
    found = kinds(fresh, ve)
    assert [kind for kind, _ in found] == ["created", "started", "suspended", "resumed", "set", "stopped", "started",
                                           "crashed", "destroyed"]
    told = dict(found)
    assert (told["created"], told["set"], told["stopped"], told["crashed"]) == (
        "from template bb", "description", "killed: on request", "killed by signal 9")
    assert fresh.out("events", "--since", "2020-01-01", ve).splitlines()[0].endswith(f"{ve}  created  from template bb")
    assert fresh.out("events", "--since", "2999-01-01") == ""
    assert "--since" in fresh("events", "--since", "soon", code=20).stderr


def test_following_goes_on_with_the_next_daemon_until_the_shutdown(make_instance):
    with make_instance() as own:
        ve = own.create()
        follower = own.popen("events", "--follow", "--json")
        try:
            assert json.loads(follower.stdout.readline())["kind"] == "created"
            own("start", ve)
            assert json.loads(follower.stdout.readline())["kind"] == "started"
            before = eventually(lambda: (own.run / "events.log").exists() and kinds(own, ve), "not written")
            eventually(lambda: (own.run / "events.log").read_text().count("\n") == len(before), "not all is written")
            own.kill(own.daemon_pid())
            assert kinds(own, ve) == before  # of the next one
            own("stop", "--kill", ve)
            own("destroy", ve)
            assert [json.loads(follower.stdout.readline())["kind"] for _ in range(2)] == ["stopped", "destroyed"]
            own("shutdown")
            rest, told = follower.communicate(timeout=30)
            assert (rest, follower.returncode) == ("", 0) and "going on" in told
        finally:
            follower.kill()
            follower.communicate()
        assert [kind for kind, _ in kinds(own, ve)] == ["created", "started", "stopped", "destroyed"]


def test_followers_that_go_leave_nothing(vemgr):
    vemgr("list")
    before = len(vemgr.descriptors(vemgr.daemon_pid()))
    for _ in range(3):
        with vemgr.client() as client:
            next(client.stream("WatchEvents", {"follow": True}))
    eventually(lambda: len(vemgr.descriptors(vemgr.daemon_pid())) <= before, "the daemon keeps their connections")


@pytest.mark.usefixtures("can_run_ves")
def test_the_kernel_tells_of_a_change_in_a_cgroup():
    path = f"{cgroup2_mountpoint()}/vemgr-test-{secrets.token_hex(3)}"
    os.mkdir(path)
    watch = Inotify()
    try:
        number = watch.add(f"{path}/cgroup.events")
        assert watch.changed() == set()
        with open(f"{path}/cgroup.freeze", "w") as file:
            file.write("1")
        assert eventually(watch.changed, "nothing was told") == {number}
        watch.remove(number)
    finally:
        watch.close()
        os.rmdir(path)
