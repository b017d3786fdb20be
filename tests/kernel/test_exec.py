# SPDX-License-Identifier: GPL-2.0-or-later
"""exec, enter: exit codes, pipes, signals, terminals, users."""

import hashlib
import os
import pty
import signal
import subprocess
import termios
import time

import pytest


@pytest.fixture(scope="module")
def ve(vemgr):
    """One running VE for the whole module: these tests change nothing in it."""
    name = vemgr.create()
    vemgr("start", name)
    yield name
    vemgr("destroy", "--force", name)


@pytest.mark.parametrize(("command", "code"), [
    (["true"], 0), (["sh", "-c", "exit 7"], 7), (["sh", "-c", "exit 255"], 255), (["nope"], 127),
    (["/nope/nope"], 127), (["/etc/passwd"], 126), (["/etc"], 126), (["sh", "-c", "kill -TERM $$"], 143),
    (["sh", "-c", "kill -KILL $$"], 137), (["sh", "-c", "kill -SEGV $$"], 139), (["/etc/passwd/x"], 126),
])
def test_exit_codes(vemgr, ve, command, code):
    answer = vemgr("exec", ve, "--", *command, code=code)
    if code in (126, 127):
        assert answer.stderr.startswith(f"vemgr: cannot run {command[0]} in VE {ve}: ")


def test_options_of_the_command_are_its_own(vemgr, ve):
    assert vemgr.out("exec", ve, "--", "echo", "--help", "-u", "x") == "--help -u x\n"
    assert vemgr.out("exec", ve, "echo", "--json") == "--json\n"
    assert vemgr.out("exec", ve, "--", "echo", "--", "a b", "ü", "") == "-- a b ü \n"


def test_pipes_are_binary_clean(vemgr, ve):
    data = os.urandom(50_000_000)
    answer = vemgr("exec", ve, "--", "cat", input=data, text=False)
    assert hashlib.sha256(answer.stdout).digest() == hashlib.sha256(data).digest()
    assert answer.stderr == b""


def test_the_descriptors_are_the_callers_own(vemgr, ve, tmp_path):
    """No byte goes through vemgr: the command has the very file open that the caller had."""
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(b"first\nsecond\n")
    with open(source, "rb") as stdin, open(target, "wb") as stdout:
        stdin.seek(6)
        vemgr.popen("exec", ve, "--", "cat", stdin=stdin, stdout=stdout, stderr=subprocess.DEVNULL).wait(20)
    assert target.read_bytes() == b"second\n"
    answer = vemgr("exec", ve, "--", "sh", "-c", "echo out; echo error >&2")
    assert (answer.stdout, answer.stderr) == ("out\n", "error\n")


def test_closed_descriptors(vemgr, ve):
    command = vemgr.command("exec", ve, "--", "sh", "-c", "cat; echo still; exit 3")
    run = subprocess.run(["sh", "-c", '"$@" <&-', "sh", *command], env=vemgr.environment(), capture_output=True,
                         timeout=20)
    assert (run.stdout, run.returncode) == (b"still\n", 3)
    command = vemgr.command("exec", ve, "--", "sh", "-c", "exit 4")
    run = subprocess.run(["sh", "-c", '"$@" >&- 2>&-', "sh", *command], env=vemgr.environment(), timeout=20)
    assert run.returncode == 4


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_are_forwarded(vemgr, ve, signum):
    name = signum.name.removeprefix("SIG")
    process = vemgr.popen("exec", ve, "--", "sh", "-c",
                          f'trap "echo got {name}; exit 9" {name}; echo ready; while :; do sleep 0.05; done')
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signum)
    assert process.communicate(timeout=20)[0] == f"got {name}\n"
    assert process.returncode == 9


def test_a_command_survives_its_caller(vemgr, ve):
    """As with ssh: what the VE does with a lost client is the VE's business, and it is not left half-killed."""
    process = vemgr.popen("exec", ve, "--", "sh", "-c", "echo ready; sleep 0.5; echo done > /tmp/survived")
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.communicate(timeout=20)
    deadline = time.monotonic() + 10
    while vemgr("exec", ve, "--", "test", "-e", "/tmp/survived", code=None).returncode:
        assert time.monotonic() < deadline
    vemgr("exec", ve, "--", "rm", "/tmp/survived")


def test_user(vemgr, ve):
    identity = ["exec", ve, "--", "id"]
    assert vemgr.out(*identity).startswith("uid=0(root) gid=0(root)")
    as_user = vemgr.out("exec", "-u", "user", ve, "--", "sh", "-c", "id -u; id -g; id -G; echo $HOME $USER; pwd")
    assert as_user.split("\n")[:5] == ["1000", "1000", "1000 44", "/tmp user", "/tmp"]
    assert vemgr.out("exec", "-u", "1000", ve, "--", "id", "-un") == "user\n"
    assert vemgr.out("exec", "-u", "4321", ve, "--", "id", "-u") == "4321\n"
    assert vemgr.out("exec", "-u", "user:7", ve, "--", "id", "-g") == "7\n"
    assert vemgr.out("exec", "-u", "root:extra", ve, "--", "sh", "-c", "id -u; id -g") == "0\n44\n"
    assert "no such user" in vemgr("exec", "-u", "nobody-here", ve, "--", "id", code=126).stderr
    # The root of a VE is one thing, what a user may do is another.
    vemgr("exec", "-u", "user", ve, "--", "touch", "/etc/x", code=1)


@pytest.mark.parametrize("user", ["", ":5", "user:nogroup", "99999999999", "-1", "4294967295", "a:b:c", "root:"])
def test_users_that_are_none(vemgr, ve, user):
    answer = vemgr("exec", "-u", user, ve, "--", "id", "-u", code=None)
    assert answer.returncode in (0, 21, 126) and answer.stdout in ("", "0\n"), "no other user than was asked for"


def test_directory_and_environment(vemgr, ve):
    assert vemgr.out("exec", ve, "--", "pwd") == "/root\n"
    assert vemgr.out("exec", "-C", "/usr", ve, "--", "pwd") == "/usr\n"
    assert "/nope" in vemgr("exec", "-C", "/nope", ve, "--", "pwd", code=126).stderr
    vemgr("exec", "-C", "relative", ve, "--", "pwd", code=21)
    found = vemgr.out("exec", "-e", "A=b=c", "-e", "HOME=/x", ve, "--", "env", env={"SECRET": "of the host"})
    variables = dict(line.split("=", 1) for line in found.splitlines())
    assert (variables["A"], variables["HOME"], variables["container"]) == ("b=c", "/x", "vemgr")
    assert "SECRET" not in variables and "PYTHONPATH" not in variables and "VEMGR_CONFIG" not in variables
    assert variables["PATH"].startswith("/usr/local/sbin:")


def test_a_long_command_line(vemgr, ve):
    assert len(vemgr.out("exec", ve, "--", "echo", "x" * 60_000)) == 60_001
    assert "pass it on standard input" in vemgr("exec", ve, "--", "echo", "x" * 100_000, code=21).stderr


@pytest.mark.parametrize("text", ["=x", "NAME", "", "="])
def test_variables_that_are_none(vemgr, ve, text):
    assert "write KEY=VALUE" in vemgr("exec", "-e", text, ve, "--", "true", code=21).stderr
    assert "write KEY=VALUE" in vemgr("run", "--template", "bb", "-e", text, "--", "true", code=21).stderr


def test_variables_may_be_empty(vemgr, ve):
    assert vemgr.out("exec", "-e", "A=", "-e", "B==", ve, "--", "sh", "-c", "echo [$A][$B]") == "[][=]\n"


def test_bytes_that_are_no_text(vemgr, ve):
    """File names of the VE have any encoding or none."""
    script = 'printf "%s" "$1$A"'
    answer = vemgr("exec", "-e", b"A=\xfe", ve, "--", "sh", "-c", script, "sh", b"\xff\xc3\x28", text=False)
    assert answer.stdout == b"\xff\xc3\x28\xfe"


@pytest.mark.parametrize(("path", "flags", "why"), [
    # Python gives up by itself, before us, on a directory as one of the three.
    ("/", os.O_RDONLY, "is a directory"), ("/", os.O_PATH, "is a directory"),
    ("/etc/passwd", os.O_PATH, "a path only"), ("/dev/fuse", os.O_RDWR, "a device"),
    ("/dev/loop0", os.O_RDONLY, "a device"),
])
def test_what_would_open_more_of_the_host_than_itself(vemgr, ve, path, flags, why):
    try:
        fd = os.open(path, flags)
    except OSError as error:
        pytest.skip(f"{path}: {error}")
    try:
        for name in ("stdin", "stdout", "stderr"):
            with vemgr.popen("exec", ve, "--", "touch", "/tmp/ran", **{name: fd}) as process:
                _, said = process.communicate(timeout=20)
            assert process.returncode == (1 if path == "/" else 21)
            assert said is None or why in said.lower() or path == "/"
        vemgr("exec", ve, "--", "test", "-e", "/tmp/ran", code=1)
    finally:
        os.close(fd)


def test_devices_that_a_ve_has_itself(vemgr, ve):
    with open("/dev/zero", "rb") as zero, open("/dev/full", "wb") as full:
        with vemgr.popen("exec", ve, "--", "head", "-c", "5", stdin=zero, text=False) as process:
            assert process.communicate(timeout=20)[0] == bytes(5)
        with vemgr.popen("exec", ve, "--", "echo", stdout=full) as process:
            assert "No space left" in process.communicate(timeout=20)[1]


def test_many_at_once(vemgr, ve):
    processes = [vemgr.popen("exec", ve, "--", "sh", "-c", f"echo {n}; exit {n}") for n in range(16)]
    for number, process in enumerate(processes):
        assert process.communicate(timeout=60)[0] == f"{number}\n"
        assert process.returncode == number


# Terminals


def test_a_terminal_of_the_ve(ve, terminal):
    seen = terminal("exec", "-t", ve, "--", "sh", "-c", "tty; stty size; echo $TERM; exit 6")
    assert seen.wait() == 6
    name, size, term = seen.text.split("\n")[:3]
    assert name.startswith("/dev/pts/") and (size, term) == ("30 100", "vt100")
    assert termios.tcgetattr(seen.slave) == seen.before, "the caller's terminal is as it was"


def test_the_window_size_follows(ve, terminal):
    seen = terminal("exec", "-t", ve, "--", "sh", "-c",
                    'trap "stty size" WINCH; echo ready; while :; do sleep 0.05; done')
    seen.expect("ready\n")
    seen.resize(50, 132)
    seen.expect("50 132\n")
    seen.type("\x03")
    assert seen.wait() == 128 + signal.SIGINT


def test_keys_mean_what_the_terminal_of_the_ve_says(ve, terminal):
    seen = terminal("exec", "-t", ve, "--", "sh", "-c", "echo ready; sleep 1000")
    seen.expect("ready\n")
    seen.type("\x03")
    assert seen.wait() == 128 + signal.SIGINT
    seen = terminal("exec", "-t", ve, "--", "sh", "-c", "echo ready; exec cat")
    seen.expect("ready\n")
    seen.type("typed\n")
    seen.expect("typed\ntyped\n")  # the echo, and what cat says
    seen.type("\x04")
    assert seen.wait() == 0


def test_job_control(ve, terminal):
    seen = terminal("exec", "-t", "-e", "PS1=% ", ve, "--", "sh")
    seen.expect("% ")
    seen.type("sleep 1000\n")
    seen.expect("sleep 1000\n")
    time.sleep(0.3)  # the shell gives the terminal to its job after the echo
    seen.type("\x1a")
    seen.expect("Stopped")
    seen.expect("% ")
    seen.type("jobs\n")
    seen.expect("Stopped")
    seen.type("kill -9 %1; exit 9\n")
    seen.expect("You have stopped jobs")  # it has not seen its end yet; a second time it goes
    seen.type("exit 9\n")
    assert seen.wait() == 9
    assert "can't access tty" not in seen.text


def test_enter(ve, terminal):
    seen = terminal("enter", ve)
    seen.type("echo $((6*7)) $0\n")  # ahead of the prompt
    seen.expect("42 ")
    seen.type("exit 4\n")
    assert seen.wait() == 4
    seen = terminal("enter", "-u", "user", ve)
    seen.type("id -u; exit\n")
    seen.expect("1000\n")
    assert seen.wait() == 0


def test_enter_with_a_script_on_standard_input(vemgr, ve):
    assert vemgr.out("enter", ve, input="echo from a script\nexit 2\n", code=2) == "from a script\n"


def test_much_output_on_a_terminal_arrives(ve, terminal):
    seen = terminal("exec", "-t", ve, "--", "sh", "-c", "seq 1 30000; exit 5")
    assert seen.wait() == 5
    assert seen.text.split() == [str(number) for number in range(1, 30001)]


def test_a_terminal_for_a_program_without_one(vemgr, ve):
    script = "read line; tty; echo got $line; exit 3"
    answer = vemgr("exec", "-t", ve, "--", "sh", "-c", script, input="hello\n", code=3)
    assert "/dev/pts/" in answer.stdout and "got hello" in answer.stdout


def test_a_background_process_does_not_hold_the_terminal(ve, terminal):
    seen = terminal("exec", "-t", ve, "--", "sh", "-c", "trap '' HUP; sleep 30 & echo started; exit 2")
    began = time.monotonic()
    assert seen.wait() == 2 and time.monotonic() - began < 15


# The caller's terminal, without -t: it stays outside


def test_the_callers_terminal_does_not_go_in(ve, terminal):
    seen = terminal("exec", ve, "--", "sh", "-c", "for fd in 0 1 2; do readlink /proc/$$/fd/$fd; done; tty")
    assert seen.wait() == 1
    lines = seen.text.split()
    assert [line.partition(":")[0] for line in lines[:3]] == ["pipe"] * 3
    assert lines[1] == lines[2], "one terminal is one pipe, or what is written would change its order"
    assert termios.tcgetattr(seen.slave) == seen.before


def test_a_process_that_stays_has_nothing_of_the_callers_terminal(vemgr, ve, terminal):
    """It could read the password that is typed into the host's sudo next."""
    stay = "exec 3<&0; (sleep 0.5; cat <&3 >/tmp/stolen; echo noise; echo noise >&2; touch /tmp/tried) & exit 3"
    seen = terminal("exec", ve, "--", "sh", "-c", stay)
    assert seen.wait() == 3
    seen.type("password\n")
    vemgr("exec", ve, "--", "sh", "-c", "for i in $(seq 100); do [ -e /tmp/stolen ] && exit; sleep 0.05; done; exit 1")
    assert vemgr.out("exec", ve, "--", "cat", "/tmp/stolen") == ""
    time.sleep(0.3)
    assert os.read(seen.slave, 100) == b"password\n"
    seen.read(0)
    assert "noise" not in seen.text
    vemgr("exec", ve, "--", "rm", "-f", "/tmp/stolen", "/tmp/tried")


@pytest.mark.parametrize("stay", ["sleep 1000 & exit 2", "yes & sleep 0.2; kill -9 $$"])
@pytest.mark.parametrize("options", [[], ["-t"]])
def test_a_process_that_stays_is_not_waited_for(vemgr, ve, terminal, options, stay):
    began = time.monotonic()
    seen = terminal("exec", *options, ve, "--", "sh", "-c", f"echo last; {stay}")
    assert seen.wait() in (2, 137) and time.monotonic() - began < 10
    assert "last" in seen.text
    vemgr("exec", ve, "--", "killall", "yes", "sleep", code=None)


def test_typing_without_a_terminal_of_the_ve(ve, terminal):
    seen = terminal("exec", ve, "--", "sh", "-c", "echo ready; cat; echo end; exit 8")
    seen.expect("ready\n")
    seen.type("typed\n")
    seen.expect("typed\ntyped\n")  # the echo of the caller's terminal, and what cat says
    seen.type("\x04")
    assert seen.wait() == 8
    assert seen.text == "end\n"


def test_ctrl_c_without_a_terminal_of_the_ve(ve, terminal):
    seen = terminal("exec", ve, "--", "sh", "-c",
                    "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.05; done")
    seen.expect("ready\n")
    seen.type("\x03")
    assert seen.wait() == 9
    assert "caught" in seen.text


def test_output_and_errors_keep_their_order(ve, terminal):
    seen = terminal("exec", ve, "--", "sh", "-c", "for i in $(seq 1 2 2000); do echo $i; echo $((i+1)) >&2; done")
    assert seen.wait() == 0
    assert seen.text.split() == [str(number) for number in range(1, 2001)]


def test_much_output_without_a_terminal_of_the_ve(ve, terminal):
    seen = terminal("exec", ve, "--", "sh", "-c", "seq 1 100000; exit 5")
    assert seen.wait(60) == 5
    assert seen.text.split() == [str(number) for number in range(1, 100001)]


def test_output_may_be_opened_again(ve, terminal):
    seen = terminal("exec", "-u", "user", ve, "--", "sh", "-c", "echo one >/dev/stderr; echo two >/proc/self/fd/1")
    assert seen.wait() == 0
    assert seen.text == "one\ntwo\n"


def test_a_pager_behind_keeps_its_keys(ve, terminal):
    seen = terminal("exec", ve, "--", "sh", "-c", "echo ready; cat")
    seen.expect("ready\n")
    mode = termios.tcgetattr(seen.slave)
    mode[3] &= ~(termios.ICANON | termios.ECHO)
    termios.tcsetattr(seen.slave, termios.TCSANOW, mode)
    time.sleep(0.5)  # longer than what it takes to see that
    seen.type("q")
    time.sleep(0.5)
    assert os.read(seen.slave, 10) == b"q"
    termios.tcsetattr(seen.slave, termios.TCSANOW, seen.before)
    seen.type("\x04")
    assert seen.wait() == 0


def test_in_the_background_it_leaves_the_terminal_alone(vemgr, ve, terminal):
    """A job that reads would be stopped, and steal from the shell before that."""
    inner = vemgr.command("exec", ve, "--", "sh", "-c", "echo ready; sleep 1; echo done")
    seen = terminal(command=["sh", "-mc", '"$@" & wait; exit 4', "sh", *inner])
    seen.expect("ready\n")
    seen.type("for the shell\n")
    seen.expect("done\n")
    assert seen.wait() == 4
    assert os.read(seen.slave, 100) == b"for the shell\n"


def test_a_stopped_terminal_can_be_left(vemgr, ve, terminal):
    seen = terminal("exec", ve, "--", "sh", "-c", "echo ready; exec yes")
    seen.expect("ready\n")
    seen.type("\x13")
    time.sleep(0.3)
    assert seen.process.poll() is None
    deadline = time.monotonic() + 20
    while seen.process.poll() is None:  # the first ends the command, a later one the wait for the terminal
        assert time.monotonic() < deadline
        seen.process.terminate()
        time.sleep(0.2)
    assert seen.process.returncode == 128 + signal.SIGTERM


def test_a_terminal_that_has_hung_up(vemgr, ve):
    """What goes on after its login was lost goes on in a VE, too."""
    master, slave = pty.openpty()
    os.close(master)
    script = "cat; trap '' PIPE; echo out; exit 3"
    process = vemgr.popen("exec", ve, "--", "sh", "-c", script, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    assert process.wait(20) == 3


# A terminal of the VE, but files and pipes outside


def test_a_zero_byte_in_the_account_keeps_nobody_out(vemgr, fresh):
    ve = vemgr.create()
    vemgr("start", ve)
    for entry in (r"root:x:0:0::/ro\000ot:/bin/sh", r"root:x:0:0::/root:/bin/\000sh", r"ro\000ot:x:0:0::/root:/bin/sh"):
        vemgr("exec", ve, "--", "sh", "-c", f"printf '{entry}\\n' > /etc/passwd")
        assert vemgr.out("exec", ve, "--", "sh", "-c", "id -u; pwd") == "0\n/root\n", entry
        assert vemgr.out("enter", ve, input="echo in\n") == "in\n", entry


def test_much_input_for_a_terminal(vemgr, ve):
    """The terminal's echo has to be taken away, or it takes no more input."""
    lines = "".join(f"{number}\n" for number in range(1, 200001))
    answer = vemgr("exec", "-t", ve, "--", "sh", "-c", "stty -echo; echo ready; wc -l; exit 3", input=lines, code=3)
    assert "200000" in answer.stdout.split("ready")[-1]
    answer = vemgr("exec", "-t", ve, "--", "cat", input=lines)
    assert 200000 < len(answer.stdout.split()) <= 400000, "what cat says, and the echo: the kernel may drop some of it"


@pytest.mark.parametrize("text", ["", "a line\n", "no end of line"])
def test_the_end_of_input_reaches_a_terminal(vemgr, ve, text):
    answer = vemgr("exec", "-t", ve, "--", "sh", "-c", "stty -echo; cat; exit 6", input=text, code=6)
    assert text.strip() in answer.stdout


@pytest.mark.parametrize("options", [[], ["-t"]])
def test_a_reader_that_goes_away_hangs_up(vemgr, ve, options):
    process = vemgr.popen("exec", *options, ve, "--", "yes", stderr=subprocess.DEVNULL)
    assert process.stdout.readline() == "y\n"
    process.stdout.close()
    assert process.wait(20) in (1, 128 + signal.SIGPIPE, 128 + signal.SIGHUP)
