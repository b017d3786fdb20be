# SPDX-License-Identifier: GPL-2.0-or-later
"""Events: the ring, the files, readers that are slow, and counters that VEs drive up."""

import asyncio
from itertools import pairwise

import pytest

from vemgr.core.events import RING_SIZE, VE_SHARE, Event, Kind, Ring
from vemgr.runtime import counters, journal
from vemgr.runtime.counters import Counters
from vemgr.runtime.journal import Journal
from vemgr.runtime.observing import strain
from vemgr.runtime.observing.strain import Strain


def run(work):
    return asyncio.run(asyncio.wait_for(work, 20))


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def all_of(found, ve="", since=0.0):
    return [event async for events in found.read(ve, since, follow=False) for event in events]


def test_a_noisy_ve_does_not_push_out_the_others():
    ring = Ring()
    ring.put(Event(1, 1.0, "created", "quiet"))
    for number in range(2, 10 * RING_SIZE):
        ring.put(Event(number, 1.0, "rebooted", "noisy"))
    left = ring.after(0)
    assert left[0].ve == "quiet" and len(left) == 1 + VE_SHARE
    assert all(one.number < other.number for one, other in pairwise(left))


def test_the_ring_is_bounded_with_any_number_of_ves():
    ring = Ring(size=10, share=5)
    for number in range(1, 1000):
        ring.put(Event(number, 1.0, "created", f"ve{number}"))
    assert [event.number for event in ring.after(0)] == list(range(990, 1000))
    assert [event.number for event in ring.after(997)] == [998, 999]
    assert len(ring._of) == 10


def test_the_next_daemon_knows_what_was(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "_FLUSH", 0.01)

    async def first():
        found = Journal(str(tmp_path))
        found.add(Kind.CREATED, "web1", "from template host")
        found.add(Kind.PIDS_MAX, "web1", count=7)
        await until((tmp_path / "events.log").exists)
        return await all_of(found)

    before = run(first())
    with open(tmp_path / "events.log", "a") as file:
        file.write('{"number":3,"ti\n[]\n{"number":"x"}\n')

    async def second():
        found = Journal(str(tmp_path))
        assert await all_of(found) == before
        found.add(Kind.STARTED, "web1")
        found.flush()
        return [event.number for event in await all_of(found)]

    assert run(second()) == [1, 2, 3 + journal._LEAP]
    assert [event.count for event in before] == [1, 7]


def test_the_files_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "_FILE_BOUND", 1000)

    async def story():
        found = Journal(str(tmp_path))
        for _ in range(200):
            found.add(Kind.SET, "web1")
            found.flush()

        return found._ring.last

    last = run(story())
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2500
    assert Journal(str(tmp_path))._ring.last == last + journal._LEAP == 200 + journal._LEAP


def test_a_full_disk_fails_nothing(tmp_path, caplog):
    async def story():
        found = Journal(str(tmp_path / "missing"))
        found.add(Kind.CREATED, "web1")
        found.flush()
        return await all_of(found)

    assert len(run(story())) == 1
    assert "not kept" in caplog.text


def test_who_reads_too_slowly_is_told_how_much_is_missing():
    async def story():
        found = Journal()
        found.add(Kind.CREATED, "web1")
        reader = found.read("", 0.0, follow=True)
        assert [event.kind for event in await anext(reader)] == ["created"]
        for number in range(2 * RING_SIZE):
            found.add(Kind.SET, f"ve{number}")
        (gap,) = await anext(reader)
        assert (gap.kind, gap.count) == ("gap", RING_SIZE)
        seen = []
        while len(seen) < RING_SIZE:
            seen += await anext(reader)
        assert seen[-1].number == 2 * RING_SIZE + 1
        await reader.aclose()

    run(story())


def test_who_goes_on_with_the_next_daemon_misses_nothing_and_hears_nothing_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "_FLUSH", 0.0)

    async def follow(found, after, heard):
        async for events in found.read("", 0.0, follow=True, after=after):
            heard += [(event.kind, event.ve) for event in events]
            after = events[-1].number
        return after

    async def story():
        first, heard = Journal(str(tmp_path)), []
        for number in range(3):
            first.add(Kind.CREATED, f"a{number}")
        first.flush()
        reading = asyncio.get_running_loop().create_task(follow(first, 0, heard))
        await until(lambda: len(heard) == 3)
        first._path = ""  # killed: what comes now is told, and not written down
        first.add(Kind.STARTED, "a0")
        await until(lambda: len(heard) == 4)
        first.end()
        after = await reading
        second = Journal(str(tmp_path))
        second.add(Kind.STOPPED, "a0")  # while nobody is connected
        reading = asyncio.get_running_loop().create_task(follow(second, after, heard))
        await until(lambda: len(heard) == 5)
        second.add(Kind.DESTROYED, "a0")
        await until(lambda: len(heard) == 6)
        second.end()
        await reading
        assert heard == [("created", "a0"), ("created", "a1"), ("created", "a2"), ("started", "a0"),
                         ("stopped", "a0"), ("destroyed", "a0")]
        anew = Journal(str(tmp_path / "none"))
        anew.add(Kind.CREATED, "b")
        assert [event.ve for event in await all_of(anew)] == ["b"]
        assert [event.ve async for events in anew.read("", 0.0, follow=False, after=99) for event in events] == ["b"]

    run(story())


def test_who_follows_hears_at_once_and_of_the_ve_asked_for():
    async def story():
        found = Journal()
        reader = found.read("web1", 0.0, follow=True)
        waiting = asyncio.ensure_future(anext(reader))
        await asyncio.sleep(0)
        found.add(Kind.STARTED, "other")
        await asyncio.sleep(0)
        found.add(Kind.STARTED, "web1")
        assert [event.ve for event in await waiting] == ["web1"]
        await reader.aclose()

    run(story())


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(counters, "_DELAY", 0.01)
    monkeypatch.setattr(counters, "_REST", 0.05)


def write(directory, **events):
    directory.mkdir(exist_ok=True)
    (directory / "pids.events").write_text(f"max {events.pop('pids', 0)}\n")
    (directory / "memory.events").write_text(
        "low 0\n" + "".join(f"{key} {events.get(key, 0)}\n" for key in ("high", "max", "oom", "oom_kill")))


def test_what_the_kernel_counts_becomes_events(tmp_path, quick):
    """On files of a disk, whose changes inotify tells as it does those of cgroups."""
    ve = tmp_path / "web1"

    async def story():
        found = Journal()
        watched = Counters(found)
        watched.open()
        write(ve, pids=2)  # before it was watched
        watched.begin("web1", str(ve))
        await until(lambda: found._ring.last == 1)
        write(ve, pids=1000, max=3, oom=1, oom_kill=1)
        await until(lambda: sum(event.count for event in found._ring.after(0)) >= 1005)
        (ve / "pids.events").write_text("max 1001\n")
        watched.end("web1")
        watched.close()
        return await all_of(found)

    events = run(story())
    totals = {kind: sum(event.count for event in events if event.kind == kind) for kind in {e.kind for e in events}}
    assert totals == {"pids-max": 1001, "memory-max": 3, "oom": 1, "oom-kill": 1}
    assert {event.ve for event in events} == {"web1"}


def test_a_flood_is_a_few_events(tmp_path, quick):
    ve = tmp_path / "web1"

    async def story():
        found = Journal()
        watched = Counters(found)
        watched.open()
        write(ve)
        watched.begin("web1", str(ve))
        await until(lambda: watched._watches)
        loop = asyncio.get_running_loop()
        began, number = loop.time(), 0
        while loop.time() < began + 0.5:
            number += 1
            (ve / "pids.events").write_text(f"max {number}\n")
            await asyncio.sleep(0)
        watched.end("web1")
        watched.close()
        return number, await all_of(found)

    number, events = run(story())
    assert sum(event.count for event in events) == number
    assert len(events) <= 0.5 / 0.05 + 3 < number


def test_an_adopted_ve_is_not_told_anew_and_no_controller_is_no_error(tmp_path, quick, caplog):
    async def story():
        found = Journal()
        watched = Counters(found)
        watched.open()
        write(tmp_path / "old", pids=5)
        (tmp_path / "bare").mkdir()
        watched.begin("old", str(tmp_path / "old"), adopted=True)
        watched.begin("bare", str(tmp_path / "bare"))
        watched.begin("gone", str(tmp_path / "gone"))
        watched.end("gone")
        await until(lambda: watched._watches)
        for ve in ("old", "bare"):
            watched.end(ve)
        assert not watched._watches and not watched._numbers and not watched._seen
        watched.close()
        return await all_of(found)

    assert run(story()) == []
    assert caplog.text == ""


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A cgroup tree that is made up: the kernel's triggers are tried in the kernel ring."""
    monkeypatch.setattr(strain, "_REST", 0.01)
    for ve in ("a", "b"):
        (tmp_path / ve).mkdir()
        for kind in ("cpu", "memory", "io"):
            put_pressure(tmp_path, ve, kind, 0.0)
    return tmp_path


def put_pressure(base, ve, kind, average):
    new = base / ve / "new"
    new.write_text(f"some avg10={average:.2f} avg60=0.00 avg300=0.00 total=1\nfull avg10=99.00\n")
    new.rename(base / ve / f"{kind}.pressure")


def test_pressure_is_told_once_until_it_has_gone(base):
    async def story():
        found = Journal()
        watched = Strain(found, lambda: {ve: f"{base}/{ve}" for ve in ("a", "b", "ended")})
        watched._left = {"memory": 1, "cpu": 1}
        put_pressure(base, "a", "memory", 12.0)
        put_pressure(base, "b", "cpu", 39.0)  # who shares CPUs waits
        looking = asyncio.get_running_loop().create_task(watched._look_until_calm())
        await until(lambda: found._ring.last == 1)
        for average in (7.0, 12.0):  # less, but not gone
            put_pressure(base, "a", "memory", average)
            await asyncio.sleep(0.05)
        put_pressure(base, "a", "memory", 3.0)
        await asyncio.wait_for(looking, 10)  # calm: nobody looks any more
        watched._left = {"memory": 1}
        put_pressure(base, "a", "memory", 30.0)
        looking = asyncio.get_running_loop().create_task(watched._look_until_calm())
        await until(lambda: found._ring.last == 2)
        looking.cancel()
        assert [(event.kind, event.ve, event.detail) for event in await all_of(found)] == [
            ("memory-pressure", "a", "some waited 12% of the last 10 s"),
            ("memory-pressure", "a", "some waited 30% of the last 10 s")]

    run(story())


def test_a_kernel_without_pressure_is_no_error(tmp_path, caplog):
    async def story():
        watched = Strain(Journal(), dict)
        watched.open(str(tmp_path))
        watched.close()

    run(story())
    assert caplog.text == ""
