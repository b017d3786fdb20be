# SPDX-License-Identifier: GPL-2.0-or-later
"""How `vemgr compare` takes its samples: in turns, again where there was noise, and on where it was interrupted."""

import errno
import itertools
import os
import shutil
from types import SimpleNamespace

import pytest

from tests.unit.compare_stand_in import RESOURCES, Counting, Driver, header, stage
from vemgr.compare import campaign, comparison, drivers, keeping, progress, schema
from vemgr.compare.campaign import Campaign
from vemgr.compare.driver import Context
from vemgr.compare.keeping import Kept
from vemgr.compare.noise import Counters
from vemgr.compare.progress import Lines, Quiet, Terminal
from vemgr.compare.schedule import Task
from vemgr.compare.workloads import catalogue, crowd, kernel, lifecycle, manage
from vemgr.compare.workloads.probing import build_probe
from vemgr.compare.workloads.workload import ClockWrong, Probe, WorkFailed, figures_of
from vemgr.core.errors import BadValue, KernelLacks, Locked, NoSpace, NoTemplate, SystemFailure, TemplateNotFound

NOTHING = Probe("/bin/true", b"")


@pytest.fixture
def run(tmp_path):
    """Let stand-ins do works, each driver in a directory of its own; what was kept."""
    def do(works, names=("host", "ve"), *, resume=False, budget=float("inf"), clock=None, made=None, **options):
        kept = Kept(tmp_path / "out", resume=resume)
        try:
            made = made or {name: Driver(name) for name in names}
            if not resume:
                kept.begin(header(works, list(made), **options))
            stages = {name: stage(driver, NOTHING, tmp_path / name) for name, driver in made.items()}
            more = {"clock": clock} if clock else {}
            Campaign(kept.header, {work.name: work for work in works}, stages, kept, Quiet(), budget, **more).run()
            return kept.lines
        finally:
            kept.close()
    do.directory = tmp_path / "out"
    return do


@pytest.fixture
def quiet(monkeypatch):
    """A host on which nobody else works."""
    monkeypatch.setattr(campaign, "counters", lambda: Counters(0.0, 100, 0, 0, 0, 0))


def noisy(monkeypatch, *shares):
    """A host whose hypervisor takes these shares of the runs, then nothing."""
    stolen = itertools.chain.from_iterable(((0, 0), (round(share * 100), 100)) for share in shares)
    monkeypatch.setattr(campaign, "counters", lambda: Counters(0.0, *reversed(next(stolen, (0, 0))), 0, 0, 0))


def test_all_take_turns_and_the_first_round_does_not_count(run, quiet):
    work = Counting(rounds=3)
    lines = run([work])
    assert [line.round for line in lines] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert all({one, other} == {"host", "ve"} for one, other in zip(work.done[::2], work.done[1::2], strict=True))
    assert [line.counts for line in lines] == [False] * 2 + [True] * 6


def test_a_disturbed_run_is_done_again_a_bounded_number_of_times(run, monkeypatch):
    noisy(monkeypatch, 0, 0.5, 0.5, 0, 0.5, 0.5, 0.5, 0)
    lines = run([Counting(rounds=3, values=range(1, 99))], ["ve"])
    assert [(line.round, line.attempt, bool(line.invalid), line.values["count"]) for line in lines] == [
        (0, 1, False, 1), (1, 1, True, 2), (1, 2, True, 3), (1, 3, False, 4),
        (2, 1, True, 5), (2, 2, True, 6), (2, 3, True, 7), (3, 1, False, 8)]
    assert lines[1].invalid == "steal 50%"


def test_a_quick_run_goes_on_to_the_next_round_instead(run, monkeypatch):
    noisy(monkeypatch, 0, 0.5, 0, 0.5)
    lines = run([Counting(rounds=3)], ["ve"], quick=True)
    assert [(line.round, line.attempt, bool(line.invalid)) for line in lines] == [
        (0, 1, False), (1, 1, True), (2, 1, False), (3, 1, True)]


def test_a_quick_run_does_not_begin_what_it_could_not_end(run, quiet):
    """A work with instances of its own, of which only the time of a start is known."""
    now = [0.0]

    class Slow(Counting):
        def measure(self, stage):
            now[0] += 10
            return super().measure(stage)

    works = [Slow("start", rounds=1), Slow("consolidation", rounds=1)]
    for budget, done in ((59, []), (61, ["ve"])):
        now[0] = 0.0
        works[1].done.clear()
        shutil.rmtree(run.directory, ignore_errors=True)
        run(works, ["ve"], quick=True, budget=budget, clock=lambda: now[0])
        assert works[1].done == done


def test_what_cannot_be_done_is_left_out_with_its_reason_and_the_rest_goes_on(run, quiet):
    able, unable = Counting("able", rounds=1), Counting("unable", rounds=1, missing="no such program")
    lines = run([able, unable], ["ve"])
    assert [line for line in lines if isinstance(line, schema.Absent)] == [
        schema.Absent(workload="unable", driver="ve", why="no such program")]
    assert unable.done == [] and able.done == ["ve", "ve"]


def test_a_failure_is_kept_and_the_third_one_ends_it_for_this_pair(run, quiet):
    failing = Counting(rounds=5, values=[WorkFailed("bad luck"), 1.0, OSError(errno.EIO, "no disk"),
                                         WorkFailed("bad luck")])
    lines = run([failing], ["ve"])
    assert [getattr(line, "error", "absent") for line in lines] == ["bad luck", "", "[Errno 5] no disk", "bad luck",
                                                                    "absent"]
    assert "failed 3 times, the last time so: bad luck" in lines[-1].why


def test_a_failed_work_gets_a_new_instance(run, quiet, tmp_path):
    driver = Driver("ve")
    run([Counting(rounds=2, values=[1.0, WorkFailed("it is gone"), 1.0])], made={"ve": driver})
    assert driver.started == 2


def test_an_interrupted_run_goes_on_where_it_was(run, quiet):
    works = [Counting("a", rounds=2), Counting("b", rounds=2, values=[1.0, 1.0, 1.0, KeyboardInterrupt()])]
    with pytest.raises(KeyboardInterrupt):
        run(works)
    again = [Counting("a", rounds=2), Counting("b", rounds=2)]
    lines = run(again, resume=True)
    counted = sorted((line.workload, line.driver, line.round) for line in lines if line.counts)
    assert counted == sorted((work, driver, number) for work in "ab" for driver in ("host", "ve")
                             for number in (1, 2))


def test_what_was_left_out_is_not_tried_again(run, quiet):
    run([Counting(missing="no", rounds=1)], ["ve"])
    again = Counting(rounds=1)
    assert len(run([again], ["ve"], resume=True)) == 1 and again.done == []


def test_a_budget_ends_the_counted_rounds(run, quiet):
    ticks = itertools.count()
    lines = run([Counting(rounds=1000)], ["ve"], budget=60, clock=lambda: float(next(ticks)))
    assert 5 < len(lines) < 40


# keeping

def test_a_torn_line_is_cut_off_before_the_next_is_written(run, quiet, tmp_path):
    run([Counting(rounds=2)], ["ve"])
    path = tmp_path / "out" / keeping.SAMPLES
    path.write_bytes(path.read_bytes()[:-7])
    lines = run([Counting(rounds=2)], ["ve"], resume=True)
    assert schema.parse_lines(path.read_bytes(), "x")[1] == lines
    assert [line.round for line in lines if line.counts] == [1, 2]


def test_directories_that_will_not_do(tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(BadValue, match=r"not empty.*--resume"):
        Kept(tmp_path / "full", resume=False)
    with pytest.raises(BadValue, match="nothing in it to resume"):
        Kept(tmp_path / "full", resume=True)
    with pytest.raises(SystemFailure, match="Not a directory"):
        Kept(tmp_path / "full/file/below", resume=False)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=1, f_frsize=1 << 20))
    with pytest.raises(NoSpace, match=r"has 1 MiB left.*--output"):
        Kept(tmp_path / "new", resume=False)


def test_two_do_not_write_to_one_directory(tmp_path):
    first = Kept(tmp_path / "out", resume=False)
    first.begin(header([Counting()], ["ve"]))
    with pytest.raises(Locked):
        Kept(tmp_path / "out", resume=True)
    first.close()
    Kept(tmp_path / "out", resume=True).close()


def test_a_disk_that_gets_full_is_said_and_no_sample_is_half_there(run, quiet, tmp_path, monkeypatch):
    real = os.fdatasync

    def full(fd, calls=itertools.count()):  # noqa: B008  (one counter for all calls)
        if next(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(fd)

    monkeypatch.setattr(keeping.os, "fdatasync", full)
    with pytest.raises(NoSpace, match=r"no space left for .*samples\.jsonl"):
        run([Counting(rounds=9)], ["ve"])
    assert len(schema.parse_lines((tmp_path / "out" / keeping.SAMPLES).read_bytes(), "x")[1]) == 3


# from beginning to end

@pytest.fixture
def stand_ins(monkeypatch):
    made = {"host": Driver("host"), "ve": Driver("ve"), "gone": Driver("gone", why="it is not installed")}
    monkeypatch.setattr(drivers, "NAMES", tuple(made))
    monkeypatch.setattr(drivers, "driver", lambda name, context: made[name])
    return made


def wish(tmp_path, **options):
    return comparison.Wish(**{"output": tmp_path / "out", "resources": RESOURCES, "repeat": 2, "noise": 1.0, **options})


def do(tmp_path, asked):
    return comparison.compare(asked, Context(tmp_path / "state", "", "bb"), tmp_path, Quiet())


@pytest.fixture
def gcc():
    if shutil.which("gcc") is None:
        (pytest.fail if os.environ.get("VEMGR_MUST_WORK") else pytest.skip)("gcc is not installed")


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "_IN_INSTANCES", str(tmp_path / "in"))


def test_a_whole_comparison(gcc, in_tmp_path, stand_ins, tmp_path):
    names = ("start", "density", "syscall", "switch", "exec", "float", "sequential", "random-read", "fsync", "request",
             "stream")
    found = do(tmp_path, wish(tmp_path, workloads=names, repeat=1))
    assert found.complete
    assert [column.why for column in found.header.columns] == ["", "", "it is not installed"]
    for _, figure in found.figures():
        if figure.name in ("density.host", "density.per-gib"):
            continue  # these instances are nothing that a host pays for
        assert len(found.values(figure.name, "ve")) == 1, (figure, found.absent, found.samples)
        assert found.values(figure.name, "ve")[0] > 0 or figure.unit == schema.FACT
    assert {(line.workload, line.driver) for line in found.absent} == {("start", "host"), ("density", "host")}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "report.html", "report.json", "report.txt", "samples.jsonl"]
    assert schema.decode((tmp_path / "out/report.json").read_bytes(), "x") == found
    assert all(driver.closed and not driver.instances for driver in stand_ins.values())


def test_a_quick_run_leaves_out_what_takes_long_unless_it_is_named(tmp_path):
    assert list(wish(tmp_path).columns()) == list(drivers.NAMES)
    assert set(drivers.NAMES) - set(wish(tmp_path, quick=True).columns()) == {"ve-in-guest", "ves-in-guest"}
    assert wish(tmp_path, quick=True, drivers=("ve-in-guest",)).columns() == ("ve-in-guest",)


def test_reports_are_written_when_it_is_interrupted(gcc, in_tmp_path, stand_ins, tmp_path, monkeypatch):
    work = Counting("syscall", values=[1.0, 1.0, 1.0, KeyboardInterrupt()], rounds=5)
    monkeypatch.setattr(comparison, "chosen", lambda names, quick: [work])
    with pytest.raises(KeyboardInterrupt):
        do(tmp_path, wish(tmp_path, repeat=5))
    found = schema.decode((tmp_path / "out/report.json").read_bytes(), "x")
    assert len(found.samples) == 3 and not found.complete
    assert "NOT COMPLETE" in (tmp_path / "out/report.txt").read_text()
    assert all(driver.closed and not driver.instances for driver in stand_ins.values())
    assert do(tmp_path, wish(tmp_path, resume=True)).complete


def test_without_any_driver_there_is_nothing_to_compare(stand_ins, tmp_path):
    with pytest.raises(KernelLacks, match="gone: it is not installed"):
        do(tmp_path, wish(tmp_path, drivers=("gone",)))
    with pytest.raises(BadValue, match=r"vmware.*host, ve, gone"):
        do(tmp_path, wish(tmp_path, drivers=("vmware",)))


def test_a_driver_that_cannot_get_ready_does_not_stop_the_others(gcc, in_tmp_path, stand_ins, tmp_path):
    def prepare(root, resources, directory):
        raise SystemFailure("the image cannot be built")

    stand_ins["ve"].prepare = prepare
    found = do(tmp_path, wish(tmp_path, workloads=("syscall",)))
    assert [column.why for column in found.header.columns] == ["", "the image cannot be built", "it is not installed"]
    assert len(found.values("syscall", "host")) == 2


@pytest.mark.parametrize(("names", "wanted", "chosen"), [
    (["bb"], "", "bb"), (["bb", "deb"], "deb", "deb"), ([], "", NoTemplate), (["bb", "deb"], "", NoTemplate),
    (["bb"], "deb", TemplateNotFound), (["bb"], "host", BadValue)])
def test_which_template(names, wanted, chosen):
    there = [{"name": "host", "kind": "host"}, *({"name": name, "kind": "archive"} for name in names)]
    if isinstance(chosen, str):
        assert comparison.choose_template(there, wanted) == chosen
    else:
        with pytest.raises(chosen):
            comparison.choose_template(there, wanted)


# works and the probe

def test_a_program_that_the_template_lacks_is_named(tmp_path):
    made = stage(Driver(), NOTHING, tmp_path)
    lacking = next(work for work in catalogue.ALL if work.name == "redis")
    made.lacks(["sh"])
    made._has |= {"redis-server": "/bin/redis-server", "redis-cli": "", "redis-benchmark": ""}
    assert lacking.missing(made) == "the template has no redis-cli and no redis-benchmark"


def test_where_programs_are(tmp_path):
    made = stage(Driver(), NOTHING, tmp_path)
    assert made.lacks(["sh", "no-such-program", "cat"]) == "the template has no no-such-program"
    assert made.where("sh").endswith("/sh") and made.where("cat").endswith("/cat")


def test_a_probe_that_fails_says_how(gcc, tmp_path):
    made = stage(Driver(), build_probe(tmp_path), tmp_path / "in")
    for words, says in ((("quake",), "no such work"), (("random-read", "/no/file", "1"), "No such file"),
                        (("syscall-", ), "no such work")):
        with pytest.raises(WorkFailed, match=says):
            made.probe(made.shared(), *words)
    with pytest.raises(WorkFailed, match="not what the probe prints"):
        figures_of(b"what is this\n")


def test_a_wrong_clock_is_found(tmp_path):
    script = b"#!/bin/sh\necho elapsed 5000000000\necho ns 1\n"
    made = stage(Driver(), Probe("/bin/true", script), tmp_path)
    with pytest.raises(ClockWrong, match=r"5.00 s of its own"):
        kernel.WORKS[0].measure(made)


def test_without_a_compiler_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemFailure, match=r"no gcc.*install gcc"):
        build_probe(tmp_path / "new")


# what one sees meanwhile

class Screen:
    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_a_terminal_has_one_line_that_changes(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    screen = Screen()
    shown = Terminal(screen)
    shown.at(Task(0, "syscall", "host"), 0, 4, 3700)
    shown.at(Task(2, "syscall", "kvm-virtio"), 2, 4, 59.6)
    shown.say("something happened")
    first, second, last = screen.text.split("\r\x1b[K")[1:]
    assert first == "[                    ] 0/4, 1:01:40 left: warm-up, syscall "
    assert second == "[##########          ] 2/4, 1:00 left: round 2, syscall in "
    assert last == "something happened\n"


def test_a_pipe_has_a_line_for_each_round():
    screen = Screen()
    shown = Lines(screen)
    for number in (0, 0, 1, 1):
        shown.at(Task(number, "a", "b"), number, 9, 61)
    assert screen.text == "0/9, 1:01 left: warm-up, a in b\n1/9, 1:01 left: round 1, a in b\n"
    assert progress.clock(-1) == "0:00"


@pytest.mark.parametrize(("given_back", "known"), [(12, True), (10, True), (5, False), (30, False)])
def test_memory_that_others_took_is_not_an_instances(tmp_path, monkeypatch, given_back, known):
    """12 instances take 12 MiB; what comes back when they go tells whether it was theirs."""
    free = [1 << 30]

    class Costly(Driver):
        def start(self, name, resources):
            instance = super().start(name, resources)
            free[0] -= 1 << 20
            real = instance.stop

            def stop():
                free[0] += (given_back << 20) // 12
                return real()
            instance.stop = stop
            return instance

    monkeypatch.setattr(lifecycle, "available", lambda: free[0])
    monkeypatch.setattr(lifecycle, "_PATIENCE", 0.1)
    found = lifecycle.Density().measure(stage(Costly(), NOTHING, tmp_path))
    assert found["density.memory"] == 1.0 and found["density.disk"] == pytest.approx(4096 / (1 << 20))
    assert (found.get("density.host"), found.get("density.per-gib")) == ((1.0, 1024.0) if known else (None, None))
    warm = Costly()
    warm.warm = "a guest that runs already"  # its memory would be another's: it keeps what it has
    assert "density.host" not in lifecycle.Density().measure(stage(warm, NOTHING, tmp_path))


def test_systems_below_the_instances_are_to_be_updated_as_well(tmp_path, monkeypatch):
    monkeypatch.setattr(manage, "_in_each", lambda stage, instances: {})
    driver = Driver()
    assert manage.Update().measure(stage(driver, NOTHING, tmp_path / "a")) == {
        "update.kernels": 1.0, "update.systems": 4.0}
    driver.systems_below = lambda count: count
    assert manage.Update().measure(stage(driver, NOTHING, tmp_path / "b"))["update.systems"] == 8.0


@pytest.mark.parametrize("has_gzip", [True, False])
def test_the_probe_gets_into_templates_with_and_without_gzip(tmp_path, has_gzip):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sh", "mkdir", "cat", "chmod", *(["gzip"] * has_gzip)):
        (programs / name).symlink_to(shutil.which(name))
    content = b"#!/bin/sh\necho elapsed 1\necho ns 4\n" * 100_000

    class Poor(Driver):
        def start(self, name, resources):
            instance = super().start(name, resources)
            real = instance.run
            instance.run = lambda argv, **rest: real(["env", f"PATH={programs}", *argv], **rest)
            return instance

    made = stage(Poor(), Probe("/bin/true", content), tmp_path / "in")
    made.shared()
    assert (tmp_path / "in/probe").read_bytes() == content


def test_a_bad_neighbour_that_is_not_there_is_no_isolation(gcc, tmp_path, monkeypatch):
    monkeypatch.setattr(crowd, "_SECONDS", "0.05")
    monkeypatch.setattr(crowd, "STRESSORS", {"fork": "", "disk": ""})
    probe = build_probe(tmp_path)
    work = crowd.Isolation()
    found = work.measure(stage(Driver(), probe, tmp_path / "in"))
    assert set(found) == {"isolation.fork", "isolation.disk"} and min(found.values()) > 0
    monkeypatch.setattr(crowd, "_aim", lambda stage, kind: "/no/such/directory/file")
    monkeypatch.setattr(crowd, "STRESSORS", {"disk": ""})
    with pytest.raises(WorkFailed, match="the stressor has ended"):
        work.measure(stage(Driver(), probe, tmp_path / "other"))
