# SPDX-License-Identifier: GPL-2.0-or-later
"""What free, nproc and top show in a VE with limits, by the lxcfs of the distribution."""

import subprocess
from pathlib import Path

import pytest

from tests.system.conftest import cannot, until

DIRECTORY = Path("/var/lib/lxcfs")


class Lxcfs:
    def start(self):
        self.process = subprocess.Popen(["lxcfs", "-f", "-p", "/run/lxcfs-test.pid", str(DIRECTORY)],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until((DIRECTORY / "proc/meminfo").exists, what="lxcfs")

    def kill(self):
        self.process.kill()
        self.process.wait()
        subprocess.run(["umount", "-l", DIRECTORY], check=True)


@pytest.fixture
def lxcfs(vemgr):
    if not DIRECTORY.exists():
        cannot("lxcfs is not installed")
    lxcfs = Lxcfs()
    lxcfs.start()
    yield lxcfs
    lxcfs.kill()


def first(ve, *argv):
    return ve.exec(*argv).stdout


def total(ve):
    """MiB of memory."""
    return int(first(ve, "free", "-m").splitlines()[1].split()[1])


def test_a_ve_sees_its_own_limits(make_ve, lxcfs):
    ve = make_ve("viewer", template="host", memory="128M", cpu_mask="0")
    until(lambda: ve.show()["view"] == "lxcfs", what="the view")
    assert total(ve) == 128
    assert first(ve, "nproc") == "1\n"
    assert first(ve, "grep", "-c", "^processor", "/proc/cpuinfo") == "1\n"
    assert first(ve, "cat", "/sys/devices/system/cpu/online") == "0\n"
    assert len(first(ve, "grep", "^cpu[0-9]", "/proc/stat").splitlines()) == 1
    assert float(first(ve, "cat", "/proc/uptime").split()[0]) < float(Path("/proc/uptime").read_text().split()[0]) - 1
    ve.set(memory="256M")
    assert total(ve) == 256
    lxcfs.kill()
    until(lambda: ve.show()["view"] == "kernel", what="the kernel's view")
    until(lambda: ve.exec("free", "-m", status=None).returncode == 0, what="free")
    assert total(ve) > 256
    lxcfs.start()
    until(lambda: ve.show()["view"] == "lxcfs", what="the view again")
    until(lambda: total(ve) == 256, what="its own limits again")
