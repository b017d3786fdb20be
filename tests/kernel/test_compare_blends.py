# SPDX-License-Identifier: GPL-2.0-or-later
"""The system of guests that have VEs in them, without a guest: on this kernel, in namespaces of its own, it comes up by
its own script, with nothing of this host but what was collected, and the agent in it makes and uses VEs."""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.kernel.conftest import eventually
from vemgr.compare.blends import system
from vemgr.compare.blends.hosting import GuestVE
from vemgr.compare.blends.link import Link
from vemgr.compare.driver import CommandTimedOut, DriverFailed, Resources
from vemgr.compare.guests import image, initrd

# As the first file system of a guest does it (`initrd.py`), but that /dev/$template is a file of ours.
SCRIPT = f"""set -e
cd "$1"
mount --bind . . && cd "$1"
mount --rbind /dev dev
mount -t proc proc proc
mount -t sysfs sys sys
mount -t tmpfs run run
ip link set lo up
ip link add eth0 type veth peer name outside
ip addr add 198.18.64.2/18 dev eth0
ip link set eth0 up
ip link set outside up
mkdir run/old
pivot_root . run/old
b=/bin/busybox
$b umount -l /run/old
export template subnet
$b sh {system._UP} >&2
$b cat /run/vemgr/daemon.log >&2
export PYTHONPATH={system._PACKAGES} PYTHONDONTWRITEBYTECODE=1 PATH=/usr/sbin:/usr/bin
"$2" -c 'import sys; from vemgr.compare.blends.agent import serve; serve(int(sys.argv[1]))' "$3" >&2 || $b true
"$2" -m vemgr.cli shutdown >&2
"""


@pytest.fixture
def disk(can_run_ves):
    """A loop device with the file system of a template, and the directory for all of it."""
    base = Path(tempfile.mkdtemp(prefix="blends-", dir="/var/tmp"))
    tree = base / "template"
    for each in ("bin", "dev", "proc", "sys", "tmp", "root", "etc"):
        (tree / each).mkdir(parents=True)
    shutil.copy(initrd.busybox(), tree / "bin/busybox")
    for each in ("sh", "cat", "sleep", "hostname"):
        (tree / "bin" / each).symlink_to("busybox")
    image.make(tree, base / "image", 64 << 20)
    done = subprocess.run(["losetup", "--find", "--show", base / "image"], capture_output=True, text=True, timeout=20)
    if done.returncode:
        shutil.rmtree(base)
        pytest.skip(f"no loop device: {done.stderr}")
    device = done.stdout.strip()
    yield base, device
    subprocess.run(["losetup", "--detach", device], check=True, timeout=20)
    shutil.rmtree(base)


def test_the_system_comes_up_with_nothing_else_of_this_host(disk):
    base, device = disk
    top, cgroup = base / "root", f"vemgr-test-{secrets.token_hex(3)}"
    system.collect(top)
    assert not (top / "bin/sh").exists() and not (top / "usr/bin/mount").exists()
    with open(f"{top}{system.CONFIG}", "a") as config:
        config.write(f'cgroup = "{cgroup}"\n')
    ours, theirs = socket.socketpair()
    with open(base / "log", "w+") as log:
        process = subprocess.Popen(
            ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "sh", "-c", SCRIPT, "sh", str(top),
             system.python(), str(theirs.fileno())], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            pass_fds=[theirs.fileno()],
            env={"PATH": os.environ["PATH"], "template": os.path.basename(device), "subnet": "198.18.65.64/27"})
        theirs.close()
        link = Link(ours, "native")
        try:
            link.await_agent(60)
            use(SimpleNamespace(ask=link.ask))
        except DriverFailed as error:
            raise AssertionError(f"{error}: {(base / 'log').read_text()}") from error
        finally:
            link.close()
            code = process.wait(60)
    assert code == 0, (base / "log").read_text()
    assert "ready, version" in (base / "log").read_text()
    eventually(lambda: not [*Path("/sys/fs/cgroup").glob(f"**/{cgroup}")], "its cgroup is still there", timeout=60)


def use(guest):
    one = GuestVE(guest, "web1", Resources(1, 64 << 20))
    assert 0 < one.first_instruction < one.up and one.address == "198.18.65.66" and one.disk > 0
    assert one.memory() > 0
    done = one.run(["sh", "-c", "cat; hostname; exit 7"], timeout=30, input=b"\xff input ")
    assert (done.code, done.stdout, done.stderr) == (7, b"\xff input web1\n", b"")
    with pytest.raises(CommandTimedOut):
        one.run(["sleep", "1000"], timeout=0.5)
    server = one.spawn(["sleep", "1000"])
    server.stop()
    other = GuestVE(guest, "web2", Resources(1, 64 << 20))
    assert guest.ask("make-template", name="web2", template="new")["disk"] > 0
    third = GuestVE(guest, "web3", Resources(1, 64 << 20), "new")
    assert other.name == "web2" and third.run(["hostname"], timeout=30).stdout == b"web3\n"
    assert third.stop() >= 0 and one.stop() >= 0
    guest.ask("remove-template", template="new")
