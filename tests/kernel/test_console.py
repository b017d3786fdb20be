# SPDX-License-Identifier: GPL-2.0-or-later
"""console and logs: attaching, leaving, and what a VE that means harm can do to those who look."""

import contextlib
import os
import re
import signal
import subprocess
import termios
import time
from datetime import datetime, timedelta

import pytest

from tests.kernel.conftest import Terminal, eventually, is_alive

KEYS = "\x1d\x1d\x1d"
BOUND = 131072  # bytes of one file of a log


@pytest.fixture(scope="module")
def own(make_instance):
    with make_instance() as instance:
        instance.import_busybox("bbinit", init=True, change=lambda tree: (tree / "etc/inittab").write_text(
            "::sysinit:/bin/true\nconsole::respawn:/bin/sh\n"))
        yield instance


@pytest.fixture
def make(own):
    """Make a VE whose init is a shell script on its console."""
    names = []

    def make(script, *, start=True, template="bb"):
        names.append(own.create(*(["--init", f"sh -c '{script}'"] if script else []), template=template))
        if start:
            own("start", names[-1])
        return names[-1]

    yield make
    own("destroy", "--force", *names, code=None)


@pytest.fixture
def terminal(own):
    with contextlib.ExitStack() as stack:
        yield lambda *arguments, **options: stack.enter_context(
            contextlib.closing(Terminal(own, *arguments, **options)))


def is_as_before(seen):
    return termios.tcgetattr(seen.slave) == seen.before


def expect_raw(seen):
    """From now on every key is the VE's."""
    eventually(lambda: not termios.tcgetattr(seen.slave)[3] & termios.ICANON, "the terminal stays as it was")


def ends(own, ve):
    eventually(lambda: own.state_of(ve) == "stopped", "it goes on", timeout=20)


def log_of(own, ve):
    return own.run / "log" / ve


# attaching and leaving


def test_attach_to_what_runs(own, make, terminal):
    ve = make("stty -echo; echo before; while read x; do echo \"got $x\"; done")
    eventually(lambda: "before" in own.out("logs", ve), "nothing printed")
    seen = terminal("console", ve)
    seen.expect("the keys ctrl-],ctrl-],ctrl-] detach")
    seen.expect("before\n")
    seen.type("one\n")
    seen.expect("got one\n")
    seen.type("\x1d")  # alone it is the VE's, a moment later
    time.sleep(1.5)
    seen.type("x\n")
    seen.expect("got \x1dx\n")
    seen.type(KEYS)
    assert seen.wait() == 0
    assert is_as_before(seen) and "detached" in seen.text
    assert own.state_of(ve) == "running"
    seen = terminal("console", "--detach-keys", "ctrl-a,q", ve)
    seen.expect("before\n")
    seen.type("\x1d\x1d\x1d\x01x\n")
    seen.expect("got \x1d\x1d\x1d\x01x\n")
    seen.type("\x01q")
    assert seen.wait() == 0 and is_as_before(seen)


@pytest.mark.parametrize("keys", ["", "ctrl-", "ctrl-ab", "a,,b", "ctrl-1", "ü"])
def test_keys_that_are_none(own, make, keys):
    ve = make("", start=False)
    assert "--detach-keys" in own("console", "--detach-keys", keys, ve, code=21).stderr
    own("console", "nobody", code=14)
    own("logs", "nobody", code=14)


def test_attach_before_the_start(own, make, terminal):
    ve = make("echo the first word; exec cat", start=False)
    seen = terminal("console", ve)
    seen.expect("waiting for")
    own("start", ve)
    seen.expect("the first word\n")
    expect_raw(seen)
    seen.type("typed\n")
    seen.expect("typed\ntyped\n")
    own("stop", "--kill", ve)
    assert seen.wait() == 0 and is_as_before(seen)
    assert "has ended: init was ended by signal 9" in seen.text


def test_an_interrupt_while_waiting(own, make, terminal):
    ve = make("", start=False)
    seen = terminal("console", ve)
    seen.expect("waiting for")
    seen.type("\x03")
    assert seen.wait() == 128 + signal.SIGINT and is_as_before(seen)


def test_start_with_console(own, make, terminal):
    ve = make("echo first; echo last; exit 3", start=False)
    seen = terminal("start", "--console", ve)
    assert seen.wait() == 0 and is_as_before(seen)
    assert "first\nlast\n" in seen.text and "init exited with 3" in seen.text
    own("set", ve, "--init", "/nope")
    assert own("start", "--console", ve, code=7).stdout == ""
    own("start", "--console", ve, ve, code=20)


def test_the_size_of_the_window(own, make, terminal):
    ve = make("trap \"stty size\" WINCH; echo ready; while :; do sleep 0.05; done")
    seen = terminal("console", ve)
    seen.expect("ready\n")
    seen.expect("30 100\n")
    seen.resize(50, 132)
    seen.expect("50 132\n")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal(make, terminal, signum):
    ve = make("echo ready; exec cat")
    seen = terminal("console", ve)
    seen.expect("ready\n")
    expect_raw(seen)
    seen.process.send_signal(signum)
    assert seen.wait() == 128 + signum and is_as_before(seen)


def test_the_end_of_the_ve(own, make, terminal):
    ve = make("echo ready; read x; seq 1 20000; echo the last word; exit 4")
    seen = terminal("console", ve)
    seen.expect("ready\n")
    seen.type("\n")
    assert seen.wait() == 0 and is_as_before(seen)
    assert "20000\nthe last word\n" in seen.text and "init exited with 4" in seen.text


def test_a_reboot_keeps_it(make, terminal):
    ve = make("echo ready; read x; echo bye; reboot -f; sleep 100")
    seen = terminal("console", ve)
    seen.expect("ready\n")
    seen.type("\n")
    seen.expect("bye\n")
    seen.expect("reboots")
    seen.expect("ready\n")
    seen.type(KEYS)
    assert seen.wait() == 0 and is_as_before(seen)


def test_destroyed(own, make, terminal):
    ve = make("", start=False)
    seen = terminal("console", ve)
    seen.expect("waiting for")
    own("destroy", ve)
    assert seen.wait() == 9
    assert "has been destroyed" in seen.text
    assert not log_of(own, ve).exists()


def test_a_login_that_ends_and_begins_again(make, terminal):
    """With the leader of its session the terminal hangs up."""
    ve = make("", template="bbinit")
    seen = terminal("console", ve)
    for number in range(3):
        expect_raw(seen)
        eventually(lambda: seen.type("\n") or (seen.read(0.3) and "# " in seen.text), "no prompt")
        seen.type(f"echo $(({number}+40)); exit\n")
        seen.expect(f"\n{number + 40}\n")
    seen.type(KEYS)
    assert seen.wait() == 0


# several


def test_one_types_others_look_on(own, make, terminal):
    ve = make("echo ready; exec cat")
    writer, reader = terminal("console", ve), terminal("console", "--read-only", ve)
    writer.expect("ready\n")
    reader.expect("ready\n")
    expect_raw(writer)
    expect_raw(reader)
    refused = own("console", ve, code=9)
    assert "in use" in refused.stderr and "--force" in refused.stderr
    reader.type("nothing\n")
    writer.type("typed\n")
    writer.expect("typed\ntyped\n")
    reader.expect("typed\ntyped\n")
    other = terminal("console", "--force", ve)
    assert writer.wait() == 9 and is_as_before(writer) and "another client has taken over" in writer.text
    other.expect("ready\n")
    other.type("other\n")
    other.expect("other\nother\n")
    reader.expect("other\nother\n")
    assert "nothing" not in reader.text + other.text
    reader.type(KEYS)
    assert reader.wait() == 0


def test_a_killed_client_makes_room(own, make, terminal):
    ve = make("echo ready; exec cat")
    seen = terminal("console", ve)
    seen.expect("ready\n")
    seen.process.kill()
    seen.process.wait()
    other = terminal("console", ve)
    other.expect("ready\n")
    other.type("typed\n")
    other.expect("typed\ntyped\n")


def test_too_many(own, make):
    ve = make("exec sleep 1000")
    others = _sockets(own)
    with contextlib.ExitStack() as stack:
        for _ in range(16):
            process = stack.enter_context(own.popen("console", "--read-only", ve))
            stack.callback(process.kill)
        eventually(lambda: _sockets(own) >= others + 16, "they are not attached", 60)
        assert "too many" in own("console", "--read-only", ve, code=None).stderr


def _sockets(own):
    return sum("socket" in name for name in own.descriptors(own.keeper_pid()))


# daemon and keeper


def test_a_killed_daemon(own, make, terminal):
    ve, later = make("echo ready; exec cat"), make("echo later; exec cat", start=False)
    seen, waiting = terminal("console", ve), terminal("console", later)
    seen.expect("ready\n")
    waiting.expect("waiting for")
    own.kill(own.daemon_pid())
    seen.type("while it is gone\n")
    seen.expect("while it is gone\nwhile it is gone\n")
    own("start", later)
    waiting.expect("later\n")
    seen.type("when it is back\n")
    seen.expect("when it is back\nwhen it is back\n")
    own("stop", "--kill", ve)
    assert seen.wait() == 0 and is_as_before(seen)
    assert "while it is gone" in own.out("logs", ve)


def test_a_killed_keeper(make_instance):
    with make_instance() as instance:
        ve = instance.create("--init", "sh -c 'echo ready; exec cat'")
        instance("start", ve)
        with contextlib.closing(Terminal(instance, "console", ve)) as seen:
            seen.expect("ready\n")
            expect_raw(seen)
            instance.kill(instance.keeper_pid())
            assert seen.wait() == 3 and is_as_before(seen)
            assert "is gone" in seen.text
        assert "ready" in instance.out("logs", ve)


# those that mean harm, and those that are slow


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_flood_disturbs_nobody(own, make, terminal):
    flood = make("exec yes > /dev/console")
    other, quiet = make("echo ready; exec cat"), make("echo quiet; exec sleep 1000")
    looks = own.popen("console", "--read-only", flood, stdout=subprocess.DEVNULL)
    seen = terminal("console", other)
    seen.expect("ready\n")
    keeper = own.keeper_pid()
    began, used = time.monotonic(), cpu_seconds(keeper)
    slowest = 0.0
    for number in range(20):
        typed = time.monotonic()
        seen.type(f"{number:04}\n")
        seen.expect(f"{number:04}\n{number:04}\n")
        slowest = max(slowest, time.monotonic() - typed)
        time.sleep(0.1)
    assert slowest < 1
    assert (cpu_seconds(keeper) - used) / (time.monotonic() - began) < 0.15
    assert own.out("exec", flood, "--", "echo", "it lives") == "it lives\n"
    files = sorted(path.name for path in log_of(own, flood).iterdir())
    assert files == ["console.log", "console.old.log", "console.old.times.log", "console.times.log"]
    assert all(path.stat().st_size <= BOUND for path in log_of(own, flood).iterdir())
    assert len(own.out("logs", flood)) > BOUND // 2
    assert re.fullmatch(r"\[vemgr: .* started .*Z\]\nquiet\n", own.out("logs", quiet))
    looks.kill()
    looks.communicate()


def test_a_client_that_is_stopped(own, make):
    """The VE waits for it a moment, not for ever; the client is told what it has missed."""
    ve = make("echo ready; read x; seq 1 200000; touch /tmp/done; echo done; exec cat")
    reader = own.popen("console", "--read-only", ve)
    assert reader.stdout.readline() == "ready\n"  # it is attached
    reader.send_signal(signal.SIGSTOP)
    with _typist(own, ve) as typist:
        typist("\n")
        eventually(lambda: own("exec", ve, "--", "test", "-e", "/tmp/done", code=None).returncode == 0,
                   "the VE is held up", timeout=40)
        reader.send_signal(signal.SIGCONT)
        time.sleep(1)
        typist("after\n")
        time.sleep(1)
    own("stop", "--kill", ve)
    text = reader.communicate(timeout=20)[0]
    assert "printed faster than they were read" in text and "after" in text


@contextlib.contextmanager
def _typist(own, ve):
    process = own.popen("console", ve, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)

    def put(text):
        process.stdin.write(text)
        process.stdin.flush()

    yield put
    process.kill()
    process.communicate()


def test_a_stopped_console_goes_on_without_its_client(own, make, terminal):
    """Ctrl-S stops all who print on it, the VE's init too."""
    ve = make("echo ready; i=0; while :; do i=$((i+1)); echo $i; echo $i > /tmp/count; sleep 0.05; done")
    seen = terminal("console", ve)
    seen.expect("ready\n")
    expect_raw(seen)
    seen.type("\x13")

    def stands():
        before = own.out("exec", ve, "--", "cat", "/tmp/count")
        time.sleep(0.5)
        return before == own.out("exec", ve, "--", "cat", "/tmp/count")

    eventually(stands, "Ctrl-S does nothing")
    seen.process.kill()
    seen.process.wait()
    eventually(lambda: not stands(), "it stands for ever")


def test_a_ve_that_does_not_read(own, make):
    """Its terminal takes only so much. Whoever types is told to wait, and gone when he is gone."""
    ve = make("stty -icanon -echo; echo ready; exec sleep 1000")
    eventually(lambda: "ready" in own.out("logs", ve), "not ready")
    with subprocess.Popen(["yes"], stdout=subprocess.PIPE) as endless:
        process = own.popen("console", ve, stdin=endless.stdout, stdout=subprocess.DEVNULL)
        time.sleep(1)
        keeper = own.keeper_pid()
        used = cpu_seconds(keeper)
        time.sleep(2)
        assert cpu_seconds(keeper) - used < 0.2
        assert process.poll() is None
        process.kill()
        process.communicate()
        endless.kill()
    answer = own.popen("console", ve, stdin=subprocess.DEVNULL)
    time.sleep(0.5)
    assert answer.poll() is None, "the killed one is still there"
    answer.kill()
    answer.communicate()


# pipes


def test_pipes(own, make):
    ve = make("stty -echo; echo ready; read a; read b; echo \"got $a and $b\"; exit 5")
    answer = own("console", ve, input="one\ntwo\n")
    assert answer.stdout.endswith("got one and two\n") and "init exited with 5" in answer.stderr
    ve = make("echo one; seq 1 3; exit 0", start=False)
    answer = own("start", "--console", ve)
    assert answer.stdout == "one\n1\n2\n3\n"
    reader = own.popen("start", "--console", make("exec yes", start=False))
    reader.stdout.readline()
    reader.stdout.close()
    assert reader.wait(20) == 1
    reader.stderr.close()


# logs


def test_the_log_of_a_stopped_ve(own, make):
    ve = make("for i in 1 2 3; do echo line $i; done; printf end")
    ends(own, ve)
    text = own.out("logs", ve)
    assert re.fullmatch(r"\[vemgr: ve\d+ started \S+Z\]\nline 1\nline 2\nline 3\nend", text)
    assert own.out("logs", "--tail", "2", ve) == "line 3\nend"
    assert own.out("logs", "-n", "0", ve) == ""
    own.kill(own.daemon_pid())
    own("start", ve)
    ends(own, ve)
    assert own.out("logs", ve).count("line 1") == 2
    assert own.show(ve)["console"].endswith("line 3\nend")


def test_when_it_was_printed(own, make):
    ve = make("echo one; sleep 2; printf tw; sleep 2; echo o; echo three")
    follower = own.popen("logs", "--follow", "--timestamps", ve)
    ends(own, ve)
    text = own.out("logs", "--timestamps", ve)
    stamps = dict(reversed(line.split(" ", 1)) for line in text.splitlines())
    assert list(stamps)[1:] == ["one", "two", "three"]
    first, second, third = (datetime.fromisoformat(stamps[line]) for line in ("one", "two", "three"))
    assert second - first >= timedelta(seconds=1) and third - second >= timedelta(seconds=1)
    assert [follower.stdout.readline() for _ in range(4)] == text.splitlines(keepends=True)
    follower.kill()
    follower.communicate()
    assert own.out("logs", "--since", stamps["two"], ve) == "two\nthree\n"
    assert own.out("logs", "--since", stamps["two"], "--tail", "1", ve) == "three\n"
    assert own("logs", "--since", stamps["three"], "--raw", ve, text=False).stdout == b"o\r\nthree\r\n"
    assert own.out("logs", "--since", (third + timedelta(seconds=1)).isoformat(), ve) == ""
    assert own.out("logs", "--since", "1h", ve) == own.out("logs", ve)
    assert own("logs", "--raw", ve, text=False).stdout == (log_of(own, ve) / "console.log").read_bytes()
    assert "neither a duration" in own("logs", "--since", "soon", ve, code=21).stderr
    own("logs", "--raw", "--timestamps", ve, code=20)


def test_follow_across_restarts(own, make):
    ve = make("echo life; exec cat", start=False)
    follower = own.popen("logs", "--follow", ve)
    lines = []
    for _ in range(2):
        own("start", ve)
        while not lines or lines[-1] != "life\n":
            lines.append(follower.stdout.readline())
        lines.append("")
        own("stop", "--kill", ve)
    own.kill(own.daemon_pid())
    own("start", ve)
    while lines[-1] != "life\n":
        lines.append(follower.stdout.readline())
    assert sum("started" in line for line in lines) == 3
    own("destroy", "--force", ve)
    assert follower.communicate(timeout=20)[0] == "" and follower.returncode == 0


def test_follow_over_new_files(own, make):
    """More than both files hold goes through, and nothing is missing or twice."""
    ve = make("read x; for i in $(seq 1 40); do seq $((i*1000)) $((i*1000+999)); sleep 0.05; done; echo END")
    follower = own.popen("logs", "--follow", ve)
    eventually(lambda: log_of(own, ve).exists(), "no log")
    with _typist(own, ve) as typist:
        typist("\n")
        lines = []
        while not lines or lines[-1] != "END":
            lines.append(follower.stdout.readline().strip())
    follower.kill()
    follower.communicate()
    assert [line for line in lines if line.isdigit()] == [str(number) for number in range(1000, 41000)]


def test_escape_sequences(own, make):
    ve = make(r'printf "\033]0;title\007\033[31mred\033[0m \033[2J\033[6n\033Pq\033\134ab\bc\a one\rtwo \302\233m'
              r' \342\200\256 \377 \303\274\n"')
    ends(own, ve)
    assert own.out("logs", "-n", "2", ve, env={"PYTHONIOENCODING": "utf-8"}) == (
        "red ab^Hc^G one\ntwo \\x9bm \\u202e \\xff ü\n")
    raw = own("logs", "--raw", ve, text=False).stdout
    assert raw.endswith(b"\x1b]0;title\x07\x1b[31mred\x1b[0m \x1b[2J\x1b[6n\x1bPq\x1b\\ab\bc\x07 one\rtwo \xc2\x9bm "
                        b"\xe2\x80\xae \xff \xc3\xbc\r\n")


def test_huge_lines_and_binary_bytes(own, make):
    ve = make("head -c 400000 /dev/urandom; printf \"%0100000d\" 7; echo; echo end")
    ends(own, ve)
    raw = own("logs", "--raw", ve, text=False).stdout
    assert BOUND < len(raw) <= 2 * BOUND and raw.endswith(b"7\r\nend\r\n")
    text = own("logs", ve, text=False).stdout
    assert b"\x1b" not in text and text.endswith(b"00007\nend\n")
    assert own.show(ve)["console"].endswith("7\nend\n")


def test_a_full_disk_loses_text_and_nothing_else(make_instance):
    with make_instance() as instance:
        instance("host")
        log = instance.run / "log"
        instance("shutdown")
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(log)], check=True, timeout=20)
        try:
            ve = instance.create("--init", "sh -c 'seq 1 100000; touch /tmp/done; exec cat'")
            instance("start", ve)
            eventually(lambda: instance("exec", ve, "--", "test", "-e", "/tmp/done", code=None).returncode == 0,
                       "the VE is held up", timeout=30)
            assert instance.out("logs", ve).startswith("[vemgr: ")
            instance("restart", ve)
            instance("destroy", "--force", ve)
            instance("shutdown")
        finally:
            subprocess.run(["umount", str(log)], check=True, timeout=20)


def test_nothing_is_left(own, make):
    own("list")
    before = own.traces()
    names = [make("exec yes", start=False) for _ in range(3)]
    clients = [own.popen("console", name, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) for name in names]
    own("start", *names)
    time.sleep(0.5)
    own("destroy", "--force", *names)
    for client in clients:
        client.communicate(timeout=20)
    own.assert_traces(before)
    assert is_alive(own.keeper_pid())
