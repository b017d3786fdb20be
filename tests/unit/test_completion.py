# SPDX-License-Identifier: GPL-2.0-or-later
"""What shells are offered, with a daemon that answers, one that does not, and none."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ANSWERS = {
    "List": {"ves": [{"name": "db", "state": "stopped"}, {"name": "web1", "state": "running"},
                     {"name": "web2", "state": "running"}, {"name": "wiki", "state": "suspended"}]},
    "ListTemplates": {"templates": [{"name": "host"}, {"name": "debian-12"}, {"name": "debian-13"}]},
    "GetHost": {"networks": [{"name": "bridge"}, {"name": "lan"}]},
}


class Shell:
    """Asks as the scripts for the three shells do."""

    def __init__(self, base):
        self.base = base
        self.config = base / "vemgr.toml"
        self.config.write_text(f'run-dir = "{base}"\n')

    def environment(self, **more):
        return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "VEMGR_CONFIG": str(self.config), **more}

    def offered(self, line, shell="bash"):
        """The completions of the last word of a line, which is after "vemgr "."""
        words = ["vemgr", *line.split(" ")]
        # As the variables of bash and zsh have it, and as fish says it.
        word = {"bash": str(len(words) - 1), "zsh": str(len(words) - 1), "fish": words[-1]}[shell]
        before = " ".join(words if shell != "fish" else words[:-1])
        done = subprocess.run(
            [sys.executable, "-m", "vemgr.cli"], capture_output=True, text=True, timeout=30,
            env=self.environment(_VEMGR_COMPLETE=f"{shell}_complete", COMP_WORDS=before, COMP_CWORD=word))
        assert done.stderr == "", done.stderr
        return [text for text in done.stdout.splitlines() if text]

    def plain(self, line):
        return [text.partition(",")[2] for text in self.offered(line)]


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path)


@pytest.fixture
def daemon(tmp_path):
    """Answers each question as long as the test runs."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/vemgr.sock")
        listener.listen()

        def serve():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    method = json.loads(connection.recv(65536)[:-1])["method"].rpartition(".")[2]
                    connection.sendall(json.dumps({"parameters": ANSWERS[method]}).encode() + b"\0")

        server = threading.Thread(target=serve)
        server.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
        server.join()


@pytest.mark.parametrize(("line", "offered"), [
    ("start ", ["db"]), ("stop ", ["web1", "web2", "wiki"]), ("stop web1 ", ["web2", "wiki"]),
    ("stop web1 w", ["web2", "wiki"]), ("resume ", ["wiki"]), ("exec we", ["web1", "web2"]), ("set d", ["db"]),
    ("destroy --force d", ["db"]), ("create ", []), ("create new --template de", ["debian-12", "debian-13"]),
    ("create new --template=h", ["host"]), ("create new --network ", ["bridge", "lan", "none"]),
    ("template remove h", ["host"]), ("template sh", ["show"]), ("logs --t", ["--tail", "--timestamps"]),
    ("susp", ["suspend"]), ("exec web1 -- ", []),
])
def test_what_is_offered(shell, daemon, line, offered):
    assert shell.plain(line) == offered


def test_a_file_is_for_the_shell(shell):
    assert shell.offered("template import name /etc/pas") == ["file,/etc/pas"]


def test_each_shell_has_its_own_form(shell, daemon):
    assert shell.offered("stop web", "zsh") == ["plain", "web1", "_", "plain", "web2", "_"]
    assert shell.offered("stop web", "fish") == ["plain,web1", "plain,web2"]


def test_without_a_daemon_nothing_is_said_or_started(shell):
    before = sorted(shell.base.iterdir())
    for line in ("start ", "create x --template ", "create x --network "):
        assert shell.offered(line) == []
    assert shell.plain("susp") == ["suspend"]
    shell.config.write_text("not toml")
    assert shell.offered("start ") == []
    assert sorted(shell.base.iterdir()) == before


def test_a_daemon_that_does_not_answer_is_not_waited_for(shell):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{shell.base}/vemgr.sock")
        listener.listen()
        began = time.monotonic()
        assert shell.offered("start ") == []
        assert time.monotonic() - began < 20


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_in_a_bash(shell, daemon):
    """With the script as it is installed."""
    program = shell.base / "vemgr"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m vemgr.cli "$@"\n')
    program.chmod(0o755)
    more = {"PATH": f"{shell.base}:{os.environ['PATH']}"}
    script = subprocess.run([program], capture_output=True, text=True, timeout=30, check=True,
                            env=shell.environment(_VEMGR_COMPLETE="bash_source"))
    assert script.stderr == ""
    done = subprocess.run(["bash", "-c", f"""{script.stdout}
        complete -p vemgr
        COMP_WORDS=(vemgr stop web1 w) COMP_CWORD=3
        _vemgr_completion vemgr w web1
        printf '%s\\n' "${{COMPREPLY[@]}}" """], capture_output=True, text=True, timeout=30,
                          env={**shell.environment(), **more})
    assert done.stderr == "" and done.stdout.splitlines() == [
        "complete -o nosort -F _vemgr_completion vemgr", "web2", "wiki"]


def test_what_a_ve_can_be_given(shell):
    assert shell.plain("create x --feature n") == ["nesting", "none"]
    assert shell.plain("set x --capability +") == ["+checkpoint_restore", "+mknod"]
    assert shell.offered("create x --device /dev/tt") == ["file,/dev/tt"]
