# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line's short way to a start: the same as the long one, or not taken."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vemgr.cli import __main__ as command
from vemgr.cli import main


@pytest.mark.parametrize(("text", "found"), [
    (None, "/run/vemgr"),
    ("", "/run/vemgr"),
    ('bridge = "br1"\n', "/run/vemgr"),
    ('run-dir = "/run/other_1"\n', "/run/other_1"),
    ('# a comment\n  run-dir="/srv/v-2/run"  \n[network.lan]\nbridge = "x"\n', "/srv/v-2/run"),
    ('run-dir = "/run/x" # a comment\n', None),
    ("run-dir = '/run/x'\n", None),
    ('run-dir = "relative"\n', None),
    ('"run-dir" = "/run/x"\n', None),
    ('"\\u0072un-dir" = "/run/x"\n', None),
    ('[network.lan]\nrun-dir = "/run/x"\n', None),
    ('# of the run-dir\nrun-dir = "/run/x"\n', None),
    ('run-dir = "/run/x\\ty"\n', None),
    ('x = """\nrun-dir = "/run/x"\n"""\n', "/run/x"),  # no key x is known, so no such file gets past the daemon
])
def test_the_run_directory(tmp_path: Path, text: str | None, found: str | None) -> None:
    file = tmp_path / "vemgr.toml"
    if text is not None:
        file.write_text(text)
    assert command._run_dir(str(file)) == found


class Daemon:
    """Answers one call with `reply`; `asked`: what it was."""

    def __init__(self, directory: Path, reply: bytes) -> None:
        self.asked = b""
        self._reply = reply
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(directory / "vemgr.sock"))
        self._listener.listen()
        self.keeper = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.keeper.bind(str(directory / "keeper.sock"))
        self.keeper.listen()
        self._going = True
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while self._going:
            connection, _ = self._listener.accept()
            self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            asked = connection.recv(65536)
            if asked:
                self.asked += asked
                connection.sendall(self._reply)

    def close(self) -> None:
        self._going = False
        with socket.socket(socket.AF_UNIX) as waker:
            waker.connect(self._listener.getsockname())
        self._thread.join()
        self._listener.close()
        self.keeper.close()


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], Daemon]]:
    made: list[Daemon] = []

    def make(reply: bytes) -> Daemon:
        made.append(Daemon(tmp_path, reply))
        return made[-1]

    (tmp_path / "vemgr.toml").write_text(f'run-dir = "{tmp_path}"\n')
    monkeypatch.setenv("VEMGR_CONFIG", str(tmp_path / "vemgr.toml"))
    yield make
    for each in made:
        each.close()


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["vemgr", *arguments])
    with pytest.raises(SystemExit) as ending:
        command.main()
    assert isinstance(ending.value.code, int)
    return ending.value.code


def test_a_start(daemon: Callable[[bytes], Daemon], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = daemon(b"{}\0")
    assert run(monkeypatch, "start", "web-1") == 0
    assert asked.asked == b'{"method": "org.vemgr.Manager.Start", "parameters": {"name": "web-1"}}\0'


@pytest.mark.parametrize("arguments", [("--wait", "web-1"), ("web-1", "--wait")])
def test_a_start_that_waits(daemon: Callable[[bytes], Daemon], monkeypatch: pytest.MonkeyPatch,
                            arguments: tuple[str, ...]) -> None:
    asked = daemon(b"{}\0")
    assert run(monkeypatch, "start", *arguments) == 0
    assert json.loads(asked.asked[:-1]) == {"method": "org.vemgr.Manager.Start",
                                            "parameters": {"name": "web-1", "wait": 120}}
    timeout = next(option for option in main.start.params if option.name == "timeout")
    assert timeout.default == 120


@pytest.mark.parametrize(("reply", "code", "words"), [
    (b'{"parameters": {}}\0', 0, ""),
    (b'{"error": "org.vemgr.Manager.NoSuchVE", "parameters": {"message": "no such VE: a", "exitCode": 14}}\0', 14,
     "vemgr: no such VE: a"),
    (b'{"error": "org.vemgr.Manager.NoS', 3, "the daemon ended while it was at work"),
])
def test_other_answers(daemon: Callable[[bytes], Daemon], monkeypatch: pytest.MonkeyPatch,
                       capsys: pytest.CaptureFixture[str], reply: bytes, code: int, words: str) -> None:
    asked = daemon(reply)
    assert run(monkeypatch, "start", "a") == code
    assert words in capsys.readouterr().err
    assert asked.asked.count(b"\0") == 1  # and never again by the long way


@pytest.mark.parametrize("arguments", [("start", "--help"), ("--version",), ("start", "a", "--help")])
def test_all_else_goes_the_long_way(daemon: Callable[[bytes], Daemon], monkeypatch: pytest.MonkeyPatch,
                                    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    asked = daemon(b"{}\0")
    assert run(monkeypatch, *arguments) == 0
    assert capsys.readouterr().out
    assert asked.asked == b""


@pytest.mark.parametrize("name", ["", "../x", "a b", 'a"b', "ä", "-x"])
def test_other_names_are_for_the_long_way(daemon: Callable[[bytes], Daemon], name: str) -> None:
    asked = daemon(b"{}\0")
    assert command._start(name, wait=False) is None
    assert asked.asked == b""
