# SPDX-License-Identifier: GPL-2.0-or-later
"""`vemgr top` on a terminal: what it shows, what its keys do, and that the terminal is as before however it ends."""

import contextlib
import os
import signal
import termios

import pytest

from tests.kernel.conftest import Terminal, eventually, is_alive

LEFT = "\x1b[?1049l"


@pytest.fixture
def screen(vemgr, running):
    """A terminal of 80 columns on which `top` shows something."""
    with contextlib.closing(Terminal(vemgr, "top", "-d", "0.2", columns=80, rows=24)) as found:
        found.expect("\x1b[?1049h")
        found.expect(running)
        yield found


def modes(terminal):
    return termios.tcgetattr(terminal.slave)


def top_of(terminal):
    """The process that runs on the terminal: setsid and nsenter become it by exec."""
    return terminal.process.pid


def test_keys_sort_and_end(screen):
    assert modes(screen)[3] & termios.ICANON == 0
    for key, word in {"m": "memory", "i": "disk I/O", "n": "network", "p": "processes", "c": "CPU"}.items():
        screen.type(key)
        screen.expect(f"VEs run, by {word}  ")
    screen.type("xq")
    assert screen.wait() == 0
    assert LEFT in screen.text and modes(screen) == screen.before


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_give_the_terminal_back(screen, signum):
    os.kill(top_of(screen), signum)
    assert screen.wait() == 128 + signum
    assert LEFT in screen.text and modes(screen) == screen.before


def test_stopped_by_the_shell_and_going_on(screen):
    pid = top_of(screen)
    os.kill(pid, signal.SIGTSTP)
    screen.expect(LEFT)
    eventually(lambda: _state(pid) == "T", "it does not stop")
    assert modes(screen) == screen.before
    os.kill(pid, signal.SIGCONT)
    screen.expect("\x1b[?1049h")
    screen.expect("VEs run")
    assert modes(screen) != screen.before
    screen.type("q")
    assert screen.wait() == 0 and modes(screen) == screen.before


def _state(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


CRASH = """
from vemgr.cli import main, monitor
def look(self):
    raise ZeroDivisionError("made up")
monitor.Source.look = look
main.main()
"""


def test_a_crash_gives_the_terminal_back(vemgr, running):
    command = [*vemgr.command()[:-2], "-c", CRASH, "top", "-d", "0.2"]
    with contextlib.closing(Terminal(vemgr, command=command, columns=80)) as terminal:
        terminal.expect(running)
        assert terminal.wait() == 1
        assert "ZeroDivisionError: made up" in terminal.text.partition(LEFT)[2]
        assert modes(terminal) == terminal.before


def test_the_next_daemon_is_found(make_instance):
    with make_instance() as own:
        ve = own.create("--network", "none")
        own("start", ve)
        with contextlib.closing(Terminal(own, "top", "-d", "0.2", columns=80)) as terminal:
            terminal.expect(ve)
            daemon = own.daemon_pid()
            own.kill(daemon)
            terminal.expect("connection to the daemon was lost", timeout=40)
            terminal.expect("keys: c m i n p", timeout=40)
            terminal.expect(ve)
            assert not is_alive(daemon)
            terminal.type("q")
            assert terminal.wait() == 0


def test_in_a_pipe(vemgr, running):
    lines = vemgr.out("top", "--once", "-d", "0.2", "--sort", "memory").splitlines()
    assert "VEs run, by memory" in lines[0] and lines[1].split()[0] == "NAME"
    (line,) = (line for line in lines if line.split()[0] == running)
    assert line.split()[1].replace(".", "").isdigit() and "\x1b" not in "".join(lines)
    assert "--batch" in vemgr("top", code=20).stderr
    batch = vemgr.popen("top", "-b", "-d", "0.1")
    try:
        for _ in range(2):
            while "VEs run" not in batch.stdout.readline():
                pass
    finally:
        batch.terminate()
        batch.communicate()
