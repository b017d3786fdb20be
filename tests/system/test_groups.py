# SPDX-License-Identifier: GPL-2.0-or-later
"""Groups of VEs: limits that hold for all in them together, and guarantees that are kept beside a flood of others."""

from pathlib import Path

import pytest

MIB = 1 << 20
# Takes so many MiB, says so, and waits for the end of its input.
HOLD = "import sys; data = bytearray(b'x') * (int(sys.argv[1]) << 20); print('held', flush=True); sys.stdin.read()"


def options_of(settings):
    return [f"--{key.replace('_', '-')}={value}" for key, value in settings.items()]


class Groups:
    def __init__(self, vemgr):
        self.vemgr, self.made = vemgr, []

    def make(self, name, parent="", **settings):
        self.vemgr("group", "create", name, *(["--parent", parent] if parent else []), *options_of(settings))
        self.made.append(name)
        return name

    def set(self, name, status=0, **settings):
        return self.vemgr("group", "set", name, *options_of(settings), status=status)


@pytest.fixture
def groups(vemgr):
    found = Groups(vemgr)
    yield found
    for name in reversed(found.made):  # the VEs in them have gone: `make_ve` is to be named after this one
        vemgr("group", "remove", name)


def test_a_cpu_limit_is_that_of_all_in_the_group(groups, make_ve, burn, cpu_shares, figure, vemgr, until):
    groups.make("acme", cpus="0.5")
    ves = [make_ve("small", group="acme"), make_ve("large", group="acme", cpu_weight="300")]
    assert (ves[0].group.parent / "cpu.max").read_text() == "50000 100000\n"
    for ve in ves:
        burn(ve, 2)
    small, large = cpu_shares(ves, 10)
    figure(f"two busy VEs in a group with 0.5 CPUs got {small:.3f} + {large:.3f} = {small + large:.3f}")
    assert small + large == pytest.approx(0.5, rel=0.03)
    groups.set("acme", cpus="1")
    small, large = cpu_shares(ves, 5)
    figure(f"after its change to 1 CPU, {small + large:.3f}")
    assert small + large == pytest.approx(1, rel=0.05)
    # Somebody else writes to it: put right and told.
    (ves[0].group.parent / "cpu.max").write_text("max")
    until(lambda: (ves[0].group.parent / "cpu.max").read_text() == "100000 100000\n", what="put right")
    assert "group acme: cpu.max was max 100000" in vemgr("scheduler", "events").stdout


def test_a_memory_limit_hits_the_group_alone(groups, make_ve, vemgr):
    groups.make("acme", memory="96M")
    greedy = make_ve("greedy", template="host", group="acme")
    neighbour, alone = make_ve("neighbour", template="host", group="acme"), make_ve("alone", template="host")
    assert (greedy.group.parent / "memory.swap.max").read_text() == "0\n"
    bystander = alone.spawn("/usr/bin/python3", "-c", HOLD, "96", stdin=-1, stdout=-1)
    assert bystander.stdout.readline() == "held\n"
    modest = neighbour.spawn("/usr/bin/python3", "-c", HOLD, "16", stdin=-1, stdout=-1)
    assert modest.stdout.readline() == "held\n"
    assert greedy.exec("/usr/bin/python3", "-c", HOLD, "96", status=None).returncode == 128 + 9
    assert alone.table("memory.events")["oom_kill"] == 0 and bystander.poll() is None
    assert {ve["state"] for ve in vemgr.list().values()} == {"running"}
    # Shrunk while it is in use: nobody is killed, and what cannot be had is refused.
    kills = greedy.table("memory.events")["oom_kill"]
    assert "cannot be limited" in groups.set("acme", status=6, memory="8M").stderr
    assert (greedy.group.parent / "memory.max").read_text() == f"{96 * MIB}\n"
    assert greedy.table("memory.events")["oom_kill"] == kills and modest.poll() is None
    bystander.communicate("")
    modest.communicate("")


def test_a_cpu_guarantee_of_a_group_is_kept_beside_a_flood(groups, make_ve, burn, cpu_shares, figure, until, vemgr):
    groups.make("gold", cpu_guarantee="1")
    groups.make("flood", cpu_weight="10000")
    bad = [make_ve(f"bad{number}", group="flood", cpu_weight="10000") for number in range(3)]
    good = [make_ve(f"good{number}", group="gold") for number in range(2)]
    weight = good[0].group.parent / "cpu.weight"
    until(lambda: int(weight.read_text()) >= int((bad[0].group.parent / "cpu.weight").read_text()), what="weights")
    for ve in (*good, *bad):
        burn(ve, 2)
    shares = cpu_shares([*good, *bad], 10)
    got = sum(shares[:2])
    figure(f"group guaranteed 1 of 2 CPUs, beside one of weight 10000: {got:.3f} = {shares[0]:.3f} + {shares[1]:.3f}")
    assert got >= 0.97
    assert shares[0] == pytest.approx(shares[1], rel=0.1)
    refused = vemgr("set", "good0", "--cpu-guarantee", "1.5", status=36).stderr
    assert "group gold is guaranteed 1 CPU" in refused and "1 CPU would fit" in refused
    vemgr("set", "good0", "--cpu-guarantee", "0.75")
    assert "0.25 CPUs would fit" in vemgr("set", "good1", "--cpu-guarantee", "0.5", status=36).stderr
    assert vemgr.ask("CountFitting", cpus="0.25", memory="", group="gold")["count"] == 1


def test_a_memory_guarantee_of_a_group_is_kept_beside_a_flood(groups, make_ve, figure, until, vemgr):
    """The cache of a VE in a group that is guaranteed as much, in another group whose limit a third VE runs into."""
    groups.make("both", memory="160M")
    groups.make("gold", parent="both", memory_guarantee="64M")
    groups.make("flood", parent="both")
    good, bad = make_ve("good", group="gold"), make_ve("bad", group="flood")
    assert good.group.parent.parent == bad.group.parent.parent
    protected = (good.group.parent, good.group.parent.parent, good.group.parent.parent.parent)
    until(lambda: all(int((path / "memory.low").read_text()) == 64 * MIB for path in protected), what="protection")
    knobs = {knob["file"]: knob for knob in vemgr.ask("Explain", name="good")["knobs"]}
    assert {file: knob["value"] for file, knob in knobs.items()} == {
        file: knob["wanted"] for file, knob in knobs.items()}
    assert {"../memory.low", "../../memory.max"} <= set(knobs)

    def left():
        good.exec("sh", "-c", "cat /cache > /dev/null")
        before = good.table("memory.stat")["file"]
        # Read again and again, and so as much worth keeping as what is in the other VE.
        bad.exec("sh", "-c", "dd if=/dev/zero of=/flood bs=1M count=140 2>/dev/null; sync; "
                             "for n in 1 2 3 4 5 6; do cat /flood > /dev/null; done; rm /flood")
        return good.table("memory.stat")["file"] / before

    good.exec("sh", "-c", "dd if=/dev/zero of=/cache bs=1M count=40 2>/dev/null; sync")
    kept = left()
    groups.set("gold", memory_guarantee="0")
    until(lambda: (good.group.parent / "memory.low").read_text() == "0\n", what="no protection")
    lost = left()
    figure(f"of 40M of cache {kept:.0%} stayed with a group guarantee of 64M, {lost:.0%} without")
    assert kept >= 0.99
    assert lost < kept


def test_groups_outlive_the_daemon_and_go_with_their_ves(groups, make_ve, systemctl, vemgr, until):
    groups.make("acme", pids="100")
    ve = make_ve("web1", group="acme")
    group = ve.group.parent
    systemctl("restart", "vemgr")
    until(lambda: vemgr("list", status=None).returncode == 0, what="the daemon")
    assert Path(ve.show()["cgroup"]) == ve.group and ve.exec("echo", "alive").stdout == "alive\n"
    groups.set("acme", pids="50")
    assert (group / "pids.max").read_text() == "50\n"
    assert vemgr("limits", "verify", "web1", status=None).returncode == 0
    ve.destroy()
    assert not group.exists()
