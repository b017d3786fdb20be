# SPDX-License-Identifier: GPL-2.0-or-later
"""Templates from archives of any kind and from programs that write one, through the command line."""

import os
import pty
import shutil
import signal
import stat
import subprocess
import time

import pytest

from tests.kernel.conftest import BUSYBOX, eventually, is_alive

# Writes an archive slowly, as mmdebstrap does, and clears away when it is told to end.
SLOW = r"""#!/bin/sh
trap 'echo clearing away >&2; sleep 0.5; rm -r "$SCRATCH/chroot"; exit 1' TERM
mkdir "$SCRATCH/chroot"; echo $$ >"$SCRATCH/pid"; sleep 1000 & echo $! >"$SCRATCH/child"
tar -C "$TREE" -cf "$SCRATCH/chroot/t.tar" .
case $MODE in
whole) cat "$SCRATCH/chroot/t.tar"; kill $!; rm -r "$SCRATCH/chroot"; exit 0 ;;
fails) cat "$SCRATCH/chroot/t.tar"; echo no luck >&2; kill $!; rm -r "$SCRATCH/chroot"; exit 7 ;;
end) cat "$SCRATCH/chroot/t.tar" ;;
part) head -c 20000 "$SCRATCH/chroot/t.tar" ;;
esac
echo waiting >&2; wait
"""


@pytest.fixture
def tree(tmp_path):
    for directory in ("etc", "bin", "usr"):
        (tmp_path / "tree" / directory).mkdir(parents=True)
    shutil.copy2(BUSYBOX, tmp_path / "tree/bin/sh")
    for number in range(40):
        (tmp_path / f"tree/etc/{number}").write_text("x" * 3000)
    return tmp_path / "tree"


@pytest.fixture
def build(vemgr, tree, tmp_path):
    """Begin `template build` with a program that is not mmdebstrap."""
    fake = tmp_path / "bin/mmdebstrap"
    fake.parent.mkdir()
    fake.write_text(SLOW)
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)

    def begin(mode, **options):
        env = vemgr.environment(PATH=f"{fake.parent}:{os.environ['PATH']}", SCRATCH=str(tmp_path), TREE=str(tree),
                                MODE=mode)
        return subprocess.Popen(vemgr.command("template", "build", "debian-12", "--keyring", "/etc/passwd"), env=env,
                                **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE,
                                   "text": True} | options)
    yield begin
    vemgr("template", "remove", "debian-12", code=None)


def names(vemgr):
    return {template["name"] for template in vemgr.json("template", "list")}


def assert_nothing_left(vemgr, tmp_path):
    assert "debian-12" not in names(vemgr)
    left = vemgr.state / "templates"
    eventually(lambda: not [path for path in left.iterdir() if "debian-12" in path.name], "something partial stays")
    assert not (tmp_path / "chroot").exists()
    for which in ("pid", "child"):
        assert not is_alive(int((tmp_path / which).read_text()))


@pytest.mark.parametrize("pack", ["cat", "gzip", "xz", "zstd"])
@pytest.mark.parametrize("piped", [False, True])
def test_archives(vemgr, tree, tmp_path, pack, piped):
    archive = tmp_path / "archive"
    subprocess.run(f"tar -C {tree} -cf - . | {pack} >{archive}", shell=True, check=True, timeout=60)
    if piped:
        with archive.open("rb") as stdin:
            vemgr("template", "import", "packed", "-", stdin=stdin)
    else:
        vemgr("template", "import", "packed", str(archive))
    assert vemgr.json("template", "show", "packed")["files"] >= 40
    vemgr("template", "remove", "packed")


def test_a_directory(vemgr, tree):
    vemgr("template", "import", "packed", str(tree))
    assert "packed exists" in vemgr("template", "import", "packed", str(tree), code=44).stderr
    vemgr("template", "remove", "packed")


def test_nobody_types_an_archive(vemgr):
    master, slave = pty.openpty()
    answer = vemgr("template", "import", "typed", "-", stdin=slave, code=21)
    os.close(master)
    os.close(slave)
    assert "pipe" in answer.stderr


def test_a_program_that_writes_an_archive(vemgr, build):
    process = build("whole")
    assert process.communicate(timeout=30)[0] == "" and process.returncode == 0
    assert "debian-12" in names(vemgr)
    again = build("whole")
    assert "debian-12 exists" in again.communicate(timeout=30)[1] and again.returncode == 44


def test_a_program_that_fails_in_the_end(vemgr, build, tmp_path):
    process = build("fails")
    assert "mmdebstrap failed with status 7: no luck" in process.communicate(timeout=30)[1]
    assert process.returncode == 3
    assert_nothing_left(vemgr, tmp_path)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("mode", ["none", "part", "end"])
def test_an_interrupted_build_leaves_nothing(vemgr, build, tmp_path, mode, signum):
    process = build(mode)
    assert process.stderr.readline() == "waiting\n"
    time.sleep(0.2)
    process.send_signal(signum)
    process.send_signal(signum)  # somebody who is impatient
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + signum and "clearing away" in said and "Traceback" not in said
    assert_nothing_left(vemgr, tmp_path)
