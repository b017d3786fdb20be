# SPDX-License-Identifier: GPL-2.0-or-later
"""What is covered with a file of lxcfs and what is left, decided by the tables of mounts alone."""

import os
import subprocess
import sys

import pytest

from vemgr.core.errors import KernelLacks
from vemgr.core.plan import View
from vemgr.files.views import _may_go
from vemgr.kernel.mountinfo import Mount, parse
from vemgr.runtime.views import Server, Views

TABLE = """\
21 1 0:20 / /proc rw,nosuid - proc proc rw
22 21 0:41 /proc/meminfo /proc/meminfo ro,nosuid shared:7 master:1 - fuse.lxcfs lxcfs rw,allow_other
23 1 8:1 /a\\040b\\134 /mnt/with\\040blank\\011 rw - ext4 /dev/sda rw
"""


def test_the_table_of_mounts():
    assert parse(TABLE) == [
        Mount(21, "0:20", "/", "/proc", "proc"), Mount(22, "0:41", "/proc/meminfo", "/proc/meminfo", "fuse.lxcfs"),
        Mount(23, "8:1", "/a b\\", "/mnt/with blank\t", "ext4")]


@pytest.mark.parametrize(("there", "name", "by_live", "by_kernel"), [
    (("0:41", "/proc/meminfo", "/proc/meminfo", "fuse.lxcfs"), "proc/meminfo", False, True),
    (("0:40", "/proc/meminfo", "/proc/meminfo", "fuse.lxcfs"), "proc/meminfo", True, True),  # has ended
    (("0:20", "/", "/proc", "proc"), "proc/meminfo", True, False),
    (("0:21", "/meminfo", "/proc/meminfo", "proc"), "proc/meminfo", True, False),  # put there when lxcfs had ended
    (("0:20", "/version", "/proc/meminfo", "proc"), "proc/meminfo", False, False),  # by the VE
    (("0:50", "/file", "/proc/diskstats", "tmpfs"), "proc/diskstats", True, False),  # hidden
    (("0:50", "/file", "/proc/meminfo", "tmpfs"), "proc/meminfo", False, False),
    (("0:60", "/x", "/proc/meminfo", "overlay"), "proc/meminfo", False, False),
    (("0:61", "/x", "/proc/meminfo", "fuse"), "proc/meminfo", False, False),
    (("0:22", "/", "/sys", "sysfs"), "sys/devices/system/cpu/online", True, False),
])
def test_what_is_replaced(there, name, by_live, by_kernel):
    mount = Mount(5, *there)
    assert (_may_go(mount, name, "0:41"), _may_go(mount, name, "")) == (by_live, by_kernel)


def test_what_a_plan_has_of_it(tmp_path):
    server = Server("0:41", 17, 4, ("proc/meminfo",))
    views = {mode: Views(mode, "/var/lib/lxcfs", str(tmp_path)) for mode in ("auto", "off", "require")}
    assert views["auto"].operations() == views["off"].operations() == ()
    with pytest.raises(KernelLacks, match="no lxcfs serves /var/lib/lxcfs"):
        views["require"].operations()
    for mode in ("auto", "require"):
        views[mode]._server = server
        assert views[mode].operations() == (View("/var/lib/lxcfs", ("proc/meminfo",), mode == "require"),)


def test_the_next_daemon_knows_what_the_ves_have(tmp_path):
    views = Views("auto", "/var/lib/lxcfs", str(tmp_path))
    assert views.noted == views.generation == "none"
    views._server = Server("0:41", 17, 4, ())
    views.note(views.generation)
    assert Views("auto", "/var/lib/lxcfs", str(tmp_path)).noted == "0:41 17 4"
    assert os.listdir(tmp_path) == ["lxcfs"]


WATCH = """
import select, subprocess
from vemgr.kernel.mountinfo import MountWatch
watch, outer = MountWatch(), select.epoll()
outer.register(watch.fileno(), select.EPOLLIN)
for _ in range(3):
    assert not outer.poll(0)
    subprocess.run(["mount", "-t", "tmpfs", "none", "/mnt"], check=True)
    assert outer.poll(20)
    watch.clear()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
def test_a_change_is_told_once(monkeypatch):
    """By way of another epoll instance, as the event loop asks."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (os.getcwd(), os.environ.get("PYTHONPATH")))))
    subprocess.run(["unshare", "-m", sys.executable, "-c", WATCH], check=True, timeout=60)
