# SPDX-License-Identifier: GPL-2.0-or-later
"""What a process on its way into a VE gives up, and what it tells when it fails; each in a child of ours."""

import json
import os
import resource
import sys

import prctl
import pytest

from vemgr.keeper import confine, enter, inherited
from vemgr.keeper.protocol import channel_pair, receive


def in_child(work):
    """What `work` returns in a process of its own, or the exception that it raises, as text."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            result = work()
        except BaseException as error:
            result = f"{type(error).__name__}: {error}"
        os.write(writer, json.dumps(result).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        text = file.read()
    os.waitpid(pid, 0)
    return json.loads(text) if text else None


def test_only_named_descriptors_stay():
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        inherited._open_stdio()
        for target in (100, 110, 111, 200):
            os.dup2(0, target)
        confine.close_all_but({100, 110, 111, writer, 1})
        links = {int(fd): os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                 if os.path.exists(f"/proc/self/fd/{fd}")}
        os.write(writer, json.dumps(sorted(links.items())).encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as file:
        found = dict(json.load(file))
    os.waitpid(pid, 0)
    assert [fd for fd, link in found.items() if link == "/dev/null"] == [0, 1, 2, 100, 110, 111]
    assert len(found) == 7 and found[writer].startswith("pipe:")


@pytest.mark.skipif(os.geteuid() != 0, reason="changes its ids")
def test_hidden_after_a_change_of_ids():
    def work():
        confine.hide()
        os.setresuid(1000, 1000, 1000)
        confine.hide()
        return prctl.get_dumpable()

    assert in_child(work) == 0


@pytest.mark.parametrize("env", [{"": "x"}, {"A=B": "x"}, {"A\0": "x"}])
def test_variables_that_cannot_be(env):
    with pytest.raises(OSError, match="not a name"):
        confine.check_environment(env)


def test_bytes_that_are_no_text_pass_unchanged():
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(writer, 1)
        script = "import os,sys;os.write(1,os.fsencode(sys.argv[1])+os.environb[b'\\xfcX'])"
        confine.exec_program([sys.executable, "-c", script, "ü\udcff"], {"\udcfcX": "\udc80", "PATH": "/bin"})
    os.close(writer)
    with open(reader, "rb") as file:
        assert file.read() == "ü".encode() + b"\xff\x80"
    os.waitpid(pid, 0)


@pytest.mark.parametrize("error", [ValueError("odd"), KeyError("odd"), UnicodeEncodeError("utf-8", "x", 0, 1, "odd"),
                                   OSError(13, "odd", b"/x\xff")])
def test_a_command_tells_every_failure(monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(enter, "find_account", fail)
    monkeypatch.setattr(enter.os, "setsid", lambda: None)
    monkeypatch.setattr(enter.os, "setresuid", lambda *_: None)
    monkeypatch.setattr(enter.os, "setresgid", lambda *_: None)
    ours, theirs = channel_pair()
    command = enter.Command(("x",), {}, "", "root", False)
    in_child(lambda: enter._become_command(command, b"", [0, 1, 2], theirs))
    message, _ = receive(ours)
    assert message["event"] == "failed" and "odd" in message["error"]
    ours.close()
    theirs.close()


@pytest.mark.parametrize(("pattern", "bounded"), [
    ("|/usr/share/apport/apport %p", True), ("@/run/cores.sock", True), ("core", False), ("/var/cores/%p", False)])
def test_cores_do_not_go_to_a_program_of_the_host(monkeypatch, tmp_path, pattern, bounded):
    (tmp_path / "pattern").write_text(f"{pattern}\n")
    monkeypatch.setattr(confine, "_CORE_PATTERN", str(tmp_path / "pattern"))
    assert confine.core_limits() == ((1, 1) if bounded else resource.getrlimit(resource.RLIMIT_CORE))


def test_limits_go_no_higher_than_they_may():
    infinite = inherited._FREE
    assert inherited._least(infinite, 5) == inherited._least(5, infinite) == 5
    assert inherited._least(infinite, infinite) == infinite and inherited._least(3, 4) == 3


def test_a_keeper_of_systemd_keeps_what_its_unit_says():
    def work():
        os.environ["NOTIFY_SOCKET"] = "/nowhere"
        os.nice(3)
        inherited.reset_inherited()
        return os.nice(0)

    assert in_child(work) == 3 + os.nice(0)
