# SPDX-License-Identifier: GPL-2.0-or-later
"""Features, devices and capabilities: what each opens, and that it is closed without."""

import contextlib
import json
import os
import re
import shutil
import subprocess

import pytest

from tests.kernel.conftest import lines_of
from vemgr.core.privileges import CAPABILITIES, NOT_REMOVABLE, effective
from vemgr.kernel.capabilities import NAMES


@pytest.fixture(scope="module")
def host_ves(vemgr):
    """Two VEs that have the host's Python: one with all features, one without."""
    names = [vemgr.create(template="host"),
             vemgr.create("--feature", "nesting", "--feature", "fuse", "--feature", "tun", template="host")]
    vemgr("start", *names)
    yield dict(zip(("plain", "featured"), names, strict=True))
    vemgr("destroy", "--force", *names)


def run(vemgr, name, *command, **options):
    done = vemgr("exec", name, "--", *command, code=None, **options)
    return done.returncode, done.stdout + done.stderr


def python(vemgr, name, program):
    # Without the word that tells of a defect of ours.
    return run(vemgr, name, "/usr/bin/python3", "-c", f"import sys; sys.tracebacklimit = 0\n{program}")


NEW_PROC = "unshare -Urmpfn sh -c 'mount -t proc proc /proc && mount -t sysfs -o ro sys /sys && cat /proc/self/stat'"
NEW_OVERLAY = ("unshare -Urm sh -c 'mount -t tmpfs t /run && cd /run && mkdir l u w m && mount -t overlay -o "
               "lowerdir=l,upperdir=u,workdir=w,userxattr o m && touch m/file && ls u'")
NEW_CGROUP = "unshare -UrmC sh -c 'mount -t cgroup2 c /mnt && mkdir /mnt/inner && rmdir /mnt/inner && echo made'"
MOUNT_API = "import ctypes; l = ctypes.CDLL(None, use_errno=True); print(l.syscall(430, b'tmpfs', 0) >= 0)"


def test_nesting(vemgr, host_ves):
    code, text = run(vemgr, host_ves["featured"], "sh", "-c", NEW_PROC)
    assert code == 0 and re.fullmatch(r"\d+ \(cat\).*\n", text), text
    assert run(vemgr, host_ves["featured"], "sh", "-c", NEW_OVERLAY) == (0, "file\n")
    assert run(vemgr, host_ves["featured"], "sh", "-c", NEW_CGROUP) == (0, "made\n")
    assert python(vemgr, host_ves["featured"], MOUNT_API) == (0, "True\n")
    code, text = run(vemgr, host_ves["plain"], "sh", "-c", NEW_PROC)
    assert code != 0 and "permission denied" in text.lower()
    assert python(vemgr, host_ves["plain"], MOUNT_API) == (0, "False\n")


def test_what_nesting_shows_cannot_be_taken_away_or_written(vemgr, host_ves):
    name = host_ves["featured"]
    for command in ("umount /dev/.vemgr/proc", "umount -l /dev/.vemgr/sys", "mount -o remount,bind,rw /dev/.vemgr/sys",
                    "echo 1 >/dev/.vemgr/proc/sys/kernel/panic", "echo 1 >/dev/.vemgr/sys/power/state",
                    "umount /proc/sys", "head -c 1 /dev/.vemgr/proc/kcore"):
        assert run(vemgr, name, "sh", "-c", command)[0] != 0, command
    # Its own mount namespace has the masks yet.
    assert run(vemgr, name, "cat", "/proc/cmdline") == (0, "")
    assert run(vemgr, host_ves["plain"], "ls", "/dev/.vemgr")[0] != 0


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_a_container_in_a_ve(vemgr, host_ves, runtime):
    if shutil.which(runtime) is None:
        pytest.skip(f"{runtime} is not installed")
    bundle = f"/run/{runtime}"
    script = (f"mkdir -p {bundle}/rootfs/bin {bundle}/rootfs/proc {bundle}/rootfs/sys {bundle}/rootfs/dev && "
              f"cd {bundle} && cp /bin/busybox rootfs/bin/sh && {runtime} spec && cat config.json")
    code, text = run(vemgr, host_ves["featured"], "sh", "-c", script)
    assert code == 0, text
    config = json.loads(text)
    config["process"] |= {"terminal": False, "args": ["/bin/sh", "-c", "echo in it $$; cat /proc/1/comm; true"]}
    config["linux"].pop("resources", None)
    code, text = run(vemgr, host_ves["featured"], "sh", "-c",
                     f"cd {bundle} && cat >config.json && {runtime} --root {bundle}/state run inner",
                     input=json.dumps(config))
    assert (code, text) == (0, "in it 1\nsh\n")


FUSE = """
import ctypes, os
fd = os.open("/dev/fuse", os.O_RDWR)
os.makedirs("/run/fuse", exist_ok=True)
libc = ctypes.CDLL(None, use_errno=True)
options = f"fd={fd},rootmode=40000,user_id=0,group_id=0".encode()
print(libc.mount(b"x", b"/run/fuse", b"fuse", 0, options), libc.umount2(b"/run/fuse", 2))
"""
TUN = """
import fcntl, os, struct
fd = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"tun7", 1))
print(os.listdir("/sys/class/net").count("tun7"), open("/proc/net/dev").read().count("tun7"))
"""


def test_fuse(vemgr, host_ves):
    assert python(vemgr, host_ves["featured"], FUSE) == (0, "0 0\n")
    code, text = python(vemgr, host_ves["plain"], FUSE)
    assert code != 0 and "No such file" in text
    assert run(vemgr, host_ves["plain"], "mknod", "/run/fuse", "c", "10", "229")[0] != 0


def test_tun(vemgr, host_ves):
    code, text = python(vemgr, host_ves["featured"], TUN)
    assert (code, text.split()[-1]) == (0, "1"), text
    assert "tun7" not in " ".join(vemgr.links())
    code, text = python(vemgr, host_ves["plain"], TUN)
    assert code != 0 and "No such file" in text


@contextlib.contextmanager
def loop_device(directory):
    image = directory / "image"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    device = lines_of("losetup", "--find", "--show", str(image))[0]
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True, timeout=20)


def test_a_disk_of_the_host(vemgr, fresh, tmp_path):
    with loop_device(tmp_path) as device:
        reads = vemgr.create("--device", f"{device}:r")
        writes = vemgr.create("--device", device)
        vemgr("start", reads, writes)
        assert run(vemgr, writes, "sh", "-c", f"echo hello | dd of={device} conv=fsync 2>/dev/null") == (0, "")
        assert run(vemgr, reads, "head", "-c", "6", device) == (0, "hello\n")
        code, text = run(vemgr, reads, "sh", "-c", f"echo x >{device}")
        assert code != 0 and "not permitted" in text
        # Its root alone, and no other disk by way of it.
        assert run(vemgr, writes, "stat", "-c", "%a %U", device) == (0, "600 root\n")
        other = "/dev/loop-control"
        assert run(vemgr, writes, "ls", other)[0] != 0
        vemgr("destroy", "--force", reads, writes)
        subprocess.run(["mke2fs", "-q", device], check=True, timeout=20)
        mounted = tmp_path / "mounted"
        mounted.mkdir()
        name = vemgr.create("--device", device)
        subprocess.run(["mount", device, mounted], check=True, timeout=20)
        try:
            refused = vemgr("start", name, code=21).stderr
            assert "the host uses it" in refused and f"{device}:rwm:force" in refused
            assert "the host uses it" in vemgr("create", "no", "--template", "bb", "--device", device, code=21).stderr
            vemgr("set", name, "--device", f"{device}:r:force")
            vemgr("start", name)
            assert run(vemgr, name, "head", "-c", "1024", device)[0] == 0
        finally:
            vemgr("stop", "--kill", name, code=None)
            subprocess.run(["umount", mounted], check=True, timeout=20)


@pytest.mark.parametrize("path", ["/dev/mem", "/dev/kmsg", "/dev/loop-control", "/dev/tty1", "/dev/null", "/dev/shm"])
def test_what_is_given_to_nobody(vemgr, path):
    if not os.path.exists(path):
        path = "/dev/null"
    for option in (path, f"{path}:r:force"):
        assert vemgr("create", "no", "--template", "bb", "--device", option, code=21).stderr


def bounding(vemgr, name, pid):
    text = vemgr.out("exec", name, "--", "grep", "CapBnd", f"/proc/{pid}/status").split()[1]
    return tuple(sorted(NAMES[number] for number in range(len(NAMES)) if int(text, 16) >> number & 1))


def test_capabilities(vemgr, fresh):
    changes = ("-net_raw", "+mknod")
    name = vemgr.create(*(word for change in changes for word in ("--capability", change)))
    vemgr("start", name)
    assert bounding(vemgr, name, "1") == bounding(vemgr, name, "self") == effective(changes)
    code, text = run(vemgr, name, "ping", "-c", "1", "127.0.0.1")
    assert code != 0 and "permission denied" in text
    # A node is as far away as ever.
    assert run(vemgr, name, "mknod", "/tmp/sda", "b", "8", "0")[0] != 0
    assert "sys_module" in vemgr("set", name, "--capability", "+sys_module", code=21).stderr


def test_a_ve_with_hardly_any_capability(vemgr, fresh):
    changes = tuple(f"-{name}" for name in CAPABILITIES if name not in NOT_REMOVABLE)
    name = vemgr.create(*(word for change in changes for word in ("--capability", change)))
    vemgr("start", name)
    assert bounding(vemgr, name, "1") == bounding(vemgr, name, "self") == NOT_REMOVABLE
    assert vemgr.out("exec", "-u", "user", name, "--", "id", "-u") == "1000\n"
    # The filter is there all the same, though its installation needs what is gone.
    assert vemgr.out("exec", name, "--", "grep", "Seccomp:", "/proc/1/status", "/proc/self/status").count("2") == 2
