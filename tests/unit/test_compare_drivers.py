# SPDX-License-Identifier: GPL-2.0-or-later
"""What the drivers of the comparison are made of, as far as it needs neither root nor a kernel's help."""

import os
import signal
import subprocess
import sys
import time

import pytest

from vemgr.compare import journal, marked, starting
from vemgr.compare.commands import new_mark
from vemgr.compare.driver import DriverFailed, Finished
from vemgr.compare.journal import Journal
from vemgr.compare.pipes import Pipes


def test_what_is_done_is_not_left(tmp_path):
    log = Journal(tmp_path, "x")
    assert not (tmp_path / "journal").exists()
    first, second = log.add("tree", path="/a"), log.add("tree", path="/b")
    assert [entry["path"] for entry in log.left()] == ["/b", "/a"]
    log.done(first)
    assert [entry["path"] for entry in log.left()] == ["/b"]
    log.done(second)
    log.close()
    assert [*(tmp_path / "journal").iterdir()] == []


def test_a_run_that_lives_is_left_alone(tmp_path):
    log = Journal(tmp_path, "x")
    log.add("tree", path="/a")
    assert journal.clean(tmp_path, "x", lambda entry: entry["path"]) == []
    log.close()
    assert journal.clean(tmp_path, "y", lambda entry: entry["path"]) == []  # another driver's
    assert journal.clean(tmp_path, "x", lambda entry: entry["path"]) == ["/a"]
    assert journal.clean(tmp_path, "x", lambda entry: entry["path"]) == []


def test_the_youngest_goes_first_and_what_is_gone_is_not_told(tmp_path):
    log = Journal(tmp_path, "x")
    for name in "abc":
        log.add("tree", path=name)
    log.close()
    asked = []

    def undo(entry):
        asked.append(entry["path"])
        return None if entry["path"] == "b" else entry["path"]

    assert journal.clean(tmp_path, "x", undo) == ["c", "a"]
    assert asked == ["c", "b", "a"]


def test_what_cannot_be_removed_is_tried_again(tmp_path):
    log = Journal(tmp_path, "x")
    for name in "abc":
        log.add("tree", path=name)
    log.close()
    asked = []

    def undo(entry):
        asked.append(entry["path"])
        if len(asked) < 4 and entry["path"] == "b":
            raise DriverFailed("b is in use")
        return entry["path"]

    with pytest.raises(DriverFailed, match="b is in use"):
        journal.clean(tmp_path, "x", undo)
    assert asked == ["c", "b", "a"]
    assert journal.clean(tmp_path, "x", undo) == ["b"]
    assert [*(tmp_path / "journal").iterdir()] == []


def test_a_line_that_was_cut_off_is_of_nothing():
    whole = b'{"number": 1, "kind": "tree"}\n{"number": 2, "kind": "tree"}\n{"done": 1}\n'
    assert [entry["number"] for entry in journal.entries(whole)] == [2]
    for length in range(len(whole)):
        numbers = [entry["number"] for entry in journal.entries(whole[:length])]
        assert numbers in ([], [1], [1, 2])


def test_marked_processes_are_found_with_their_children():
    mark = new_mark()
    shell = subprocess.Popen(["sh", "-c", "sleep 987 & env -i sleep 987 & wait"],
                             env=os.environ | {marked.VARIABLE: f"{mark}.1"})
    try:
        deadline = time.monotonic() + 20
        while len(found := marked.marked(mark)) < 3:
            assert time.monotonic() < deadline, found
        assert shell.pid in found
        assert marked.marked(f"{mark}.1") == found
        assert marked.marked(mark[:-1]) == set()
    finally:
        ended = marked.end(mark)
        shell.wait()
    assert ended
    assert not marked.end(mark)


def test_the_end_of_a_process_is_awaited():
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    assert not marked.await_end(process.pid, 0)
    process.stdin.close()
    assert marked.await_end(process.pid, 20)  # not reaped yet
    process.wait()
    assert marked.await_end(process.pid, 0)


@pytest.mark.parametrize("text, found", [
    ("first 1700000000000000001\n", 1700000000000000001), ("first 17", None), ("", None), ("second 1\n", None),
    ("first x\n", None),
])
def test_a_stamp(tmp_path, text, found):
    path = tmp_path / "stamp"
    assert starting.parse_stamp(path) is None
    path.write_text(text)
    assert starting.parse_stamp(path) == found


def test_up_is_when_a_command_has_run():
    codes = iter([1, 1, 0])
    begin = time.monotonic()
    assert starting.await_command(lambda seconds: Finished(next(codes), b"", b"", 0.0), begin) > 0
    with pytest.raises(DriverFailed, match=r"cannot be run: no$"):
        starting.await_command(lambda seconds: Finished(1, b"", b"no\n", 0.0), begin - 3600)


def piped(script, data, seconds=20):
    """A child through `Pipes`, as the keeper's processes are used: nobody but a pipe says that it has ended."""
    told, tells = os.pipe()
    with Pipes() as pipes:
        child = subprocess.Popen([sys.executable, "-c", script], stdin=pipes.theirs[0], stdout=pipes.theirs[1],
                                 stderr=pipes.theirs[2], pass_fds=[tells], process_group=0)
        os.close(tells)
        try:
            return pipes.exchange(told, data, time.monotonic() + seconds)
        finally:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            os.close(told)


def test_pipes_take_what_is_more_than_they_hold():
    data = os.urandom(1 << 20)
    script = "import sys; d = sys.stdin.buffer.read(); sys.stderr.buffer.write(d[::-1]); sys.stdout.buffer.write(d)"
    assert piped(script, data) == (data, data[::-1])


def test_a_command_need_not_read_its_input():
    assert piped("print('x')", bytes(1 << 20)) == (b"x\n", b"")


def test_a_command_has_its_time():
    with pytest.raises(TimeoutError):
        piped("import time; time.sleep(100)", b"", seconds=0.3)


def test_a_child_that_keeps_the_output_keeps_nobody():
    script = "import os, time; print('x', flush=True); os.fork() or (os.closerange(3, 99), time.sleep(100))"
    assert piped(script, b"") == (b"x\n", b"")
