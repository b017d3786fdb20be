# SPDX-License-Identifier: GPL-2.0-or-later
"""push and pull: into and out of VEs that run, that are stopped, and that have prepared for it."""

import contextlib
import io
import os
import shutil
import signal
import socket
import stat
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest

from tests.kernel.conftest import eventually
from tests.kernel.hostile import CANARY, TRICKS, in_time, outside, untouched
from vemgr.api.client import RemoteError
from vemgr.files import single
from vemgr.files.packing import Packer
from vemgr.kernel.removal import remove_tree


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return outside(tmp_path_factory.mktemp("outside"))


@pytest.fixture(params=["running", "stopped"])
def subject(vemgr, ve, request):
    """A VE in each state, with something of its own in it."""
    vemgr("start", ve)
    vemgr("exec", ve, "--", "sh", "-c", "echo inside > /root/file; chown 7:8 /root/file; chmod 4751 /root/file")
    if request.param == "stopped":
        vemgr("stop", "--kill", ve)
    return ve


def seen(vemgr, ve, command):
    """What a command in the VE prints; a stopped one is started for it."""
    stopped = vemgr.state_of(ve) == "stopped"
    if stopped:
        vemgr("start", ve)
    try:
        return vemgr("exec", ve, "--", "sh", "-c", command).stdout
    finally:
        if stopped:
            vemgr("stop", "--kill", ve)


def test_a_file(vemgr, subject, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(os.urandom(300_000))
    source.chmod(0o4750)
    before = vemgr.traces()
    vemgr("push", str(source), f"{subject}:/root/new")
    vemgr("push", "--owner", "5:6", "--mode", "604", str(source), f"{subject}:/root")
    vemgr("push", "-", f"{subject}:/root/file", input="piped\n")
    back = tmp_path / "back"
    vemgr("pull", f"{subject}:/root/new", str(back))
    assert back.read_bytes() == source.read_bytes()
    assert stat.S_IMODE(back.stat().st_mode) == 0o750, "no set-user-ID program of the host comes out of a VE"
    assert (back.stat().st_uid, back.stat().st_mtime_ns) == (os.getuid(), source.stat().st_mtime_ns)
    vemgr("pull", f"{subject}:/root/source", str(tmp_path / "source.back"))
    assert (tmp_path / "source.back").read_bytes() == source.read_bytes()
    assert vemgr("pull", f"{subject}:/root/file", "-").stdout == "piped\n"
    vemgr.assert_traces({**before, "files": vemgr.files()})
    assert seen(vemgr, subject, "cd /root; stat -c '%n %a %u:%g %s' new source file; ls -A").split("\n")[:3] == [
        "new 4750 0:0 300000", "source 604 5:6 300000", "file 644 0:0 6"]
    assert not [name for name in seen(vemgr, subject, "ls -A /root").split() if name.startswith(".vemgr")]


def test_a_directory(vemgr, subject, tmp_path):
    tree = tmp_path / "tree"
    (tree / "empty").mkdir(parents=True)
    (tree / "deep").mkdir()
    (tree / "deep/file").write_text("content\n")
    (tree / "deep/file").chmod(0o6711)
    os.link(tree / "deep/file", tree / "second")
    (tree / "link").symlink_to("/etc/passwd")
    os.mkfifo(tree / "fifo")
    vemgr("push", "-r", str(tree), f"{subject}:/srv")
    vemgr("push", "-r", str(tree), f"{subject}:/srv")
    assert "exists" in vemgr("push", "-r", str(tree), f"{subject}:/srv", code=48).stderr
    shown = "cd /srv/tree; stat -c '%n %a %u %h %F' deep/file second link; readlink link; ls -A /srv . | sort"
    assert seen(vemgr, subject, shown).split("\n") == [
        "deep/file 6711 0 2 regular file", "second 6711 0 2 regular file", "link 777 0 1 symbolic link", "/etc/passwd",
        "", ".:", "/srv:", "deep", "deep", "empty", "empty", "link", "link", "second", "second", "tree", ""]
    (tmp_path / "here").mkdir()
    vemgr("pull", "-r", f"{subject}:/srv/tree", str(tmp_path / "here"))
    assert "exists" in vemgr("pull", "-r", f"{subject}:/srv/tree", str(tmp_path / "here"), code=21).stderr
    assert sorted(os.listdir(tmp_path / "here/tree")) == ["deep", "empty", "link", "second"]
    vemgr("pull", "-r", f"{subject}:/srv/tree", str(tmp_path / "back"))
    back = tmp_path / "back"
    assert sorted(os.listdir(back)) == ["deep", "empty", "link", "second"]
    assert os.readlink(back / "link") == "/etc/passwd"
    assert (back / "second").samefile(back / "deep/file")
    assert stat.S_IMODE((back / "second").stat().st_mode) == 0o711
    archive = tmp_path / "archive.tar"
    archive.write_bytes(vemgr("pull", "-r", f"{subject}:/root", "-", text=False).stdout)
    with tarfile.open(archive) as found:
        entry = found.getmember("./file")
        assert (entry.mode, entry.uid, entry.gid) == (0o4751, 7, 8)
    with open(archive, "rb") as file:
        vemgr("push", "-r", "-", f"{subject}:/root/again", stdin=file)
    assert seen(vemgr, subject, "stat -c '%a %u:%g' /root/again/file") == "4751 7:8\n"


def test_refusals(vemgr, ve, tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    for arguments, code, why in (
        (("push", str(file), "nobody:/x"), 14, "no such VE"), (("push", str(file), ve), 21, "write NAME:/PATH"),
        (("push", str(file), f"{ve}:relative"), 21, "write NAME:/PATH"),
        (("push", str(tmp_path / "none"), f"{ve}:/x"), 21, "no such file"),
        (("push", str(tmp_path), f"{ve}:/x"), 21, "--recursive"),
        (("push", "-r", str(file), f"{ve}:/x"), 21, "not a directory"),
        (("push", str(file), f"{ve}:/nowhere/x"), 48, "/nowhere: No such file"),
        (("push", str(file), f"{ve}:/.."), 0, ""),
        (("push", "-", f"{ve}:/root"), 48, "Is a directory"),
        (("push", "--owner", "65536", str(file), f"{ve}:/x"), 21, "65535"),
        (("push", "--mode", "9", str(file), f"{ve}:/x"), 21, "octal"),
        (("pull", f"{ve}:/nowhere", "-"), 48, "No such file"), (("pull", f"{ve}:/etc", "-"), 48, "Is a directory"),
        (("pull", "-r", f"{ve}:/etc/passwd", str(tmp_path / "y")), 48, "Not a directory"),
        (("pull", f"{ve}:/etc/passwd", str(tmp_path / "no/where")), 21, "no such file"),
    ):
        assert why in vemgr(*arguments, code=code).stderr, arguments
    assert sorted(os.listdir(tmp_path)) == ["file"]
    vemgr("start", ve)
    assert "not a regular file" in vemgr("pull", f"{ve}:/dev/null", "-", code=48).stderr


@pytest.mark.parametrize("trick", TRICKS)
def test_every_trick(out, tmp_path, trick):
    """The same functions without a VE's ids around them: with the rights of the host's root, on a plain directory."""
    tree = tmp_path / "tree"
    for name in ("a", "b", "c"):
        (tree / name).mkdir(parents=True)
        if (name, trick) != ("c", "deep tree"):
            TRICKS[trick](tree / name / "it", out)
    source = tmp_path / "source"
    source.write_text("pushed\n")
    root = os.open(tree, os.O_PATH)
    try:
        with untouched(out), in_time(20, trick):
            for path in ("/a/it", "/a/it/passwd", "/a/it/../it/canary", "/a/it/0"):
                with contextlib.suppress(OSError):
                    os.close(single.open_file(root, path))
            with contextlib.suppress(OSError), open(source, "rb") as file:
                place = single.open_place(root, "/a/it/passwd", "source")
                single.write_file(place, file.fileno(), 0o644, (0, 0), None, bool)
            with open(source, "rb") as file, contextlib.suppress(IsADirectoryError):
                place = single.Place(os.open(tree / "b", os.O_PATH), "it")
                single.write_file(place, file.fileno(), 0o644, (0, 0), 1, bool)
                assert (tree / "b/it").read_text() == "pushed\n"
            if trick != "huge file":
                pack(tree / "c")
        if trick == "deep tree":
            with pytest.raises(OSError, match="more than 100 directories deep"):
                pack(tree / "a")
        for name in ("a", "b"):
            assert not [each for each in os.listdir(tree / name) if each.startswith(".vemgr")]
    finally:
        os.close(root)
        remove_tree(str(tree))


def pack(path):
    """Pack a directory and unpack what has come of it; an entry that holds what is outside would be seen in that."""
    archive = io.BytesIO()
    top = os.open(path, os.O_RDONLY)
    try:
        packer = Packer(archive)
        packer.tree(top)
        packer.close()
    finally:
        os.close(top)
    assert CANARY.encode() not in archive.getvalue()


# Of those that lead somewhere and those that hold.
SOME = ("directory", "link to the host", "link to a file of the host", "link upwards", "link by process 1",
        "links in a circle", "fifo", "character device", "socket")


@pytest.mark.parametrize("state", ["running", "stopped"])
def test_tricks(vemgr, fresh, out, tmp_path, state):
    """Whatever stands at the path or on the way to it: nothing of the host is touched, nothing waits."""
    name = vemgr.create()
    upper = vemgr.state / "ve" / name / "data/0/upper"
    vemgr("start", name)
    vemgr("stop", "--kill", name)
    for number, trick in enumerate(SOME):
        (upper / f"t{number}").mkdir()
        (upper / f"d{number}").mkdir()
        TRICKS[trick](upper / f"t{number}/it", out)
        TRICKS[trick](upper / f"d{number}/it", out)
    if state == "running":
        vemgr("start", name)
    source = tmp_path / "source"
    source.write_text("pushed\n")
    with vemgr.client() as client, untouched(out):
        for number, trick in enumerate(SOME):
            path = f"/t{number}/it/passwd" if number % 2 else f"/t{number}/it"
            assert CANARY.encode() not in pulled(client, name, path, "file"), trick
            assert CANARY.encode() not in pulled(client, name, f"/t{number}/it", "archive"), trick
            pushed(client, name, f"/d{number}/it/passwd", source)
            refused = pushed(client, name, f"/d{number}/it", source)
            assert refused or pulled(client, name, f"/d{number}/it", "file") == b"pushed\n", trick


def pulled(client, name, path, kind):
    ours, theirs = socket.socketpair()
    reader, writer = os.pipe()
    received = []

    def read():
        while chunk := os.read(reader, 65536):
            received.append(chunk)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        with ours, theirs, in_time(30, f"pull {path}"), contextlib.suppress(RemoteError):
            client.call("Pull", {"name": name, "path": path, "kind": kind, "stream": 0, "hold": 1},
                        [writer, theirs.fileno()])
    finally:
        os.close(writer)
        thread.join()
        os.close(reader)
    return b"".join(received)


def pushed(client, name, path, source):
    ours, theirs = socket.socketpair()
    ours.send(b"y")  # before it is asked for
    with ours, theirs, open(source, "rb") as file, in_time(30, f"push {path}"):
        try:
            client.call("Push", {"name": name, "path": path, "kind": "file", "fileName": "source", "stream": 0,
                                 "hold": 1}, [file.fileno(), theirs.fileno()])
        except RemoteError as error:
            assert error.code == 48 and "defect" not in str(error), error
            return str(error)
    return ""


SWAPPING = """
mkdir -p /swap/real /swap/tree/below; echo inside > /swap/real/canary; cp /swap/real/canary /swap/tree/below
while :; do
  mv -T /swap/real /swap/was; ln -s {out} /swap/real; rm /swap/real; ln -s /proc/1/root{out} /swap/real; rm /swap/real
  mkfifo /swap/real; rm /swap/real; mv -T /swap/was /swap/real
  mv -T /swap/tree/below /swap/tree/was; ln -s {out} /swap/tree/below; rm /swap/tree/below
  mv -T /swap/tree/was /swap/tree/below
  rm -f /swap/real/canary; ln -s {out}/canary /swap/real/canary; rm /swap/real/canary; mkfifo /swap/real/canary
  rm /swap/real/canary; echo inside > /swap/real/canary
done
"""


def test_swapping(vemgr, running, out, tmp_path):
    """A VE that replaces what is on the way as fast as it can."""
    source = tmp_path / "source"
    source.write_text("pushed\n")
    swapper = vemgr.popen("exec", running, "--", "sh", "-c", SWAPPING.format(out=out))
    seen_files, refusals = set(), set()
    try:
        with vemgr.client() as client, untouched(out):
            eventually(lambda: pulled(client, running, "/swap/real/canary", "file"), "the swapping begins")
            for _ in range(6):
                seen_files.add(pulled(client, running, "/swap/real/canary", "file"))
                assert CANARY.encode() not in pulled(client, running, "/swap/tree", "archive")
                refusals.add(pushed(client, running, "/swap/real/canary", source))
    finally:
        vemgr("stop", "--kill", running)
        swapper.communicate(timeout=20)
    assert CANARY.encode() not in seen_files


def test_a_client_that_gives_up(vemgr, subject, tmp_path):
    """Nothing is left of what it had begun, and the VE is free."""
    before = vemgr.traces()
    for how in (signal.SIGKILL, signal.SIGINT):
        for arguments in (("push", "-", f"{subject}:/root/half"), ("push", "-r", "-", f"{subject}:/root/half")):
            client = vemgr.popen(*arguments, stdin=subprocess.PIPE, text=False)
            client.stdin.write(bytes(50_000) if "-r" not in arguments else archive_of("name", 40_000))
            client.stdin.flush()
            eventually(lambda: jobs(vemgr), "somebody works on it")
            client.send_signal(how)
            client.communicate(timeout=20)  # closes the pipe, maybe before the client is dead
            assert client.returncode == -how
            eventually(lambda: not jobs(vemgr), "its process stays")
    assert "half" not in seen(vemgr, subject, "ls -A /root") and ".vemgr" not in seen(vemgr, subject, "ls -A /root")
    if vemgr.state_of(subject) == "running":
        vemgr.assert_traces(before)


def test_a_daemon_that_dies(vemgr, subject):
    client = vemgr.popen("push", "-r", "-", f"{subject}:/root/half", stdin=subprocess.PIPE, text=False)
    client.stdin.write(archive_of("name", 100_000)[:50_000])
    client.stdin.flush()
    eventually(lambda: jobs(vemgr), "somebody works on it")
    vemgr.kill(vemgr.daemon_pid())
    with contextlib.suppress(BrokenPipeError):
        client.communicate(timeout=20)
    assert client.returncode == 3
    vemgr("list")
    assert not jobs(vemgr)
    assert seen(vemgr, subject, "ls -A /root") == "file\n"


def test_a_ve_that_ends_meanwhile(vemgr, running):
    client = vemgr.popen("push", "-", f"{running}:/root/half", stdin=subprocess.PIPE)
    eventually(lambda: jobs(vemgr), "somebody works on it")
    vemgr("stop", "--kill", running)
    _, said = client.communicate(timeout=20)
    assert client.returncode == 3 and "the VE has ended meanwhile" in said
    vemgr("start", running)
    assert vemgr("exec", running, "--", "ls", "-A", "/root").stdout == ""


def jobs(vemgr):
    """Processes that work on files for this daemon."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            command = file.read()
            if b"vemgr.files.main" in command and str(vemgr.run).encode() in command + os.fsencode(os.readlink(
                    f"/proc/{pid}/fd/{lock_of(command)}")):
                found.append(int(pid))
    return found


def lock_of(command):
    return int(command.partition(b'"lock": ')[2].partition(b"}")[0])


def archive_of(name, size):
    """A tar archive with one file."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = size
        archive.addfile(entry, io.BytesIO(bytes(size)))
    return target.getvalue()


def test_on_the_template_host(vemgr, fresh, tmp_path):
    """It has several trees: what is below /usr comes from, and goes to, the one that is mounted there."""
    name = vemgr.create(template="host")
    source = tmp_path / "source"
    source.write_text("pushed\n")
    for state in ("never started", "running"):
        if state == "running":
            vemgr("start", name)
        vemgr("push", str(source), f"{name}:/usr/local/bin/{state.replace(' ', '-')}")
        assert vemgr("pull", f"{name}:/usr/local/bin/{state.replace(' ', '-')}", "-").stdout == "pushed\n"
        assert vemgr("pull", f"{name}:/usr/bin/env", "-", text=False).stdout == Path("/usr/bin/env").read_bytes()
    assert set(vemgr("exec", name, "--", "ls", "/usr/local/bin").stdout.split()) >= {"never-started", "running"}
    assert not shutil.which("never-started")
