# SPDX-License-Identifier: GPL-2.0-or-later
"""Beancounters: rows from readings, files of a made-up cgroup tree, disks that do not answer, maxima that stay."""

import asyncio
import threading

import pytest

from vemgr.cli.stats import shown
from vemgr.core.beancounters import beancounters, full_of, needs_watching
from vemgr.core.config import DEFAULTS, parse_settings
from vemgr.kernel import cgroup_figures
from vemgr.kernel.cgroup_figures import CgroupFigures, io_sums
from vemgr.kernel.link_counters import LinkCounters, link_counters, parse
from vemgr.runtime.observing import disk_figures
from vemgr.runtime.observing.disk_figures import DiskFigures
from vemgr.runtime.observing.peaks import Peaks

ALL = frozenset({"cpu", "memory", "pids", "io"})
MIB = 1 << 20


def rows(readings, settings=DEFAULTS, controllers=ALL, promised=(0, 0), peaks=None):
    return {row["resource"]: row for row in beancounters(readings, settings, controllers, promised, peaks or {})}


def values(row):
    return tuple(row[key] for key in ("held", "maxHeld", "limit", "unlimited", "guarantee", "failures"))


def test_rows_of_a_ve_with_limits():
    settings = parse_settings({"cpus": "1.5", "memory": "64M", "pids": "100", "io-write": "1M/s"})
    found = rows({"cpu.stat.usage_usec": 7, "cpu.stat.nr_throttled": 3, "memory.current": 5, "memory.peak": 9,
                  "memory.events.max": 2, "memory.events.oom_kill": 1, "memory.swap.current": 0, "pids.current": 4,
                  "pids.events.max": 6, "io.stat.wbytes": 8}, settings, promised=(250, MIB), peaks={"pids": 40})
    assert values(found["cpus"]) == (7, None, 1_500_000, False, 250_000, 3)
    assert values(found["memory"]) == (5, 9, 64 * MIB, False, MIB, 2)
    assert found["oom-kills"]["held"] == 1
    assert values(found["swap"]) == (0, 0, 0, False, None, None)  # a memory limit lets it have none
    assert values(found["pids"]) == (4, 40, 100, False, None, 6)
    assert values(found["io-write"]) == (8, None, MIB, False, None, None)


def test_nothing_is_limited_and_all_is_said():
    found = rows({"memory.current": 5, "memory.swap.current": 1, "pids.current": 4})
    assert [found[key]["unlimited"] for key in ("memory", "swap", "pids")] == [True, True, True]
    assert found["disk"]["held"] is None and not found["disk"]["unlimited"]


def test_without_controllers_nothing_is_called_zero_or_unlimited():
    for resource, row in rows({"cpu.stat.usage_usec": 7}, controllers=frozenset()).items():
        assert values(row) == (7 if resource == "cpus" else None, None, None, False, None, None), resource


def test_the_disk_s_own_size_is_its_limit():
    found = rows({"disk.used": 10, "disk.size": 100, "disk.inodes_used": 1, "disk.inodes": 20}, peaks={"disk": 30})
    assert values(found["disk"]) == (10, 30, 100, False, None, None)
    assert values(found["inodes"]) == (1, 1, 20, False, None, None)


def test_only_what_has_no_peak_of_the_kernel_is_watched():
    assert needs_watching({"memory.current": 1, "memory.peak": 2, "pids.current": 3, "disk.used": 4,
                           "cpu.stat.usage_usec": 5}) == {"pids": 3, "disk": 4}


def test_files_of_a_cgroup(tmp_path):
    ve = tmp_path / "a"
    ve.mkdir()
    (tmp_path / "b").mkdir()  # going: its files have gone already
    for name, text in {"cpu.stat": "usage_usec 5\nuser_usec 3\n", "memory.current": "4096\n", "pids.current": "2\n",
                       "pids.peak": "9\n", "pids.events": "max 1\n", "io.stat": ""}.items():
        (ve / name).write_text(text)
    figures = CgroupFigures(str(tmp_path), frozenset({"pids"}))
    assert figures.read({"b": "b", "a": "a", "gone": "gone"}) == {
        "a": {"cpu.stat.usage_usec": 5, "cpu.stat.user_usec": 3, "pids.current": 2, "pids.peak": 9,
              "pids.events.max": 1}}
    older = CgroupFigures(str(tmp_path), frozenset({"memory", "io"}))
    assert older.read({"a": "a"})["a"]["memory.current"] == 4096  # memory.peak is not there, and does not matter
    with pytest.raises(FileNotFoundError):
        CgroupFigures(str(tmp_path / "x"), ALL).read({"a": "a"})


def test_two_threads_find_out_what_a_kernel_lacks(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "cpu.stat").write_text("usage_usec 5\n")
    figures = CgroupFigures(str(tmp_path), frozenset({"pids"}))
    there, again = cgroup_figures._is_there, []

    def is_there(base, name):
        monkeypatch.undo()
        again.append(figures.read({"a": "a"}))  # what another thread reads meanwhile
        return there(base, name)

    monkeypatch.setattr(cgroup_figures, "_is_there", is_there)
    assert figures.read({"a": "a"}) == {"a": {"cpu.stat.usage_usec": 5}}
    assert again == [{"a": {"cpu.stat.usage_usec": 5}}]
    assert figures.without_peak({"a": "a"}) == {}


def test_what_goes_through_a_loop_device_counts_once(monkeypatch):
    monkeypatch.setattr(cgroup_figures, "_is_layered", lambda device: device.startswith("7:"))
    text = ("8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n7:0 rbytes=10 wbytes=20 rios=1 wios=2\n"
            "8:16 rbytes=1\n259:0\n")
    assert io_sums(text, {}) == {"io.stat.rbytes": 11, "io.stat.wbytes": 20, "io.stat.rios": 1, "io.stat.wios": 2}


def test_counters_of_links():
    text = ("Inter-|   Receive | Transmit\n face |bytes ...\n"
            "ve1-a: 100 2 1 3 0 0 0 0 2000 20 4 5 0 0 0 0\n    lo:5 1 0 0 0 0 0 0 5 1 0 0 0 0 0 0\n")
    assert parse(text)["ve1-a"] == LinkCounters(100, 4, 2000, 9)
    assert "lo" in link_counters()


def test_a_disk_that_does_not_answer_delays_nobody_twice(monkeypatch):
    monkeypatch.setattr(disk_figures, "_DEADLINE", 0.05)
    answer = threading.Event()
    asked = []

    def ask(pid):
        asked.append(pid)
        if pid == 2:
            answer.wait(30)
        if pid == 3:
            raise FileNotFoundError
        return {"disk.used": pid}

    async def work():
        disks = DiskFigures(ask)
        wanted = {"a": 1, "stuck": 2, "ended": 3, "b": 4}
        assert await disks.read(wanted) == {"a": {"disk.used": 1}, "b": {"disk.used": 4}}
        assert await disks.read(wanted) == {"a": {"disk.used": 1}, "b": {"disk.used": 4}}
        assert asked.count(2) == 1
        answer.set()
        async with asyncio.timeout(10):
            while "stuck" not in await disks.read(wanted):
                await asyncio.sleep(0.01)

    try:
        asyncio.run(work())
    finally:
        answer.set()


def test_maxima_outlive_the_daemon_and_not_the_ve(tmp_path):
    peaks = Peaks(str(tmp_path))
    peaks.note("a", 10, {"disk": 5, "inodes": 0})
    assert peaks.note("a", 10, {"disk": 3}) == {"disk": 5}
    peaks.save()
    later = Peaks(str(tmp_path))
    assert later.note("a", 10, {}) == {"disk": 5}
    assert later.note("a", 11, {"disk": 1}) == {"disk": 1}  # its next life
    later.keep_only({})
    later.save()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "max-held.log").write_text('{"a": [1, {"disk"')
    assert Peaks(str(tmp_path)).note("a", 1, {}) == {}


@pytest.mark.parametrize(("amount", "unit", "text"), [
    (0, "bytes", "0"), (1023, "bytes", "1023"), (1536, "bytes", "1.5K"), (5 * MIB, "bytes", "5M"),
    (3 << 50, "bytes", "3072T"), (1_500_000, "us", "1.50s"), (12, "processes", "12"),
])
def test_amounts_for_people(amount, unit, text):
    assert shown(amount, unit) == text


@pytest.mark.parametrize(("readings", "of"), [
    ({}, []), ({"disk.available": 2, "disk.size": 100}, []), ({"disk.available": 1, "disk.size": 100}, ["bytes"]),
    ({"disk.available": 9, "disk.size": 9, "disk.inodes_available": 0, "disk.inodes": 10}, ["inodes"]),
    ({"disk.available": 9, "disk.size": 9, "disk.inodes_available": 0, "disk.inodes": 0}, []),
])
def test_a_disk_that_is_full(readings, of):
    assert full_of(readings) == of
